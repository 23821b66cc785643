"""The pictures that a command names: files, folders, glob patterns, and standard input."""

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from graftflow.errors import InputError
from graftflow.serving.refusals import PictureError
from graftflow.serving.targets import MESSAGE_BYTES

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")

Source = tuple[str, Callable[[], bytes]]


def sources(names: Sequence[str]) -> list[Source]:
    """Return every picture's name and what reads it, without reading one.

    Args:
        names: files, folders (all their pictures, at any depth), glob patterns, or ``-`` for one picture on standard
            input. What is missing gets a source that raises :class:`~graftflow.serving.refusals.PictureError`.
    """
    return [source for name in names for source in _expanded(name, patterns=True)]


def listed_sources() -> Iterator[Source]:
    """Yield the pictures that standard input lists, files and folders, one a line; as soon as the line is there."""
    # By its own reader: iterating would wait for a whole block.
    for line in iter(sys.stdin.buffer.readline, b""):
        if name := os.fsdecode(line.rstrip(b"\r\n")):
            yield from _expanded(name, patterns=False)


def _expanded(name: str, *, patterns: bool) -> list[Source]:
    if name == "-" and patterns:
        return [("-", _read_standard_input)]
    try:
        return [(str(path), partial(_read, path)) for path in _paths(name, patterns=patterns)]
    except OSError as error:
        return [(name, partial(_fail, f"cannot be read: {error.strerror}"))]
    except InputError as error:
        return [(name, partial(_fail, str(error)))]


def _paths(name: str, *, patterns: bool) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise InputError(f"the folder holds no picture ({', '.join(SUFFIXES)})")
        return found
    if path.exists():
        return [path]
    if patterns and glob.has_magic(name):
        found = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
        if not found:
            raise InputError("no file matches the pattern")
        return found
    raise InputError("no such file or folder")


def _fail(reason: str) -> bytes:
    raise PictureError(reason)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return _limited(file.read(MESSAGE_BYTES + 1))


def _read_standard_input() -> bytes:
    return _limited(sys.stdin.buffer.read(MESSAGE_BYTES + 1))


def _limited(data: bytes) -> bytes:
    if len(data) > MESSAGE_BYTES:
        raise PictureError(f"is larger than {MESSAGE_BYTES // 2**20} MiB")
    return data
