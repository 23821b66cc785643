"""Ten thousand pictures that are broken, or lie: small crops of photographs, encoded in many ways, then changed."""

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.mixed_pictures import exif_block, see_through, with_exif
from tests.unit.pictures_on_disk import encode

WIDTH, HEIGHT = 64, 48
_PHOTO = (160, 120)

# Suffix and maker of each kind of picture.
KINDS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "JPEG": ("jpg", lambda image: encode(image, "JPEG", quality=90)),
    "JPEG, progressive": ("jpg", lambda image: encode(image, "JPEG", progressive=True)),
    "JPEG, restarts": ("jpg", lambda image: encode(image, "JPEG", restart_marker_blocks=4)),
    "JPEG, grey": ("jpg", lambda image: encode(image.convert("L"), "JPEG")),
    "JPEG, CMYK": ("jpg", lambda image: encode(image.convert("CMYK"), "JPEG")),
    "JPEG, EXIF": ("jpg", lambda image: with_exif(encode(image, "JPEG"), exif_block(6))),
    "PNG": ("png", lambda image: encode(image, "PNG")),
    "PNG, palette": ("png", lambda image: encode(image.quantize(64), "PNG")),
    "PNG, alpha": ("png", see_through),
    "GIF": ("gif", lambda image: encode(image, "GIF")),
    "BMP": ("bmp", lambda image: encode(image, "BMP")),
    "WebP": ("webp", lambda image: encode(image, "WEBP")),
    "TIFF": ("tif", lambda image: encode(image, "TIFF", compression="tiff_lzw")),
}
# Where each format says how large it is: offset and form of one number.
_SIZES = {
    "PNG": [(16, ">I"), (20, ">I"), (24, "B"), (25, "B"), (8, ">I")],
    "GIF": [(6, "<H"), (8, "<H"), (10, "B")],
    "BMP": [(2, "<I"), (10, "<I"), (14, "<I"), (18, "<i"), (22, "<i"), (28, "<H"), (30, "<I"), (34, "<I")],
    "WebP": [(4, "<I"), (16, "<I"), (26, "<H"), (28, "<H")],
    "TIFF": [(4, "<I")],
}
_LIES = (0, 1, 2, 7, 47, 49, 63, 65, 255, 256, 4097, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def photographs(folder: Path | None) -> list[Image.Image]:
    """Return photographs at 160 by 120 pixels: of the folder, or those inside scikit-image."""
    if folder is None:
        from graftflow.embedded import open_closeups

        files = [picture.read() for picture in open_closeups().pictures]
    else:
        files = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    found = []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            found.append(image.convert("RGB").resize(_PHOTO))
    return found


def hostile_pictures(photos: list[Image.Image], count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield kind, suffix and bytes of pictures; one in twenty is left as it was."""
    rng = np.random.default_rng(seed)
    names = list(KINDS)
    former = b""
    for number in range(count):
        kind = names[number % len(names)]
        suffix, make = KINDS[kind]
        left, top = int(rng.integers(0, 65)), int(rng.integers(0, 49))
        crop = photos[int(rng.integers(len(photos)))].crop((left, top, left + 96, top + 72))
        with warnings.catch_warnings(action="ignore"):
            data = make(crop.resize((WIDTH, HEIGHT)))
        changed = data if rng.random() < 0.05 else _changed(kind, data, former, rng)
        former = data
        yield kind, suffix, changed


def _changed(kind: str, data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.choice((1, 1, 1, 2, 4)))):
        # Headers are where a change does most.
        end = min(len(out), 200) if rng.random() < 0.5 else len(out)
        at = int(rng.integers(0, end)) if end else 0
        size = int(rng.integers(1, 65))
        match int(rng.integers(0, 11)):
            case 0 | 1:
                if out:
                    out[at] ^= 1 << int(rng.integers(8))
            case 2:
                out[at : at + 1] = rng.bytes(1)
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = rng.bytes(size)
            case 5:
                out[at:at] = out[at : at + size]
            case 6:
                del out[max(at, 1) :]
            case 7:  # a piece of another picture
                start = int(rng.integers(0, max(1, len(other))))
                out[at : at + size] = other[start : start + size]
            case 8 | 9:
                _lie(kind.partition(",")[0], out, rng)
            case 10:
                out = bytearray(_with_lying_exif(bytes(out), rng))
    return bytes(out)


def _lie(kind: str, out: bytearray, rng: np.random.Generator) -> None:
    places = _SIZES.get(kind) or [
        (at + offset, form)
        for at in range(len(out) - 9)
        if out[at] == 0xFF and out[at + 1] in (0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0)
        for offset, form in ((2, ">H"), (5, ">H"), (7, ">H"), (9, "B"))
    ]
    if not places:
        return
    at, form = places[int(rng.integers(len(places)))]
    width = struct.calcsize(form)
    number = int(rng.choice(_LIES)) % 256**width
    if at + width <= len(out):
        out[at : at + width] = struct.pack(form.upper(), number)


def _with_lying_exif(data: bytes, rng: np.random.Generator) -> bytes:
    if not data.startswith(b"\xff\xd8") or len(data) < 8:
        return data
    block = bytearray(
        exif_block(int(rng.integers(0, 12)), "<>"[int(rng.integers(2))], kind=int(rng.integers(0, 14)))
    )
    block[int(rng.integers(len(block)))] = int(rng.integers(256))
    return with_exif(data, bytes(block))
