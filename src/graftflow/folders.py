"""Pictures in a folder on disk: one sub-folder a class, or a table of labels."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from graftflow.errors import InputError
from graftflow.label_tables import SPLIT_NAMES, TABLE, Row, read_table
from graftflow.pictures import Picture, Source, Unusable

MINIMUM_CLASSES = 2
MINIMUM_PICTURES = 3
MAXIMUM_FILE_BYTES = 512 * 2**20
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


class _ClassFolder(NamedTuple):
    label: str
    folder: Path
    prefix: str
    split: str


def check_folder(root: Path, *, name: str | None = None) -> None:
    """Check quickly, reading no picture, that a folder can be a data set.

    Args:
        root: the folder that holds one sub-folder a class or the table ``labels.csv``, or a table (``….csv``) itself.
        name: what the messages call it; by default its path.

    Raises:
        InputError: there is no such folder, or it holds fewer than two classes, or a class fewer
            than three files; a table breaks a rule of :func:`graftflow.label_tables.read_table`.
    """
    name = name or str(root)
    if table := _table(root):
        labels = [row.label for row in read_table(table, name=_table_name(table, root, name))]
        _check_counts(
            {label: labels.count(label) for label in sorted(set(labels))}, name, "one name each in 'label'"
        )
        return
    if not root.is_dir():
        raise InputError(
            f"A directory source must be a folder that holds one sub-folder a class. "
            f"Received: '{name}', which is {'a file' if root.exists() else 'not there'}."
        )
    classes = _classes(root)
    counts: dict[str, int] = {}
    for label in sorted({found.label for found in classes}):
        files = (file for found in classes if found.label == label for file in _walk(found.folder))
        counts[label] = sum(
            1 for _ in islice((f for f in files if f.name.lower() not in SYSTEM_FILES), MINIMUM_PICTURES)
        )
    _check_counts(counts, name, "one sub-folder each")


def open_folder(root: Path, *, name: str | None = None) -> Source:
    """Open a folder that holds one sub-folder a class; files deeper inside a class belong to it.

    Where the sub-folders are ``train``, ``validation`` (``val``, ``valid``) and ``test`` (``testing``) and hold the
    class folders, they are the splits. Where the folder holds ``labels.csv``, that table says all instead of the
    folders. Hidden files are passed over.

    Args:
        root: the folder, or a table in it.
        name: what the messages call it; by default its path.

    Raises:
        InputError: as :func:`check_folder`.
    """
    check_folder(root, name=name)
    if table := _table(root):
        return _open_table(table, read_table(table, name=_table_name(table, root, name or str(root))))
    listed: list[tuple[str, _ClassFolder, Path]] = []
    left_out = [
        (_readable(file.name), "stands beside the class folders, not in one")
        for file in sorted(root.iterdir())
        if not file.is_dir() and not _hidden(file.name)
    ]
    for found in _classes(root):
        for file in _walk(found.folder):
            path = f"{found.label}/{found.prefix}{file.relative_to(found.folder).as_posix()}"
            if _readable(path) != path:
                left_out.append((_readable(path), "its name is not UTF-8"))
            else:
                listed.append((path, found, file))
    listed.sort()
    pictures = (
        Picture(path, found.label, partial(_read, file), split=found.split, stamp=_stamp(file))
        for path, found, file in listed
    )
    return Source(pictures, len(listed), "", tuple(sorted(left_out)))


def descend(root: Path) -> Path:
    """Return the folder inside an unpacked archive that holds the class folders.

    While a folder holds exactly one folder, and that one holds folders, the search goes down; loose
    files such as a licence beside it do not matter, except a table of labels.
    """
    while not _table(root):
        inner = _subfolders(root)
        if len(inner) != 1 or not _subfolders(inner[0]):
            return root
        root = inner[0]
    return root


def _classes(root: Path) -> list[_ClassFolder]:
    """Return the class folders, sorted."""
    top = _subfolders(root)
    if top and all(f.name.lower() in SPLIT_NAMES for f in top) and any(map(_subfolders, top)):
        return sorted(
            _ClassFolder(inner.name, inner, f"{outer.name}/", SPLIT_NAMES[outer.name.lower()])
            for outer in top
            for inner in _subfolders(outer)
        )
    return [_ClassFolder(folder.name, folder, "", "") for folder in top]


def _check_counts(counts: Mapping[str, int], name: str, where: str) -> None:
    if len(counts) < MINIMUM_CLASSES:
        held = f"holds only '{next(iter(counts))}'" if counts else "holds no sub-folder"
        raise InputError(f"A data set needs at least {MINIMUM_CLASSES} classes, {where}. '{name}' {held}.")
    for label, count in counts.items():
        if count < MINIMUM_PICTURES:
            raise InputError(
                f"Each class needs at least {MINIMUM_PICTURES} pictures, one for each split. "
                f"Class '{label}' in '{name}' has {count}."
            )


def _table(root: Path) -> Path | None:
    """Return the table of labels that a source names or holds."""
    if root.suffix.lower() == ".csv" and root.is_file():
        return root
    return root / TABLE if (root / TABLE).is_file() else None


def _table_name(table: Path, root: Path, name: str) -> str:
    return name if table == root else f"{name}/{TABLE}"


def _open_table(table: Path, rows: Sequence[Row]) -> Source:
    listed = sorted(rows)
    pictures = (
        Picture(
            row.path,
            row.label,
            partial(_read, table.parent / row.path),
            split=row.split,
            group=row.group,
            stamp=_stamp(table.parent / row.path),
        )
        for row in listed
    )
    return Source(pictures, len(listed))


def _subfolders(folder: Path) -> list[Path]:
    found = sorted(f for f in folder.iterdir() if f.is_dir() and not _hidden(f.name))
    for inner in found:
        if _readable(inner.name) != inner.name:
            raise InputError(f"Names of class folders must be UTF-8. Received: '{_readable(inner.name)}'.")
        if not inner.name.isprintable():  # a model answers with them, and its clients print what it answers
            raise InputError(f"Names of class folders must be printable. Received: '{inner.name}'.")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for parent, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not _hidden(name))
        yield from (Path(parent, name) for name in sorted(files) if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _readable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _stamp(file: Path) -> str:
    """Return size and time of change; nothing where there is no file, which reading it will tell."""
    try:
        status = file.stat()
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def _read(file: Path) -> bytes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("is no regular file")
    if status.st_size > MAXIMUM_FILE_BYTES:
        raise Unusable(f"has {status.st_size:,} bytes, more than {MAXIMUM_FILE_BYTES:,}")
    return file.read_bytes()
