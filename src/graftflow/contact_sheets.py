"""Sheets of pictures: a row a class, and pairs side by side; what is wrong with a data set is seen before training."""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image, ImageDraw, ImageFont, ImageOps

from graftflow.encodings import upright

ROWS = 24
COLUMNS = 10
CELL = 108
GAP = 8
MARGIN = 28
LABEL_WIDTH = 170
BACKGROUND = "#f6f5f2"
INK = "#22252a"
FAINT = "#8a8f98"
ALERT = "#a5311f"
PAD = "#e9e6df"

PAIRS = 12
PAIR_COLUMNS = 3

Row = tuple[str, str, Sequence[bytes]]
# A remark, and the name and the encoded bytes of either picture.
Couple = tuple[str, Sequence[tuple[str, bytes]]]
Item = TypeVar("Item")


class _Likeness(Protocol):
    @property
    def conflicting(self) -> bool: ...

    @property
    def correlation(self) -> float: ...


AnyLikeness = TypeVar("AnyLikeness", bound=_Likeness)


def shown_classes(classes: Sequence[str]) -> tuple[list[str], str]:
    """Return the classes that a contact sheet shows, and a line about those that it does not."""
    shown = spread(classes, ROWS)
    hidden = len(classes) - len(shown)
    return shown, f"{hidden} more classes are not shown" if hidden else ""


def shown_pairs(pairs: Sequence[AnyLikeness]) -> list[AnyLikeness]:
    """Return at most 12 pairs: of two classes first, then the least alike, which are the ones to doubt."""
    return sorted(pairs, key=lambda pair: (not pair.conflicting, pair.correlation))[:PAIRS]


def spread(items: Sequence[Item], count: int = COLUMNS) -> list[Item]:
    """Return ``count`` items at even distances, or all where there are no more."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def draw_contact_sheet(rows: Sequence[Row], *, heading: str, more: str = "") -> Image.Image:
    """Draw a grid of pictures.

    Args:
        rows: for each class its name, a line of small print and up to 10 encoded pictures; each is
            cropped to a square.
        heading: one line above the grid.
        more: one line below it, e.g. how many classes are not shown.

    Returns:
        An RGB picture, 1,378 pixels wide.
    """
    width = 2 * MARGIN + LABEL_WIDTH + COLUMNS * (CELL + GAP) - GAP
    top, bottom = MARGIN + 40, MARGIN + (24 if more else 0)
    height = top + len(rows) * (CELL + GAP) - GAP + bottom
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), heading, INK, _font(20, bold=True))
    for i, (name, small, pictures) in enumerate(rows):
        y = top + i * (CELL + GAP)
        room = LABEL_WIDTH - 16
        lines = _wrap(name, _font(17), room)
        first = y + CELL // 2 - (len(lines) * 22 + 18) // 2
        for j, line in enumerate(lines):
            pen.text((MARGIN, first + j * 22), line, INK, _font(17))
        pen.text((MARGIN, first + len(lines) * 22 + 2), small, FAINT, _font(13))
        for j, data in enumerate(pictures[:COLUMNS]):
            x = MARGIN + LABEL_WIDTH + j * (CELL + GAP)
            sheet.paste(_thumbnail(data), (x, y))
    if more:
        pen.text((MARGIN, height - MARGIN - 4), more, FAINT, _font(15))
    return sheet


def draw_pairs(pairs: Sequence[Couple], *, heading: str) -> Image.Image:
    """Draw pairs of pictures side by side, their names below them, whole pictures and not cropped.

    Args:
        pairs: one at least; of each a remark, e.g. ``"mirrored"``, and name and encoded bytes of either picture.
        heading: one line above them.

    Returns:
        An RGB picture, 1,378 pixels wide or less.
    """
    columns = min(PAIR_COLUMNS, len(pairs))
    cell, text = 200, 66
    wide, high = 2 * cell + GAP, cell + text
    between = 30
    width = max(2 * MARGIN + columns * (wide + between) - between, 640)
    top = MARGIN + 40
    height = top + -(-len(pairs) // columns) * (high + GAP) - GAP + MARGIN // 2
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), heading, INK, _font(20, bold=True))
    for i, (remark, pictures) in enumerate(pairs):
        left, y = MARGIN + i % columns * (wide + between), top + i // columns * (high + GAP)
        for j, (name, data) in enumerate(pictures):
            x = left + j * (cell + GAP)
            sheet.paste(_whole(data, cell), (x, y))
            for k, line in enumerate(_wrap(name, _font(13), cell)[:2]):
                pen.text((x, y + cell + 5 + 16 * k), line, INK, _font(13))
        pen.text((left, y + cell + 40), remark, ALERT, _font(13))
    return sheet


def _whole(data: bytes, side: int) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (side, side))
        return ImageOps.pad(upright(image).convert("RGB"), (side, side), Image.Resampling.BICUBIC, color=PAD)


def _thumbnail(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.fit(upright(image).convert("RGB"), (CELL, CELL), Image.Resampling.BICUBIC)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return matplotlib's DejaVu, which knows Greek and Cyrillic, or else Pillow's own font."""
    spec = find_spec("matplotlib")
    if spec is not None and spec.submodule_search_locations:
        fonts = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
        file = fonts / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> list[str]:
    """Break a name into at most three lines of ``room`` pixels, cut with … where it is longer."""
    lines = [""]
    for letter in " ".join(text.split()):
        if font.getlength(lines[-1] + letter) > room:
            cut = max(lines[-1].rfind(mark) for mark in " _-/") + 1
            rest = lines[-1][cut:] if cut else ""
            lines[-1] = lines[-1][:cut] if cut else lines[-1]
            lines.append(rest)
        lines[-1] += letter
    if len(lines) > 3:
        lines = [*lines[:2], lines[2][:-1] + "…"]
    return [line.strip() for line in lines]
