"""Answers about pictures as a table, JSON, JSON lines or CSV."""

import csv
import json
import re
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TextIO
from unicodedata import category

from graftflow.errors import one_line
from graftflow.serving.rankings import Ranking

_UNUSUAL = re.compile(r"[^ -~\n]")
_WIDE = 100  # columns of a terminal from which on the bar is long
_PIPE_WIDTH = 10_000  # where nobody's lines are cut


@dataclass(frozen=True)
class Answer:
    """What became of one picture.

    Attributes:
        picture: its name.
        ranked: (class, probability), best first; empty where it failed.
        error: why, or ``""``.
    """

    picture: str
    ranked: Ranking
    error: str = ""


class Writer(ABC):
    """Writes answers to a stream, each as soon as its format allows.

    Args:
        to: the stream.
    """

    def __init__(self, to: TextIO) -> None:
        self._to = to

    @abstractmethod
    def write(self, answer: Answer) -> None:
        """Take one answer."""

    def end(self) -> None:
        """Write what was kept back."""
        self._to.flush()


class JsonLines(Writer):
    """A line a picture: ``{"picture", "predictions": [{"class", "probability"}]}``, or ``"error"`` where it failed."""

    def write(self, answer: Answer) -> None:
        """Write its line at once."""
        self._to.write(_json(_document(answer)) + "\n")
        self._to.flush()


class Json(Writer):
    """One list of what :class:`JsonLines` writes."""

    def __init__(self, to: TextIO) -> None:
        super().__init__(to)
        self._documents: list[dict[str, Any]] = []

    def write(self, answer: Answer) -> None:
        """Keep it."""
        self._documents.append(_document(answer))

    def end(self) -> None:
        """Write the list; nothing where there was no answer at all."""
        if self._documents:
            self._to.write(_json(self._documents, indent=2) + "\n")
        super().end()


class Csv(Writer):
    """Rows of picture, rank (from 1), class and probability; pictures that failed have none."""

    def __init__(self, to: TextIO) -> None:
        super().__init__(to)
        self._writer = csv.writer(to, lineterminator="\n")
        self._begun = False
        # A file gets names as they are, but for what UTF-8 has no bytes for; a terminal what it can show.
        self._shown = one_line if to.isatty() else _encodable

    def write(self, answer: Answer) -> None:
        """Write its rows at once."""
        if not answer.ranked:
            return
        if not self._begun:
            self._writer.writerow(["picture", "rank", "class", "probability"])
            self._begun = True
        for rank, (name, probability) in enumerate(answer.ranked, start=1):
            self._writer.writerow(
                [self._shown(answer.picture), rank, self._shown(name), shortest(probability)]
            )
        self._to.flush()


class Table(Writer):
    """Picture, class, probability and a bar of its length; pictures that failed are left out."""

    def __init__(self, to: TextIO) -> None:
        super().__init__(to)
        self._answers: list[Answer] = []

    def write(self, answer: Answer) -> None:
        """Keep it: the columns' widths need all of them."""
        if answer.ranked:
            ranked = [(one_line(name), probability) for name, probability in answer.ranked]
            self._answers.append(Answer(one_line(answer.picture), ranked))

    def end(self) -> None:
        """Draw the table."""
        if self._answers:
            self._draw()
        super().end()

    def _draw(self) -> None:
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table as Drawing
        from rich.text import Text

        console = Console(file=self._to, markup=False, highlight=False)
        if not console.is_terminal:
            console.width = _PIPE_WIDTH
        bar = 24 if console.width >= _WIDE else 12
        block = "█" if (console.encoding or "").lower().startswith("utf") else "#"
        names = [name for answer in self._answers for name, _ in answer.ranked]
        class_width = min(max(map(cell_len, ("class", *names))), max(10, console.width // 4))
        # Thirteen columns are lines and the room beside them.
        room = max(12, console.width - 13 - class_width - len("probability") - bar)
        table = Drawing(header_style="bold")
        table.add_column("picture", no_wrap=True)
        table.add_column("class", overflow="fold", max_width=class_width)
        table.add_column("probability", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True, min_width=bar)
        for answer in self._answers:
            for rank, (name, probability) in enumerate(answer.ranked):
                best = rank == 0
                table.add_row(
                    Text(shorten(answer.picture, room) if best else ""),
                    Text(name, style="bold" if best else ""),
                    Text(f"{probability:.4f}"),
                    Text(block * _length(probability, bar), style="green" if best else "dim"),
                    end_section=rank == len(answer.ranked) - 1,
                )
        console.print(table)


WRITERS: dict[str, type[Writer]] = {"table": Table, "json": Json, "jsonl": JsonLines, "csv": Csv}
STREAMING = ("jsonl", "csv")


def shorten(path: str, width: int) -> str:
    """Return a path cut in its middle to ``width`` columns: its beginning, ``…``, and the file's whole name if it fits.

    Args:
        path: the path.
        width: columns, 3 or more; wide characters take two.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(path) <= width:
        return path
    name = path.rpartition("/")[2]
    tail = f"…/{name}" if name != path else name
    if cell_len(tail) <= width:
        return set_cell_size(path, width - cell_len(tail)).rstrip() + tail
    # The name alone is too long: its two ends tell more than its middle.
    end = _last_columns(name, (width - 1) // 2)
    return set_cell_size(name, width - 1 - cell_len(end)).rstrip() + "…" + end


def _last_columns(text: str, width: int) -> str:
    from rich.cells import cell_len

    while cell_len(text) > width:
        text = text[1:]
    return text


def shortest(value: float) -> float:
    """Return a float32 as the shortest decimal that is the same float32: gRPC's 0.10000000149011612 is 0.1.

    Args:
        value: any number; one that is no float32 is returned as it is.
    """
    if _single(value) != value:
        return value
    candidates = (float(f"{value:.{digits}g}") for digits in (6, 7, 8, 9))
    return next((short for short in candidates if _single(short) == value), value)


def _single(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return value


def _json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that does nothing to a terminal: what cannot be shown is escaped, as JSON can anywhere."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNUSUAL.sub(lambda found: _shown_in_json(found[0]), text)


def _shown_in_json(c: str) -> str:
    return c if c.isprintable() or category(c) == "Zs" else json.dumps(c)[1:-1]


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _document(answer: Answer) -> dict[str, Any]:
    if answer.error:
        return {"picture": answer.picture, "error": answer.error}
    rows = [{"class": name, "probability": shortest(score)} for name, score in answer.ranked]
    return {"picture": answer.picture, "predictions": rows}


def _length(probability: float, bar: int) -> int:
    return round(bar * probability) if 0 <= probability <= 1 else 0
