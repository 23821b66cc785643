"""Pictures of the ``visuals`` artifact: read from the data set by their paths, written as small JPEGs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from graftflow import datasets, preprocessing
from graftflow.errors import InputError

JPEG_BYTES = 60_000

Array = np.ndarray[Any, Any]


def save_jpeg(path: str | Path, pixels: Array) -> None:
    """Write pixels ``float (h, w, 3)`` in [0, 1] with the best quality that stays under 60 kB."""
    picture = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    for quality in (92, 85, 75, 60, 40):
        picture.save(path, quality=quality, optimize=True)
        if Path(path).stat().st_size <= JPEG_BYTES:
            return


def read_by_path(dataset_path: str | Path, split: str, wanted: Iterable[str]) -> dict[str, tf.Tensor]:
    """Return the encoded pictures of a split that have the wanted paths.

    Args:
        dataset_path: a ``dataset`` artifact.
        split: ``train``, ``validation`` or ``test``.
        wanted: paths as the data set has them, ``class/file``.

    Returns:
        Path → scalar string.

    Raises:
        InputError: the split has no picture of a wanted path.
    """
    left = set(wanted)
    found: dict[str, tf.Tensor] = {}
    if left:
        for record in datasets.read_split(dataset_path, split).prefetch(64):
            path = record["path"].numpy().decode()
            if path in left:
                left.remove(path)
                found[path] = record["image"]
            if not left:
                break
    if left:
        raise InputError(
            f"The {split} split must hold the pictures that other artifacts name. Missing: '{min(left)}' in "
            f"'{dataset_path}'."
        )
    return found


def save_thumbnail(path: str | Path, image: tf.Tensor, side: int) -> None:
    """Write an encoded picture as a JPEG of at most ``side`` pixels each way, its shape kept."""
    picture = Image.fromarray(preprocessing.read_pixels(image).numpy())
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    picture.save(path, quality=80, optimize=True)
