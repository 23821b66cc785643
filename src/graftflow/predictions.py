"""Predictions of pictures in memory: in batches, and as a server would see them, through a PNG."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from graftflow import attacks, preprocessing

# Pictures at work at once: what is held of all others are their levels.
BATCH = 32

Array = np.ndarray[Any, Any]


def predict(logits_of: Any, pixels: Array) -> Array:
    """Return probabilities.

    Args:
        logits_of: from pixels to logits, see :mod:`graftflow.attacks`.
        pixels: ``float32 (n, s, s, 3)`` in [0, 1].

    Returns:
        ``float32 (n, k)``.
    """
    logits = in_batches(partial(attacks.predict_logits, logits_of), pixels)
    return np.asarray(tf.nn.softmax(logits))


def in_batches(function: Callable[..., Any], *arrays: Array) -> Array:
    """Apply ``function`` to the arrays' batches of at most 32 pictures and join what it returns."""
    parts = [function(*some) for some in zip(*map(batches, arrays), strict=True)]
    return np.concatenate([np.asarray(part) for part in parts])


def batches(array: Array) -> Iterator[Array]:
    """Return an array's batches of at most 32 rows."""
    return (array[start : start + BATCH] for start in range(0, len(array), BATCH))


def as_png(pixels: Array, compression: int = 1) -> list[bytes]:
    """Encode pictures ``float32 (n, s, s, 3)`` in [0, 1] as PNG files, each channel rounded to 8 bits."""
    levels = np.round(np.asarray(pixels) * 255).astype(np.uint8)
    return [tf.io.encode_png(picture, compression=compression).numpy() for picture in levels]


def through_png(pixels: Array, size: int | None = None) -> Array:
    """Return what a server decodes from the pictures' PNG files.

    Args:
        pixels: ``float32 (n, s, s, 3)`` in [0, 1].
        size: side of the server's input; by default s.

    Returns:
        ``float32 (n, size, size, 3)`` in [0, 1].
    """
    # Nobody keeps these files: packing them took longer than a pass through the network.
    return decode(as_png(pixels, compression=0), size or int(pixels.shape[1]))


def decode(pictures: Sequence[bytes], size: int) -> Array:
    """Decode picture files as a server does, ``float32 (n, size, size, 3)`` in [0, 1]."""
    return np.asarray(_decode(tf.constant(list(pictures)), size))


# Eagerly its map would decode one picture at a time.
@tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
def _decode(pictures: tf.Tensor, size: int) -> tf.Tensor:
    return preprocessing.decode_batch(pictures, size)
