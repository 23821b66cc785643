"""Pictures of every kind that a client may send, and EXIF blocks made byte by byte; shared by several tests."""

import io
import struct
import zlib
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from graftflow.embedded import open_closeups
from tests.unit.pictures_on_disk import encode

CLASSES = ("brick", "coffee", "rocket")
COUNT = 100
CORRUPT = "brick/corrupt.jpg"
ORDERS = {"little": "<", "big": ">"}


def exif_block(
    orientation: int, order: str = "<", *, before: bytes = b"", kind: int = 3, values: int = 1
) -> bytes:
    """A TIFF block whose first directory holds, after 12-byte entries ``before``, an orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHLHH", 0x0112, kind, values, orientation, 0)
    count = struct.pack(f"{order}H", len(before) // 12 + 1)
    return mark + struct.pack(f"{order}L", 8) + count + before + entry + bytes(4)


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">HH", marker, len(payload) + 2) + payload


def with_exif(jpeg: bytes, block: bytes, *, jfif: bool = True) -> bytes:
    """Put an EXIF block into a JPEG of Pillow's, behind its JFIF segment or in its place."""
    size = 2 + int.from_bytes(jpeg[4:6])
    start = jpeg[: 2 + size] if jfif else jpeg[:2]
    return start + segment(0xFFE1, b"Exif\0\0" + block) + jpeg[2 + size :]


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, data: bytes = bytes(1000), *, bits: int = 8) -> bytes:
    """An RGB PNG of this size with these bytes before compression, whatever they are."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")


def rgb_of_16_bits(image: Image.Image) -> bytes:
    deep = np.asarray(image.convert("RGB")).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    return png_claiming(image.width, image.height, rows, bits=16)


def grey_of_16_bits(image: Image.Image) -> bytes:
    return encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


def see_through(image: Image.Image) -> bytes:
    layer = image.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(image.size))
    return encode(layer, "PNG")


def turned_png(image: Image.Image) -> bytes:
    return encode(image, "PNG", exif=b"Exif\0\0" + exif_block(6))


def turned_by_xmp(image: Image.Image) -> bytes:
    return encode(image, "JPEG", quality=92, xmp=xmp(8))


def turned_jpeg(orientation: int, order: str) -> Callable[[Image.Image], bytes]:
    def make(image: Image.Image) -> bytes:
        return with_exif(encode(image, "JPEG", quality=92), exif_block(orientation, order), jfif=order == "<")

    return make


def commented_png(image: Image.Image) -> bytes:
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "a tile")
    return encode(image, "PNG", pnginfo=about)


# How many of each kind, its suffix and its maker; the first five and the rotated ones keep their bytes.
KINDS: dict[str, tuple[int, str, Callable[[Image.Image], bytes]]] = {
    "jpeg": (16, "jpg", lambda image: encode(image, "JPEG", quality=92)),
    "progressive": (4, "jpg", lambda image: encode(image, "JPEG", progressive=True)),
    "png": (8, "png", commented_png),
    "grey-jpeg": (8, "jpg", lambda image: encode(image.convert("L"), "JPEG")),
    "grey-png": (6, "png", lambda image: encode(image.convert("L"), "PNG")),
    **{
        f"rotated-{orientation}-{name}": (1, "jpg", turned_jpeg(orientation, order))
        for orientation in range(1, 9)
        for name, order in ORDERS.items()
    },
    "webp": (8, "webp", lambda image: encode(image, "WEBP", quality=90)),
    "deep-grey": (3, "png", grey_of_16_bits),
    "deep-rgb": (4, "png", rgb_of_16_bits),
    "palette": (7, "png", lambda image: encode(image.quantize(64), "PNG")),
    "alpha": (7, "png", see_through),
    "cmyk": (6, "jpg", lambda image: encode(image.convert("CMYK"), "JPEG", quality=92)),
    "tiff": (2, "tiff", lambda image: encode(image, "TIFF")),
    "turned-png": (3, "png", turned_png),
    "turned-by-xmp": (2, "jpg", turned_by_xmp),
}
KEPT = ("jpeg", "progressive", "png", "grey-jpeg", "grey-png", "rotated-")


def mixed_pictures() -> dict[str, bytes]:
    """100 pictures by ``class/kind-number.suffix``: tiles of photographs, 64 by 48 pixels as encoded, each once.

    Three classes have 33 or 34 each, and every kind stands in all of them where there are three of it.
    """
    tiles: dict[str, list[bytes]] = {name: [] for name in CLASSES}
    for picture in open_closeups().pictures:
        if picture.label in tiles:
            tiles[picture.label].append(picture.read())
    found = {}
    turns = cycle(CLASSES)
    for kind, (count, suffix, make) in KINDS.items():
        for number in range(count):
            label = next(turns)
            with Image.open(io.BytesIO(tiles[label].pop(0))) as tile:
                image = tile.convert("RGB").crop((0, 8, 64, 56))
            found[f"{label}/{kind}-{number}.{suffix}"] = make(image)
    return found


def write_mixed_pictures(folder: Path) -> Path:
    """Write :func:`mixed_pictures` and one corrupt JPEG (``CORRUPT``) into a folder a class; returns the folder."""
    pictures = mixed_pictures()
    whole = next(iter(pictures.values()))
    for name, data in {**pictures, CORRUPT: whole[: len(whole) // 2]}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
