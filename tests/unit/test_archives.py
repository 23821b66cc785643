"""Archives from anywhere: what is refused, how it is told, and that nothing stays behind."""

import io
import re
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from graftflow.archives import Limits, extract
from graftflow.errors import InputError

CONTENT = b"some bytes\n" * 1000
SUFFIXES = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]


def make_tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def make_archive(folder: Path, suffix: str, files: dict[str, bytes]) -> Path:
    path = folder / f"pictures.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    mode = "w:" + suffix.removeprefix("tar").removeprefix(".")
    return make_tar(path, *((tar_entry(n), c) for n, c in files.items()), mode=mode)


def assert_refused(archive: Path, folder: Path, pattern: str, limits: Limits | None = None) -> None:
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(InputError, match=pattern) as caught:
        extract(archive, folder / "unpacked", limits=limits)
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_extract_gives_back_the_files(tmp_path: Path, suffix: str) -> None:
    files = {"a/one.jpg": CONTENT, "a/deep/two.jpg": b"", "b/ünïcode 3.jpg": b"\x00\xff" * 999}
    extract(make_archive(tmp_path, suffix, files), tmp_path / "unpacked")
    unpacked = tmp_path / "unpacked"
    found = {p.relative_to(unpacked).as_posix(): p.read_bytes() for p in unpacked.rglob("*") if p.is_file()}
    assert found == files


def test_a_zip_with_windows_separators_becomes_folders(tmp_path: Path) -> None:
    archive = tmp_path / "windows.zip"
    with zipfile.ZipFile(archive, "w") as file:
        entry = zipfile.ZipInfo("cat/1.jpg")
        entry.filename = "cat\\1.jpg"
        file.writestr(entry, CONTENT)
    extract(archive, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "cat" / "1.jpg").read_bytes() == CONTENT


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("../evil.jpg", r"'\.\./evil\.jpg' leaves the folder with '\.\.'"),
        ("cat/../../evil.jpg", r"leaves the folder with '\.\.'"),
        ("cat\\..\\..\\evil.jpg", r"leaves the folder with '\.\.'"),
        ("/tmp/evil.jpg", "'/tmp/evil.jpg' has an absolute path"),
        ("C:\\evil.jpg", "has an absolute path"),
    ],
)
def test_an_entry_that_leaves_the_folder_is_refused(
    tmp_path: Path, suffix: str, name: str, pattern: str
) -> None:
    archive = make_archive(tmp_path, suffix, {"cat/1.jpg": CONTENT, name: CONTENT})
    assert_refused(archive, tmp_path, pattern)
    assert not (tmp_path.parent / "evil.jpg").exists()


@pytest.mark.parametrize(
    "entry",
    [
        tar_entry("cat", tarfile.SYMTYPE, "/etc"),
        tar_entry("cat/1.jpg", tarfile.LNKTYPE, "/etc/passwd"),
        tar_entry("cat/tty", tarfile.CHRTYPE),
        tar_entry("cat/disk", tarfile.BLKTYPE),
        tar_entry("cat/pipe", tarfile.FIFOTYPE),
    ],
    ids=["symlink", "hard link", "character device", "block device", "pipe"],
)
def test_a_link_or_device_in_a_tar_is_refused(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    archive = make_tar(tmp_path / "links.tar", (tar_entry("a/1"), CONTENT), (entry, b""))
    assert_refused(archive, tmp_path, f"'{entry.name}' is a link or a device")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_link_or_device_in_a_zip_is_refused(tmp_path: Path, kind: int) -> None:
    archive = tmp_path / "links.zip"
    with zipfile.ZipFile(archive, "w") as file:
        entry = zipfile.ZipInfo("cat/link")
        entry.create_system = 3
        entry.external_attr = (kind | 0o777) << 16
        file.writestr(entry, "/etc/passwd")
    assert_refused(archive, tmp_path, "'cat/link' is a link or a device")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_bomb_is_refused_while_it_unpacks(tmp_path: Path, suffix: str) -> None:
    archive = make_archive(tmp_path, suffix, {"cat/1.bmp": bytes(30 * 2**20)})
    assert archive.stat().st_size < 2**20
    assert_refused(archive, tmp_path, "over 9 times its own size", Limits(ratio=9, free_bytes=1000))


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, "zip", {"cat/1.bmp": bytes(30 * 2**20)})
    content = archive.read_bytes()
    archive.write_bytes(content.replace(struct.pack("<I", 30 * 2**20), struct.pack("<I", 10)))
    assert_refused(archive, tmp_path, "refused|broken")


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_limits_on_entries_and_bytes_hold(tmp_path: Path, suffix: str) -> None:
    archive = make_archive(tmp_path, suffix, {f"a/{i}": CONTENT for i in range(20)})
    assert_refused(archive, tmp_path, "more than 19 entries", Limits(entries=19))
    few = Limits(total_bytes=20 * len(CONTENT) - 1)
    assert_refused(archive, tmp_path, "more than 219,999 bytes unpacked", few)
    extract(archive, tmp_path / "unpacked", limits=Limits(entries=20))


def test_a_sparse_file_in_a_tar_is_refused(tmp_path: Path) -> None:
    # One byte of data that claims to be 8 GiB: a hole that no meter of the stream would see.
    header = bytearray(tarfile.TarInfo("hole").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[124:136] = b"%011o\0" % 512
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % (8**11 - 1)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive = tmp_path / "sparse.tar"
    archive.write_bytes(bytes(header) + bytes(512) + bytes(1024))
    assert_refused(archive, tmp_path, "'hole' is a sparse file")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_archive_is_broken(tmp_path: Path, suffix: str, share: float) -> None:
    noise = bytes((i * i * 7919 >> 5) % 256 for i in range(20_000))
    archive = make_archive(tmp_path, suffix, {f"a/{i}": noise[i:] for i in range(5)})
    # Tar pads its end with up to 10 KiB of zeros, whose loss does no harm.
    size = 5 * 20_992 if suffix == "tar" else archive.stat().st_size
    archive.write_bytes(archive.read_bytes()[: int(size * share)])
    assert_refused(archive, tmp_path, "is broken: ")


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_a_damaged_archive_is_broken(tmp_path: Path, suffix: str) -> None:
    archive = make_archive(tmp_path, suffix, {f"a/{i}.jpg": CONTENT * 3 for i in range(3)})
    content = bytearray(archive.read_bytes())
    # In the tar this is the header of the second file, which tarfile alone takes for the end.
    start = 512 + -(-len(CONTENT) * 3 // 512) * 512 + 100 if suffix == "tar" else 60
    content[start : start + 8] = b"\xde\xad\xbe\xef" * 2
    archive.write_bytes(content)
    assert_refused(archive, tmp_path, "is broken: ")


def bare_header(name: str, kind: bytes, size: int) -> bytes:
    """A tar header of any size and type, its checksum right."""
    entry = tar_entry(name, kind)
    entry.size = size
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


PAX = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n20 GNU.sparse.name=x\n"
BAD_HEADERS = {
    "long name": bare_header("x", tarfile.GNUTYPE_LONGNAME, 2**30) + bytes(2**30 >> 6),
    "long pax header": bare_header("x", tarfile.XHDTYPE, 2**30) + b"a" * (2**30 >> 6),
    "headers of headers": bare_header("x", tarfile.GNUTYPE_LONGNAME, 9) + b"x" * 8 + bytes(504),
    "map of holes": bare_header("x", tarfile.XHDTYPE, len(PAX)) + PAX + bytes(512 - len(PAX) % 512),
    "cut map of holes": bare_header("x", tarfile.GNUTYPE_SPARSE, 0)[:-30] + b"\1" * 30,
    "negative size": bare_header("x", tarfile.REGTYPE, -512),
    "negative pax size": bare_header("x", tarfile.XHDTYPE, 11) + b"11 size=-9\n" + bytes(501),
}
BAD_HEADERS["headers of headers"] *= 3000
BAD_HEADERS["map of holes"] += bare_header("x", tarfile.REGTYPE, 2**20) + b"9" * 7 + b"\n" + b"0\n" * 2**18


@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_headers_that_go_too_far_are_refused_before_they_take_memory(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "headers.tar"
    archive.write_bytes(BAD_HEADERS[kind] + bare_header("a/1.jpg", tarfile.REGTYPE, 0) + bytes(1024))
    tracemalloc.start()
    try:
        assert_refused(archive, tmp_path, "is broken: |is refused: ")
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_zipfile_unpacks_at_once_is_refused(tmp_path: Path, compression: int) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", compression) as file:
        file.writestr("cat/1.bmp", bytes(30 * 2**20))
    tracemalloc.start()
    try:
        assert_refused(archive, tmp_path, "'cat/1.bmp' is neither stored nor deflated")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("a" * 300, "has a name of more than 255 bytes"),
        ("ü" * 130, "has a name of more than 255 bytes"),
        ("a/" * 70 + "1.jpg", "lies more than 64 folders deep"),
        ("a/" * 30_000 + "1.jpg", "lies more than 64 folders deep"),
        ("../\x1b[31mred\nline\x9b", r"'\.\./\\x1b\[31mred line\\x9b' leaves the folder"),
    ],
    ids=["long name", "long in bytes", "deep", "very deep", "escape sequences"],
)
def test_names_that_no_disk_takes_are_refused_in_one_line(
    tmp_path: Path, suffix: str, name: str, pattern: str
) -> None:
    assert_refused(make_archive(tmp_path, suffix, {"a/1.jpg": CONTENT, name: CONTENT}), tmp_path, pattern)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, "zip", {"a/1.jpg": CONTENT})
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert_refused(archive, tmp_path, "'a/1.jpg' is encrypted")


def test_a_name_that_is_file_and_folder_is_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, "tar", {"a": CONTENT, "a/1.jpg": CONTENT})
    assert_refused(archive, tmp_path, "'a' is both a file and a folder")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><p>Log in", bytes(600), b"x" * 600])
def test_what_is_no_archive_is_told_by_its_first_bytes(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "page.zip"
    archive.write_bytes(content)
    shown = "is empty" if not content else re.escape(f"starts with {content[:16]!r}")
    assert_refused(archive, tmp_path, f"must be zip, tar, .* which {shown}")


def test_a_missing_archive_is_told(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.zip", tmp_path, "not there")
    with pytest.raises(InputError, match="say directory:PATH"):
        extract(tmp_path, tmp_path / "unpacked")
