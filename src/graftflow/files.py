"""Artifacts on disk: written aside, then renamed, so that a killed step leaves nothing half-written."""

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graftflow.errors import InputError
from graftflow.storage import cannot_write, place_of, writing

# What is left of a disk, in bytes, when a library's last write has failed for want of space.
_FULL = 2**20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# Refusals that only writing meets: what reads an input inside the block gets no other of them.
_REFUSALS = {*_NO_ROOM, errno.EFBIG, errno.EROFS}


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that takes its name when the block ends without an error.

    Whatever stood at ``path`` is replaced; on an error it stays and the new folder is removed.

    Args:
        path: where the finished folder shall be; its parents are made.

    Raises:
        InputError: the folder cannot be made; or the block failed because a disk is full, which libraries report in
            words of their own, or cannot be written.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    except OSError as error:
        raise cannot_write(error, final.parent) from error
    aside.chmod(0o755)
    try:
        yield aside
        _put_in_place(aside, final)
    except BaseException as error:
        refused = _refusal(error, final)
        shutil.rmtree(aside, ignore_errors=True)
        if refused is None:
            raise
        raise refused from error


def _refusal(error: BaseException, final: Path) -> InputError | None:
    """Return the line for a disk that refused what was written for ``final``; ``None`` where it was not the disk."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno not in _REFUSALS:
            return None
        # The artifact is not all that is written: a cache has a disk of its own, and so have temporary files.
        if error.errno not in _NO_ROOM or place_of(error, final.parent) != final.parent:
            return cannot_write(error, final.parent)
    elif not (_says_no_reason(error) and shutil.disk_usage(final.parent).free < _FULL):
        return None
    return InputError(
        f"The disk must have room for '{final.name}'. Received: no space left in '{final.parent}'"
    )


def _says_no_reason(error: BaseException) -> bool:
    """Return whether a full disk may be behind an error: of NumPy an OSError, HDF5 a RuntimeError, TensorFlow its own.

    A wrong value or a missing key is never a disk's doing.
    """
    return isinstance(error, OSError | RuntimeError) or type(error).__module__.startswith("tensorflow.")


def _put_in_place(aside: Path, final: Path) -> None:
    """Give a finished folder its name; what had it is removed under another one, so that nobody sees half of it."""
    if not os.path.lexists(final):
        os.replace(aside, final)
        return
    before = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    os.replace(final, before / "replaced")
    try:
        os.replace(aside, final)
    except BaseException:
        os.replace(before / "replaced", final)
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)


def remove_asides(folder: Path, name: str = "") -> None:
    """Remove what killed processes wrote aside in a folder.

    Args:
        folder: in which no other process writes, of what is removed.
        name: of the file or folder that it was to become; empty for any.
    """
    for aside in folder.glob(f".{glob.escape(name) + '.' if name else ''}*.partial*"):
        remove(aside)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path``; the file written there takes its name when the block ends well.

    A killed process leaves the old file or the new one. After a power cut the new one may be cut or gone: what is
    believed later is sealed, ends with its digest or is compared with one, or its writer waits with :func:`sync`.

    Raises:
        OSError: of a full disk it names the file, which Python's own does not.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        prefix=f".{final.name}.", suffix=f".partial{final.suffix}", dir=final.parent
    )
    os.close(descriptor)
    aside = Path(name)
    aside.chmod(0o644)
    try:
        yield aside
        os.replace(aside, final)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            error.filename = str(final)
        raise


def remove(path: Path) -> None:
    """Remove a file, link or folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk, where its file system can tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE volumes cannot sync a folder; the files in it are synced.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, keys in the order given; NaN and infinities are refused.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    with writing(Path(path).parent), atomic_file(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_directory(path: str | Path) -> str:
    """Return one SHA-256 for a folder: of its files' relative names and contents, sorted by name."""
    root = Path(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(root).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
