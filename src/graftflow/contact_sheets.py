"""A contact sheet, one row a class: wrong labels and wrong pictures are seen before training."""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

ROWS = 24
COLUMNS = 10
CELL = 108
GAP = 8
MARGIN = 28
LABEL_WIDTH = 170
BACKGROUND = "#f6f5f2"
INK = "#22252a"
FAINT = "#8a8f98"

Row = tuple[str, str, Sequence[bytes]]


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


def _thumbnail(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.fit(image.convert("RGB"), (CELL, CELL), Image.Resampling.BICUBIC)


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
