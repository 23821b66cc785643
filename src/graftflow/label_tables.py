"""Tables of labels: ``labels.csv`` says the class of each picture and, if wanted, its split and its group."""

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from graftflow.errors import InputError

TABLE = "labels.csv"
NEEDED = ("path", "label")
OPTIONAL = ("split", "group")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


class Row(NamedTuple):
    """One picture: its path from the table's folder, its class and, or ``""``, its split and its group."""

    path: str
    label: str
    split: str = ""
    group: str = ""


def read_table(file: Path, *, name: str | None = None) -> list[Row]:
    """Read a table of labels: CSV in UTF-8, columns ``path,label`` and, in any order, ``split`` and ``group``.

    Args:
        file: the table; the paths in it start at its folder.
        name: what the messages call it; by default its path.

    Returns:
        The rows in the order of the file; splits are ``train``, ``validation``, ``test`` or ``""``.

    Raises:
        InputError: no such text or columns; a row of another length; a path that is empty, leaves the folder, names no
            file or is there twice; an empty label or one of several lines; an unknown split, or one in some rows only;
            a group in several splits.
    """
    name = name or str(file)
    rows: list[Row] = []
    lines: dict[str, int] = {}
    splits: dict[str, Row] = {}
    for line, cells in _cells(file, name):
        row = Row(
            _path(file, cells["path"], name, line),
            cells["label"],
            _split(cells.get("split", ""), name, line),
            cells.get("group", ""),
        )
        if not row.label or not row.label.isprintable():
            raise _bad(name, line, "label must be a name of one line", row.label)
        if row.path in lines:
            raise _bad(
                name, line, f"a picture must be named once, not in line {lines[row.path]} too", row.path
            )
        lines[row.path] = line
        if rows and bool(row.split) != bool(rows[0].split):
            raise _bad(name, line, "split must be given in all lines or in none", row.split)
        if row.group and splits.setdefault(row.group, row).split != row.split:
            other = splits[row.group]
            rule = (
                f"a group must be in one split, but '{other.path}' of group '{row.group}' is in {other.split}"
            )
            raise _bad(name, line, rule, row.split)
        rows.append(row)
    if not rows:
        raise InputError(f"A table of labels must have a line for each picture. '{name}' has none.")
    return rows


def _cells(file: Path, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each line's number and its cells by column, without blanks around them."""
    try:
        # utf-8-sig: spreadsheets put a mark in front.
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            columns = [column.strip().lower() for column in next(reader, [])]
            _check_columns(columns, name)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(columns):
                    rule = f"must have {len(columns)} cells, one for each of {', '.join(columns)}"
                    raise _bad(name, reader.line_num, rule, ",".join(cells))
                yield reader.line_num, dict(zip(columns, (c.strip() for c in cells), strict=True))
    except UnicodeDecodeError as error:
        raise InputError(
            f"A table of labels must be text in UTF-8. Received: '{name}' ({error.reason})."
        ) from error
    except csv.Error as error:
        raise InputError(f"A table of labels must be CSV. Received: '{name}' ({error}).") from error
    except OSError as error:
        raise InputError(
            f"A table of labels must be readable. Received: '{name}' ({error.strerror})."
        ) from error


def _check_columns(columns: list[str], name: str) -> None:
    allowed = (*NEEDED, *OPTIONAL)
    missing = [column for column in NEEDED if column not in columns]
    unknown = [column for column in columns if column not in allowed]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    for problem, found in (("lacks", missing), ("has the unknown", unknown), ("has twice", twice)):
        if found:
            raise InputError(
                f"A table of labels must have the columns {' and '.join(NEEDED)}, and may have "
                f"{' and '.join(OPTIONAL)}. '{name}' {problem} {', '.join(repr(c) for c in found)}."
            )


def _path(file: Path, text: str, name: str, line: int) -> str:
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise _bad(name, line, "path must name a file in the table's folder, from there, without '..'", text)
    try:
        found = (file.parent / path).is_file()
    except OSError:
        found = False
    if not found:
        raise _bad(
            name,
            line,
            "path must name a file in the table's folder",
            f"{text}, which is not there",
            quote=False,
        )
    return path.as_posix()


def _split(text: str, name: str, line: int) -> str:
    if text and text.lower() not in SPLIT_NAMES:
        raise _bad(name, line, f"split must be one of {', '.join(SPLIT_NAMES)}", text)
    return SPLIT_NAMES.get(text.lower(), "")


def _bad(name: str, line: int, rule: str, received: str, *, quote: bool = True) -> InputError:
    received = " ".join(received.split())[:200]
    return InputError(f"'{name}', line {line}: {rule}. Received: {repr(received) if quote else received}.")
