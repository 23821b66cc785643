"""Look at every picture before anything is trained on it: can Pillow and TensorFlow decode it?"""

import hashlib
import io
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from graftflow import near_duplicates
from graftflow.pictures import Picture, Unusable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")
HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
# Pillow's own limit: larger pictures are taken for files made to fill the memory.
MAXIMUM_PIXELS = 89_478_485
ORIENTATION = 0x0112
# Levels of 255 that the channels of a thumbnail may differ by where a picture has no colours.
COLOURLESS = 2
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a picture that can be used.

    Attributes:
        sha256: of the bytes as the source holds them, so that it does not depend on an encoder.
        width: of the stored picture, in pixels.
        height: of the stored picture, in pixels.
        format: of the source's bytes, e.g. ``"JPEG"``.
        converted: why the bytes were written anew, e.g. ``"EXIF orientation"``; ``""`` where they
            are the source's own.
        grey: it has no colours, whatever its mode.
        plain: it shows hardly more than one shade of grey.
        hash: of :func:`graftflow.near_duplicates.perceptual_hash`; -1 where the picture is too small
            or too plain to be compared with others.
    """

    sha256: str
    width: int
    height: int
    format: str
    converted: str
    grey: bool
    plain: bool
    hash: int


@dataclass(frozen=True, slots=True)
class Audited:
    """A picture that can be used.

    Attributes:
        path: as the picture's.
        label: as the picture's.
        facts: what is known of it.
        data: the bytes to store, a JPEG or PNG of 8 bits a channel, grey or RGB, upright.
        thumbnail: 1,024 grey bytes, or none where ``facts.hash`` is -1.
    """

    path: str
    label: str
    facts: Facts
    data: bytes
    thumbnail: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes as the source holds them."""
        return self.facts.sha256


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that cannot be used, and why; ``sha256`` of its bytes where they could be read."""

    path: str
    label: str
    reason: str
    sha256: str = ""


Found = TypeVar("Found")


def audit(pictures: Iterable[Picture]) -> Iterator[Audited | LeftOut]:
    """Audit pictures in a few threads, in the order given, holding only a handful at a time.

    Args:
        pictures: the pictures; each is read in its thread.

    Yields:
        One result for each picture.
    """
    for _, result in audit_or_recall(pictures, recall=_nothing):
        yield result


def audit_or_recall(
    pictures: Iterable[Picture], *, recall: Callable[[Picture, str], Found | None]
) -> Iterator[tuple[Picture, Audited | LeftOut | Found]]:
    """Audit pictures as :func:`audit` does, except those that an earlier run has audited.

    Args:
        pictures: the pictures; each is read in its thread.
        recall: returns what an earlier run found, or ``None``; asked with the stamp alone (``sha256``
            is ``""``) before the picture is read, and with the SHA-256 of its bytes after that.

    Yields:
        Each picture with its result.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="audit") as pool:
        waiting: deque[tuple[Picture, Future[Audited | LeftOut | Found]]] = deque()
        try:
            for picture in pictures:
                waiting.append((picture, pool.submit(_audit, picture, recall)))
                if len(waiting) >= 4 * THREADS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def audit_picture(picture: Picture) -> Audited | LeftOut:
    """Read, decode and, where needed, convert one picture; an unusable one is a result as well."""
    return _audit(picture, _nothing)


def _nothing(_picture: Picture, _sha256: str) -> LeftOut | None:
    return None


def _audit(picture: Picture, recall: Callable[[Picture, str], Found | None]) -> Audited | LeftOut | Found:
    if picture.stamp and (found := recall(picture, "")) is not None:
        return found
    sha256 = ""
    try:
        data = picture.read()
        sha256 = hashlib.sha256(data).hexdigest()
        if (found := recall(picture, sha256)) is not None:
            return found
        return _inspect(picture, data, sha256)
    except Unusable as reason:
        return LeftOut(picture.path, picture.label, str(reason), sha256)
    except OSError as error:
        reason_text = (error.strerror or str(error)).lower()
        return LeftOut(picture.path, picture.label, f"cannot be read: {reason_text}")


def _inspect(picture: Picture, data: bytes, sha256: str) -> Audited:
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
                    return _audited(picture, image, data, sha256, kind, "")
                converted = f"{kind} that TensorFlow cannot decode"
            upright = _plain(image)
        except Unusable:
            raise
        except Exception as error:  # as above
            raise _undecodable(error) from error
    file = io.BytesIO()
    upright.save(file, "PNG")
    return _audited(picture, upright, file.getvalue(), sha256, kind, converted)


def _audited(
    picture: Picture, image: Image.Image, data: bytes, sha256: str, kind: str, converted: str
) -> Audited:
    """Look at the thumbnail of an upright picture in mode RGB or L."""
    small = near_duplicates.thumbnail(image)
    channels = np.asarray(small.convert("RGB"))
    thumbnail = small.convert("L").tobytes()
    plain = near_duplicates.contrast(thumbnail) < near_duplicates.LEAST_CONTRAST
    comparable = not plain and min(image.size) >= near_duplicates.SMALLEST_SIDE
    facts = Facts(
        sha256=sha256,
        width=image.width,
        height=image.height,
        format=kind,
        converted=converted,
        grey=bool((channels.max(2) - channels.min(2)).max() <= COLOURLESS),
        plain=plain,
        hash=near_duplicates.perceptual_hash(thumbnail) if comparable else -1,
    )
    return Audited(picture.path, picture.label, facts, data, thumbnail if comparable else b"")


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
