"""Look at every picture before anything is trained on it: can Pillow and TensorFlow decode it?"""

import hashlib
import io
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from graftflow.pictures import Picture, Unusable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")
HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
# Pillow's own limit: larger pictures are taken for files made to fill the memory.
MAXIMUM_PIXELS = 89_478_485
ORIENTATION = 0x0112
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Audited:
    """A picture that can be used.

    Attributes:
        path: ``class/file``.
        label: name of the class.
        sha256: of the bytes as the source holds them, so that it does not depend on an encoder.
        data: the bytes to store, a JPEG or PNG of 8 bits a channel, grey or RGB, upright.
        width: of the stored picture, in pixels.
        height: of the stored picture, in pixels.
        format: of the source's bytes, e.g. ``"JPEG"``.
        converted: why the bytes were written anew, e.g. ``"EXIF orientation"``; ``""`` where they
            are the source's own.
    """

    path: str
    label: str
    sha256: str
    data: bytes
    width: int
    height: int
    format: str
    converted: str


@dataclass(frozen=True)
class LeftOut:
    """A picture that cannot be used, and why."""

    path: str
    label: str
    reason: str


def audit(pictures: Iterable[Picture]) -> Iterator[Audited | LeftOut]:
    """Audit pictures in a few threads, in the order given, holding only a handful at a time.

    Args:
        pictures: the pictures; each is read in its thread.

    Yields:
        One result for each picture.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="audit") as pool:
        waiting: deque[Future[Audited | LeftOut]] = deque()
        try:
            for picture in pictures:
                waiting.append(pool.submit(audit_picture, picture))
                if len(waiting) >= 4 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def audit_picture(picture: Picture) -> Audited | LeftOut:
    """Read, decode and, where needed, convert one picture; an unusable one is a result as well."""
    try:
        data = picture.read()
        stored, width, height, kind, converted = _inspect(data)
    except Unusable as reason:
        return LeftOut(picture.path, picture.label, str(reason))
    except OSError as error:
        reason_text = (error.strerror or str(error)).lower()
        return LeftOut(picture.path, picture.label, f"cannot be read: {reason_text}")
    sha256 = hashlib.sha256(data).hexdigest()
    return Audited(picture.path, picture.label, sha256, stored, width, height, kind, converted)


def _inspect(data: bytes) -> tuple[bytes, int, int, str, str]:
    if not data:
        raise Unusable("is an empty file")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
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
        try:
            image.load()
            converted = _conversion(image, kind, data)
            if not converted:
                if _decodes_in_tensorflow(data, image.height, image.width):
                    return data, image.width, image.height, kind, ""
                converted = f"{kind} that TensorFlow cannot decode"
            upright = _plain(image)
        except Unusable:
            raise
        except Exception as error:  # as above
            raise _undecodable(error) from error
    file = io.BytesIO()
    upright.save(file, "PNG")
    return file.getvalue(), upright.width, upright.height, kind, converted


def _conversion(image: Image.Image, kind: str, data: bytes) -> str:
    """Return why a picture must be written anew, or ``""`` where its bytes can stay."""
    if kind not in ("JPEG", "PNG"):
        return kind
    if image.getexif().get(ORIENTATION, 1) not in (0, 1):
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
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > 65_535:
            raise Unusable("has more than 16 bits a channel, so that white is not known")
        upright = Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8))
    elif upright.mode == "F":
        raise Unusable("has floating-point pixels, so that white is not known")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def _decodes_in_tensorflow(data: bytes, height: int, width: int) -> bool:
    import tensorflow as tf

    try:
        pixels: Any = tf.io.decode_image(data, channels=3, expand_animations=False)
    except tf.errors.OpError:
        return False
    return bool(tuple(pixels.shape) == (height, width, 3))


def _too_large() -> Unusable:
    return Unusable(f"has more than {MAXIMUM_PIXELS:,} pixels")


def _undecodable(error: Exception) -> Unusable:
    if "truncated" in str(error).lower():
        return Unusable("is truncated")
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return Unusable(f"cannot be decoded: {text}")
