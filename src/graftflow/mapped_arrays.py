"""Arrays that lie on the disk while they are filled, so that memory stays flat."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftflow.storage import writing


def mapped_file(path: Path, dtype: type[np.floating[Any]], shape: Sequence[int]) -> "np.memmap[Any, Any]":
    """Return a new array in a ``.npy`` file that has its room on the disk already.

    Args:
        path: the file, which is made anew.
        dtype: of its values.
        shape: its shape.

    Raises:
        InputError: the disk has no room for it.
    """
    with writing(path.parent):
        written = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=tuple(shape))
        with path.open("r+b") as file:
            _take_room(file.fileno(), path.stat().st_size)
    return written


def mapped_aside(folder: Path, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return a new ``float32`` array in a file of a folder that has no name: it goes with the array, or the process.

    Args:
        folder: on whose disk it is.
        shape: its shape.

    Raises:
        InputError: the disk has no room for it.
    """
    size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
    if not size:
        return np.empty(tuple(shape), np.float32)
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        _take_room(file.fileno(), size)
        return np.memmap(file, np.float32, "r+", shape=tuple(shape))


def _take_room(descriptor: int, size: int) -> None:
    # A new file is a hole, and writing through a map into it where the disk is full ends the process by SIGBUS.
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(descriptor, 0, size)
