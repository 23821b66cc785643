"""Archives of any entries, honest and not: nothing outside of the folder, bounded bytes, one line of refusal."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftflow.archives import Limits, extract
from graftflow.errors import InputError
from tests.unit.properties import changed, examples, refusal_or

LIMITS = Limits(entries=30, total_bytes=100_000, ratio=50, free_bytes=50_000)
OUTSIDE = b"must stay as it is"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder two levels deep, with files beside and above the place where archives are unpacked."""
    room = tmp_path_factory.mktemp("archives") / "above" / "room"
    room.mkdir(parents=True)
    (room.parent / "1.jpg").write_bytes(OUTSIDE)
    (room / "1.jpg").write_bytes(OUTSIDE)
    return room


def surroundings(room: Path) -> set[tuple[str, bytes]]:
    """Every file, link and folder around the unpacked folder."""
    found = set()
    for path in room.parent.rglob("*"):
        name = path.relative_to(room.parent).as_posix()
        if name != "room/archive" and not name.startswith("room/unpacked"):
            found.add((name, path.read_bytes() if path.is_file() else b""))
    return found


def unpack(room: Path, archive: bytes) -> dict[str, bytes] | InputError:
    """Unpack, check what must hold of any archive, and return its files or the refusal."""
    (room / "archive").write_bytes(archive)
    unpacked, before = room / "unpacked", surroundings(room)
    found = refusal_or(lambda: extract(room / "archive", unpacked, limits=LIMITS))
    # Neither a file beside the folder, nor a rest of one that was begun.
    assert surroundings(room) == before
    if isinstance(found, InputError):
        assert not os.path.lexists(unpacked)
        return found
    files = {}
    for path in unpacked.rglob("*"):
        assert stat.S_ISREG(path.lstat().st_mode) or stat.S_ISDIR(path.lstat().st_mode), path
        assert path.stat().st_nlink == 1 or path.is_dir(), path
        if path.is_file():
            files[path.relative_to(unpacked).as_posix()] = path.read_bytes()
    assert len(files) <= LIMITS.entries
    assert sum(map(len, files.values())) <= min(
        LIMITS.total_bytes, LIMITS.free_bytes + LIMITS.ratio * len(archive)
    )
    for path in sorted(unpacked.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    unpacked.rmdir()
    return files


_PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "a", "A", "1.jpg", "\N{LATIN SMALL LETTER A WITH DIAERESIS}", "a\u0308",
                     "C:", "~", "\x1b[2J", "a\\..\\..", "con", "\u202e", " ", "a" * 300]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)  # fmt: skip
_NAMES = st.tuples(
    st.sampled_from(["", "/", "//", "C:\\", "../../", "room/", "./"]), st.lists(_PARTS, max_size=5)
).map(lambda parts: parts[0] + "/".join(parts[1]))
_CONTENTS = st.one_of(st.binary(max_size=40), st.integers(0, 60_000).map(bytes))
_TYPES = st.sampled_from(
    [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE,
     tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"V", b"x", b"g", b"L", b"K"]
)  # fmt: skip
_PAX_NAMES = [
    "path",
    "size",
    "linkpath",
    "GNU.sparse.major",
    "GNU.sparse.map",
    "GNU.sparse.realsize",
    "hdrcharset",
    "x",
]
_PAX_VALUES = ["-1", "99999999999", "1", "../x", "a\n", "BINARY"]
_PAX = st.one_of(
    st.just({}),
    st.just({}),
    st.dictionaries(
        st.sampled_from(_PAX_NAMES),
        st.one_of(
            st.sampled_from(_PAX_VALUES), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
        ),
        max_size=2,
    ),
)
_ENTRIES = st.lists(
    st.tuples(_NAMES, st.one_of(*[st.just(tarfile.REGTYPE)] * 3, _TYPES), _NAMES, _CONTENTS, _PAX), max_size=6
)


def tar_of(entries: list, form: int, compress: Callable[[bytes], bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, kind, target, content, pax in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.pax_headers = kind, target, pax
            entry.size = len(content)
            try:
                archive.addfile(entry, io.BytesIO(content))
            except (ValueError, KeyError):  # what this form has no room for
                continue
    return compress(file.getvalue())


def zip_of(entries: list, method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, kind, _, content, _ in entries:
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            entry.compress_type = method
            entry.create_system = 3
            mode = {
                tarfile.SYMTYPE: stat.S_IFLNK,
                tarfile.DIRTYPE: stat.S_IFDIR,
                tarfile.FIFOTYPE: stat.S_IFIFO,
            }
            entry.external_attr = (mode.get(kind, stat.S_IFREG) | 0o7777) << 16
            with (
                pytest.warns(UserWarning, match="Duplicate name")
                if name in archive.namelist()
                else nullcontext()
            ):
                archive.writestr(entry, content)
    return file.getvalue()


@given(
    entries=_ENTRIES,
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    compress=st.sampled_from([bytes, gzip.compress]),
    data=st.data(),
)
@examples(0.7)
def test_a_tar_of_any_entries_stays_in_its_folder(
    room: Path, entries: list, form: int, compress: Callable[[bytes], bytes], data: st.DataObject
) -> None:
    archive = tar_of(entries, form, compress)
    unpack(room, archive)
    unpack(room, compress(data.draw(changed(tar_of(entries, form, bytes)))))
    unpack(room, data.draw(changed(archive)))


@given(entries=_ENTRIES, method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), data=st.data())
@examples(0.7)
def test_a_zip_of_any_entries_stays_in_its_folder(
    room: Path, entries: list, method: int, data: st.DataObject
) -> None:
    archive = zip_of(entries, method)
    unpack(room, archive)
    unpack(room, data.draw(changed(archive)))


@given(
    start=st.sampled_from([b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b""]),
    rest=st.binary(),
)
def test_any_bytes_are_refused_or_unpacked(room: Path, start: bytes, rest: bytes) -> None:
    unpack(room, start + rest)


_HONEST = st.dictionaries(
    st.lists(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=4).map(lambda part: f"f{part}"),
        min_size=1,
        max_size=3,
    ).map("/".join),
    st.binary(max_size=2000),
    max_size=5,
).filter(lambda files: not any(f"{one}/" in f"{other}/" for one in files for other in files if one != other))


@given(files=_HONEST, form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, "stored", "deflated"]))
def test_honest_files_come_out_as_they_went_in(room: Path, files: dict[str, bytes], form: int | str) -> None:
    entries = [(name, tarfile.REGTYPE, "", content, {}) for name, content in files.items()]
    if isinstance(form, str):
        archive = zip_of(entries, zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED)
    else:
        archive = tar_of(entries, form, gzip.compress)
    assert unpack(room, archive) == files


def test_entries_that_share_their_bytes_are_counted_each(room: Path) -> None:
    """A zip bomb without nesting: many entries of the table point at the same deflated bytes."""
    whole = zip_of([("a/0", tarfile.REGTYPE, "", bytes(40_000), {})], zipfile.ZIP_DEFLATED)
    at, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    table = b"".join(whole[at:end].replace(b"a/0", b"a/%d" % number) for number in range(9))
    tail = whole[end : end + 8] + struct.pack("<HHIIH", 9, 9, len(table), at, 0)
    found = unpack(room, whole[:at] + table + tail)
    assert isinstance(found, InputError)
