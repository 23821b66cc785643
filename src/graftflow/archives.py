"""Unpack an archive without trusting it; a refusal is one line and leaves nothing."""

import bz2
import errno
import gzip
import lzma
import math
import os
import re
import stat
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from graftflow.errors import InputError
from graftflow.files import atomic_directory
from graftflow.storage import writing

CHUNK = 2**20
COMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
DEEPEST = 64
LONGEST_NAME = 255  # bytes, of all file systems that Linux has
# Bytes that tarfile may read, and keep in memory, to find the next entry: long names, pax headers, maps of holes.
MOST_HEADER_BYTES = 2**18
MOST_GLOBAL_HEADERS = 100


@dataclass(frozen=True)
class Limits:
    """What an archive may hold. Pictures hardly compress, so honest archives stay far below.

    Attributes:
        entries: files and folders.
        total_bytes: bytes of all files, unpacked.
        ratio: unpacked bytes per byte of the archive, beyond the first ``free_bytes``.
        free_bytes: unpacked bytes that are allowed whatever the ratio.
    """

    entries: int = 2_000_000
    total_bytes: int = 500 * 10**9
    ratio: int = 100
    free_bytes: int = 64 * 10**6


class _Meter:
    """Counts what really comes out of an archive, whatever its headers say."""

    def __init__(self, archive: Path, name: str, limits: Limits) -> None:
        self._name, self._limits = name, limits
        self._entries, self._bytes = 0, 0
        self._by_ratio = limits.free_bytes + limits.ratio * archive.stat().st_size

    def entry(self) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise _refusal(self._name, f"more than {self._limits.entries:,} entries")

    def count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._limits.total_bytes:
            raise _refusal(self._name, f"more than {self._limits.total_bytes:,} bytes unpacked")
        if self._bytes > self._by_ratio:
            raise _refusal(
                self._name,
                f"more than {self._by_ratio:,} bytes unpacked, over {self._limits.ratio} times "
                f"its own size, as archives made to fill a disk have",
            )


class _Metered:
    """The unpacked stream of a tar file, metered.

    Attributes:
        header_left: bytes that may still be read before an entry is found; infinite while one is unpacked.
    """

    def __init__(self, stream: IO[bytes], meter: _Meter) -> None:
        self._stream, self._meter = stream, meter
        self.header_left = math.inf

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._meter.count(len(data))
        self.header_left -= len(data)
        if self.header_left < 0:
            raise tarfile.ReadError(f"headers of more than {MOST_HEADER_BYTES:,} bytes for one entry")
        return data


class _StrictHeader(tarfile.TarInfo):
    """Does not take a damaged or missing header for the end of the archive, as tarfile does."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictHeader":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} where an entry or the end mark should be") from error


def is_url(value: str) -> bool:
    """Return whether a value is a URL (``https://``, ``gs://``, …) rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value) is not None


def check_archive(archive: Path) -> None:
    """Check quickly that a file can be an archive; its entries are not looked at.

    Raises:
        InputError: there is no such file, or it is neither zip nor tar.
    """
    if not archive.is_file():
        held = "a folder: say directory:PATH" if archive.is_dir() else "not there"
        raise InputError(f"An archive must be a zip or tar file. Received: '{archive}', which is {held}.")
    _kind(archive, str(archive))


def extract(
    archive: str | Path,
    destination: str | Path,
    *,
    limits: Limits | None = None,
    name: str | None = None,
) -> None:
    """Unpack a zip (stored or deflated) or tar file (plain, gzip, bzip2 or xz) into a folder.

    The limits are checked against the bytes that come out, while they come out.

    Args:
        archive: the file.
        destination: the folder to make; it appears when everything is unpacked.
        limits: what the archive may hold.
        name: what the messages call the archive, e.g. its URL; by default its path.

    Raises:
        InputError: no such file; neither zip nor tar; broken or encrypted; an entry with an absolute path or ``..``,
            too deep or too long a name, or that is a link or a device; more than the limits; or the folder cannot be
            written.
    """
    archive = Path(archive)
    name = name or str(archive)
    check_archive(archive)
    kind = _kind(archive, name)
    meter = _Meter(archive, name, limits or Limits())
    unpack = _extract_zip if kind == "zip" else _extract_tar
    with writing(Path(destination).parent), atomic_directory(destination) as folder:
        try:
            unpack(archive, folder, name, meter)
        except InputError:
            raise
        except OSError as error:
            if error.errno not in (None, errno.EINVAL):  # the disk's trouble, not the archive's
                raise
            raise _broken(name, error) from error
        except Exception as error:  # Python's readers raise whatever a broken archive leads to
            raise _broken(name, error) from error


def _kind(archive: Path, name: str) -> str:
    with archive.open("rb") as file:
        start = file.read(512)
    if start[:2] == b"PK":
        return "zip"
    if start[257:262] == b"ustar" or any(start.startswith(magic) for magic in COMPRESSORS):
        return "tar"
    if start and _is_old_tar(start):
        return "tar"
    raise InputError(
        f"An archive must be zip, tar, tar.gz, tar.bz2 or tar.xz. Received: '{name}', "
        f"{f'which starts with {start[:16]!r}' if start else 'which is empty'}."
    )


def _is_old_tar(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _extract_zip(archive: Path, folder: Path, name: str, meter: _Meter) -> None:
    with zipfile.ZipFile(archive) as unpacked:
        for entry in unpacked.infolist():
            meter.entry()
            # Windows tools write backslashes.
            path = _safe_path(folder, entry.filename.replace("\\", "/"), name)
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refusal(name, f"entry '{entry.filename}' is a link or a device")
            if entry.flag_bits & 1:
                raise _refusal(name, f"entry '{entry.filename}' is encrypted")
            if entry.is_dir():
                _make_folder(path, name)
                continue
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # zipfile unpacks what it has read of them at once: 150 bytes of bzip2 may be 200 MB.
                raise _refusal(name, f"entry '{entry.filename}' is neither stored nor deflated")
            with unpacked.open(entry) as content:
                _write(content, path, name, meter)


def _extract_tar(archive: Path, folder: Path, name: str, meter: _Meter) -> None:
    with archive.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        opener: Any = next((o for m, o in COMPRESSORS.items() if start.startswith(m)), None)
        stream: IO[bytes] = opener(raw) if opener else raw
        metered: Any = _Metered(stream, meter)
        metered.header_left = MOST_HEADER_BYTES
        with tarfile.open(fileobj=metered, mode="r|", tarinfo=_StrictHeader) as unpacked:
            while (entry := unpacked.next()) is not None:
                metered.header_left = math.inf
                unpacked.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if len(unpacked.pax_headers) > MOST_GLOBAL_HEADERS:
                    raise _refusal(name, f"more than {MOST_GLOBAL_HEADERS} global headers")
                meter.entry()
                if entry.size < 0:  # tarfile would take it for the end
                    raise tarfile.ReadError(f"entry '{entry.name}' has a negative size")
                path = _safe_path(folder, entry.name, name)
                if entry.isdir():
                    _make_folder(path, name)
                elif entry.issparse():  # its holes are bytes that the meter would not see
                    raise _refusal(name, f"entry '{entry.name}' is a sparse file")
                elif entry.isreg():
                    content = cast(IO[bytes], unpacked.extractfile(entry))
                    _write(content, path, name, None)
                else:
                    raise _refusal(name, f"entry '{entry.name}' is a link or a device")
                metered.header_left = MOST_HEADER_BYTES
        metered.header_left = math.inf
        while metered.read(CHUNK):  # to the end, so that the checksum is checked
            pass


def _safe_path(folder: Path, entry: str, name: str) -> Path:
    parts = [part for part in re.split(r"[/\\]", entry) if part not in ("", ".")]
    if entry.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", entry):
        raise _refusal(name, f"entry '{entry}' has an absolute path")
    if ".." in parts:
        raise _refusal(name, f"entry '{entry}' leaves the folder with '..'")
    if "\0" in entry:
        raise _refusal(name, f"the name of entry {entry!r} holds a zero byte")
    if len(parts) > DEEPEST:
        raise _refusal(name, f"entry '{entry[:60]}…' lies more than {DEEPEST} folders deep")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise _refusal(name, f"entry '{entry[:60]}…' has a name of more than {LONGEST_NAME} bytes")
    return folder / entry


def _make_folder(path: Path, name: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _refusal(name, f"'{path.name}' is both a file and a folder") from error


def _write(content: IO[bytes], path: Path, name: str, meter: _Meter | None) -> None:
    _make_folder(path.parent, name)
    try:
        with path.open("wb") as file:
            while chunk := content.read(CHUNK):
                if meter:
                    meter.count(len(chunk))
                file.write(chunk)
    except IsADirectoryError as error:
        raise _refusal(name, f"'{path.name}' is both a file and a folder") from error


def _refusal(name: str, reason: str) -> InputError:
    reason = " ".join(reason.split())
    return InputError(f"Archive '{name}' is refused: {reason}.")


def _broken(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"Archive '{name}' is broken: {reason}.")
