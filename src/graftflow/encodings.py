"""The bytes of a picture as a data set holds them and as a client should send them: the same, so that answers agree.

TensorFlow decodes only some formats, and drops what it does not know: transparency, 16 bits, how a PNG is turned. Such
pictures are written anew as an upright PNG of 8 bits; a JPEG that is turned by EXIF keeps its bytes, because the
exported model turns it as well (:mod:`graftflow.preprocessing`). Needs Pillow and no TensorFlow.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from graftflow.pictures import Unusable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")
HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
# Pillow's own limit: larger pictures are taken for files made to fill the memory.
MAXIMUM_PIXELS = 89_478_485
# The most that JPEG has room for. Resizing needs memory for the whole width of each row of the result.
MAXIMUM_SIDE = 65_535
ORIENTATION = 0x0112
# Segments of a JPEG that are searched for EXIF: a file of millions of empty ones shall not take minutes.
MOST_SEGMENTS = 100
# Bytes of one value, by its TIFF type (TIFF 6.0, section 2; BigTIFF has the last); 0: no such type.
EXIF_VALUE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """A picture that was decoded.

    Attributes:
        image: upright, in mode RGB or L: what ``data`` shows.
        data: the bytes to store or to send: a JPEG or PNG of 8 bits a channel.
        format: of the original bytes, e.g. ``"JPEG"``.
        converted: why they were written anew, e.g. ``"palette"``; ``""`` where ``data`` are the original bytes.
    """

    image: Image.Image
    data: bytes
    format: str
    converted: str


def as_stored(data: bytes) -> bytes:
    """Return a picture's bytes as ``download_data`` stores them, so that the answer is that of the evaluation.

    Args:
        data: an encoded picture: JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM.

    Returns:
        The same bytes where they can stay: an ordinary JPEG, turned by EXIF or not, or an ordinary PNG. Else an
        upright PNG, transparent parts on white.

    Raises:
        Unusable: the bytes are no picture, broken, or of more than 89,478,485 pixels or 65,535 a side.
    """
    return encode(data).data


def encode(data: bytes, *, reason: str = "") -> Encoding:
    """Decode a picture and, where needed, write it anew.

    Args:
        data: as for :func:`as_stored`.
        reason: why the bytes cannot stay even if nothing is unusual about them; ``""`` where they can.

    Raises:
        Unusable: as :func:`as_stored`.
    """
    if not data:
        raise Unusable("is an empty file")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large() from error
    except UnidentifiedImageError as error:
        if data.startswith(HEADS):
            raise Unusable("has a broken header") from error
        raise Unusable("is no JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM picture") from error
    except Exception as error:  # Pillow's readers raise whatever a broken header leads to
        raise _undecodable(error) from error
    with image:
        # An MPO, from a stereo camera, is a JPEG with further pictures behind it.
        kind = "JPEG" if image.format == "MPO" else (image.format or "")
        if image.width == 0 or image.height == 0:
            raise Unusable(f"has no pixels ({image.width} by {image.height})")
        if image.width * image.height > MAXIMUM_PIXELS:
            raise _too_large()
        if max(image.size) > MAXIMUM_SIDE:
            raise Unusable(f"has a side of more than {MAXIMUM_SIDE:,} pixels")
        try:
            image.load()
            converted = _conversion(image, kind, data) or reason
            if not converted:
                return Encoding(upright(image), data, kind, "")
            plain = _plain(image)
        except Unusable:
            raise
        except Exception as error:  # as above
            raise _undecodable(error) from error
    file = io.BytesIO()
    plain.save(file, "PNG")
    return Encoding(plain, file.getvalue(), kind, converted)


def upright(image: Image.Image) -> Image.Image:
    """Return an opened picture turned as its EXIF or XMP says, or the picture itself where these say nothing valid.

    A picture that was turned has neither EXIF nor XMP, so that nothing turns it twice.
    """
    turn = _TURNS.get(_orientation(image))
    image.load()
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        turned.info.pop(name, None)
    return turned


def jpeg_orientation(data: bytes) -> int:
    """Return how the exported model turns a JPEG: its EXIF orientation, 1 to 8.

    At most 100 segments are walked, up to the first that is neither APPn nor a comment. The first ``Exif`` block
    counts, of that the first directory and its first tag 0x0112, which must be one short. Whatever is malformed means
    1: a block that is cut off, another type, or a value up to the tag that would lie outside of the block (Exif 3.0,
    section 4.5; TIFF 6.0, section 2).

    Args:
        data: the bytes of a JPEG.
    """
    at = 2
    for _ in range(MOST_SEGMENTS):
        if at + 4 > len(data):
            return 1
        marker, size = struct.unpack_from(">HH", data, at)
        after = at + 2 + size
        if size < 2 or after > len(data) or not (marker >> 4 == 0xFFE or marker == 0xFFFE):
            return 1
        if marker == 0xFFE1 and data[at + 4 : after].startswith(b"Exif\0\0"):
            return _tiff_orientation(data[at + 10 : after])
        at = after
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4], "")
    if not order or len(tiff) < 8:
        return 1
    (directory,) = struct.unpack_from(f"{order}L", tiff, 4)
    if directory < 8 or directory + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, directory)
    for at in range(directory + 2, min(directory + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, values, place = struct.unpack_from(f"{order}HHLL", tiff, at)
        taken = values * (EXIF_VALUE_BYTES[kind] if kind < len(EXIF_VALUE_BYTES) else 0)
        if taken > 4 and place + taken > len(tiff):
            return 1
        if tag == ORIENTATION:
            (value,) = struct.unpack_from(f"{order}H", tiff, at + 8)
            return int(value) if (kind, values) == (3, 1) and 1 <= value <= 8 else 1
    return 1


def _orientation(image: Image.Image) -> int:
    """Return the orientation that Pillow finds, of EXIF or, without that, of XMP."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's readers raise whatever malformed EXIF leads to
        return 1
    return int(value) if value in _TURNS else 1


def _conversion(image: Image.Image, kind: str, data: bytes) -> str:
    """Return why a picture must be written anew, or ``""`` where its bytes can stay."""
    if kind not in ("JPEG", "PNG"):
        return kind
    # What the model turns by itself may stay: not a PNG, nor what is told by XMP alone.
    if _orientation(image) != (jpeg_orientation(data) if kind == "JPEG" else 1):
        return "EXIF orientation"
    if image.has_transparency_data:
        return "transparency"
    if image.mode == "P":
        return "palette"
    if kind == "PNG":
        # Byte 24 of a PNG is the bits of a channel; Pillow hides 16 bits behind mode RGB.
        bits = struct.unpack_from("B", data, 24)[0]
        if bits == 16:
            return "16 bits"
        if getattr(image, "is_animated", False):
            return "animation"
        if bits != 8:
            return f"{bits} bit{'s' if bits > 1 else ''}"
    return "" if image.mode in ("RGB", "L") else image.mode


def _plain(image: Image.Image) -> Image.Image:
    """Return an upright picture in mode RGB: transparent parts on white, 16 bits as 8."""
    turned = upright(image)
    if turned.mode.startswith("I"):
        values = np.asarray(turned)
        if values.min() < 0 or values.max() > 65_535:
            raise Unusable("has more than 16 bits a channel, so that white is not known")
        turned = Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8))
    elif turned.mode == "F":
        raise Unusable("has floating-point pixels, so that white is not known")
    if turned.has_transparency_data:
        layer = turned.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return turned.convert("RGB")


def _too_large() -> Unusable:
    return Unusable(f"has more than {MAXIMUM_PIXELS:,} pixels")


def _undecodable(error: Exception) -> Unusable:
    if "truncated" in str(error).lower():
        return Unusable("is truncated")
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return Unusable(f"cannot be decoded: {text}")
