"""What happens to files: cut, a bit turned, emptied, gone."""

from pathlib import Path

import numpy as np

DAMAGES = ("cut", "flip", "empty", "delete")


def damage(path: Path, kind: str, *, seed: int) -> None:
    """Damage a file.

    Args:
        path: a file of at least 2 bytes.
        kind: ``cut`` to its half, ``flip`` one bit, ``empty`` or ``delete``.
        seed: chooses the bit.
    """
    data = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return
    if kind == "flip":
        bit = int(np.random.default_rng(seed).integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        del data[len(data) // 2 :]
    else:
        data.clear()
    path.write_bytes(data)
