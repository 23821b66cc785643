"""Look at every picture before anything is trained on it: can Pillow and TensorFlow decode it?"""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from graftflow import near_duplicates
from graftflow.encodings import Encoding, encode
from graftflow.pictures import Picture, Unusable

# Levels of 255 that the channels of a thumbnail may differ by where a picture has no colours.
COLOURLESS = 2
# Rows of each finding in audit.json; the count goes on.
MOST_ROWS = 1000
THREADS = min(4, os.cpu_count() or 1)
_TRACING = threading.Lock()
_TRACING_ENDED: list[Exception] = []


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a picture that can be used.

    Attributes:
        sha256: of the bytes as the source holds them, so that it does not depend on an encoder.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        format: of the source's bytes, e.g. ``"JPEG"``.
        converted: why the bytes were written anew, e.g. ``"palette"``; ``""`` where they
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
        data: the bytes to store, a JPEG or PNG of 8 bits a channel, grey or RGB: of
            :func:`graftflow.encodings.as_stored`, unless TensorFlow cannot decode these.
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
    found = encode(data)
    if not found.converted and not _decodes_in_tensorflow(found):
        found = encode(data, reason=f"{found.format} that TensorFlow cannot decode")
    return _audited(picture, found, sha256)


def _audited(picture: Picture, found: Encoding, sha256: str) -> Audited:
    """Look at the thumbnail of a picture."""
    small = near_duplicates.thumbnail(found.image)
    channels = np.asarray(small.convert("RGB"))
    thumbnail = small.convert("L").tobytes()
    plain = near_duplicates.contrast(thumbnail) < near_duplicates.LEAST_CONTRAST
    comparable = not plain and min(found.image.size) >= near_duplicates.SMALLEST_SIDE
    facts = Facts(
        sha256=sha256,
        width=found.image.width,
        height=found.image.height,
        format=found.format,
        converted=found.converted,
        grey=bool((channels.max(2) - channels.min(2)).max() <= COLOURLESS),
        plain=plain,
        hash=near_duplicates.perceptual_hash(thumbnail) if comparable else -1,
    )
    return Audited(picture.path, picture.label, facts, found.data, thumbnail if comparable else b"")


def _trace(function: Any) -> None:
    """Trace ``function`` before any thread makes a tensor: TensorFlow counts both, and names functions by the count.

    Where memory ended while TensorFlow traced, it keeps its lock, and another try would wait for ever.
    """
    with _TRACING:
        if _TRACING_ENDED:
            raise _TRACING_ENDED[0]
        try:
            function.get_concrete_function()
        except Exception as error:
            _TRACING_ENDED.append(error)
            raise


def _decodes_in_tensorflow(found: Encoding) -> bool:
    import tensorflow as tf

    from graftflow.preprocessing import read_pixels

    _trace(read_pixels)
    try:
        pixels = read_pixels(tf.constant(found.data))
    except tf.errors.OpError:
        return False
    return bool(tuple(pixels.shape) == (found.image.height, found.image.width, 3))
