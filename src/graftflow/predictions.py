"""Predictions of pictures in memory: in batches, and as a server would see them, through a PNG."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from graftflow import attacks, preprocessing

_BATCH = 32

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
    starts = range(0, len(arrays[0]), _BATCH)
    parts = [function(*(array[start : start + _BATCH] for array in arrays)) for start in starts]
    return np.concatenate([np.asarray(part) for part in parts])


def as_png(pixels: Array) -> list[bytes]:
    """Encode pictures ``float32 (n, s, s, 3)`` in [0, 1] as PNG files, each channel rounded to 8 bits."""
    levels = np.round(np.asarray(pixels) * 255).astype(np.uint8)
    return [tf.io.encode_png(picture, compression=1).numpy() for picture in levels]


def through_png(pixels: Array, size: int | None = None) -> Array:
    """Return what a server decodes from the pictures' PNG files.

    Args:
        pixels: ``float32 (n, s, s, 3)`` in [0, 1].
        size: side of the server's input; by default s.

    Returns:
        ``float32 (n, size, size, 3)`` in [0, 1].
    """
    return decode(as_png(pixels), size or int(pixels.shape[1]))


def decode(pictures: Sequence[bytes], size: int) -> Array:
    """Decode picture files as a server does, ``float32 (n, size, size, 3)`` in [0, 1]."""
    return np.asarray(_decode(tf.constant(list(pictures)), size))


# Eagerly its map would decode one picture at a time.
@tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
def _decode(pictures: tf.Tensor, size: int) -> tf.Tensor:
    return preprocessing.decode_batch(pictures, size)
