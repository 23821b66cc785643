"""Pictures in a folder on disk: one sub-folder a class."""

import os
import stat
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from graftflow.errors import InputError
from graftflow.pictures import Picture, Source, Unusable

MINIMUM_CLASSES = 2
MINIMUM_PICTURES = 3
MAXIMUM_FILE_BYTES = 512 * 2**20
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


class _ClassFolder(NamedTuple):
    label: str
    folder: Path
    prefix: str


def check_folder(root: Path, *, name: str | None = None) -> None:
    """Check quickly, reading no picture, that a folder can be a data set.

    Args:
        root: the folder that holds one sub-folder a class.
        name: what the messages call it; by default its path.

    Raises:
        InputError: there is no such folder, or it holds fewer than two classes, or a class fewer
            than three files.
    """
    name = name or str(root)
    if not root.is_dir():
        raise InputError(
            f"A directory source must be a folder that holds one sub-folder a class. "
            f"Received: '{name}', which is {'a file' if root.exists() else 'not there'}."
        )
    classes, _ = _classes(root)
    labels = sorted({found.label for found in classes})
    if len(labels) < MINIMUM_CLASSES:
        held = f"holds only '{labels[0]}'" if labels else "holds no sub-folder"
        raise InputError(
            f"A data set needs at least {MINIMUM_CLASSES} classes, one sub-folder each. '{name}' {held}."
        )
    for label in labels:
        files = (file for found in classes if found.label == label for file in _walk(found.folder))
        count = sum(
            1 for _ in islice((f for f in files if f.name.lower() not in SYSTEM_FILES), MINIMUM_PICTURES)
        )
        if count < MINIMUM_PICTURES:
            raise InputError(
                f"Each class needs at least {MINIMUM_PICTURES} pictures, one for each split. "
                f"Class '{label}' in '{name}' has {count}."
            )


def open_folder(root: Path, *, name: str | None = None) -> Source:
    """Open a folder that holds one sub-folder a class; files deeper inside a class belong to it.

    Where the sub-folders are ``train``, ``test`` and the like, the classes inside them are put
    together, because the data set is split anew. Hidden files are passed over.

    Args:
        root: the folder.
        name: what the messages call it; by default its path.

    Raises:
        InputError: as :func:`check_folder`.
    """
    check_folder(root, name=name)
    classes, merged = _classes(root)
    note = f"The folders {', '.join(merged)} were put together and split anew." if merged else ""
    listed: list[tuple[str, str, Path]] = []
    left_out = [
        (_readable(file.name), "stands beside the class folders, not in one")
        for file in sorted(root.iterdir())
        if not file.is_dir() and not _hidden(file.name)
    ]
    for label, folder, prefix in classes:
        for file in _walk(folder):
            path = f"{label}/{prefix}{file.relative_to(folder).as_posix()}"
            if _readable(path) != path:
                left_out.append((_readable(path), "its name is not UTF-8"))
            else:
                listed.append((path, label, file))
    listed.sort()
    pictures = (Picture(path, label, partial(_read, file)) for path, label, file in listed)
    return Source(pictures, len(listed), note, tuple(sorted(left_out)))


def descend(root: Path) -> Path:
    """Return the folder inside an unpacked archive that holds the class folders.

    While a folder holds exactly one folder, and that one holds folders, the search goes down; loose
    files such as a licence beside it do not matter.
    """
    while True:
        inner = _subfolders(root)
        if len(inner) != 1 or not _subfolders(inner[0]):
            return root
        root = inner[0]


def _classes(root: Path) -> tuple[list[_ClassFolder], list[str]]:
    """Return the class folders, sorted, and the names of the split folders that were merged."""
    top = _subfolders(root)
    if top and all(f.name.lower() in SPLIT_NAMES for f in top) and any(map(_subfolders, top)):
        found = [
            _ClassFolder(inner.name, inner, f"{outer.name}/") for outer in top for inner in _subfolders(outer)
        ]
        return sorted(found), [outer.name for outer in top]
    return [_ClassFolder(folder.name, folder, "") for folder in top], []


def _subfolders(folder: Path) -> list[Path]:
    found = sorted(f for f in folder.iterdir() if f.is_dir() and not _hidden(f.name))
    for inner in found:
        if _readable(inner.name) != inner.name:
            raise InputError(f"Names of class folders must be UTF-8. Received: '{_readable(inner.name)}'.")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for parent, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not _hidden(name))
        yield from (Path(parent, name) for name in sorted(files) if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _readable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _read(file: Path) -> bytes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("is no regular file")
    if status.st_size > MAXIMUM_FILE_BYTES:
        raise Unusable(f"has {status.st_size:,} bytes, more than {MAXIMUM_FILE_BYTES:,}")
    return file.read_bytes()
