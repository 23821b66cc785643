"""Writes torch's legacy weight files without torch, good ones and others; shared by several tests."""

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class FloatStorage:
    """Pickles under torch's name; the reader maps it to its own type."""


class Storage:
    def __init__(self, key: str, length: int) -> None:
        self.key, self.length = key, length


class Tensor:
    def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple) -> None:
        self.state = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return rebuild, self.state


class OrderedByPython2:
    """What Python 2 writes of an ``OrderedDict``: the class, and a list of its items to call it with."""

    def __init__(self, **items: Any) -> None:
        self.items = [[name, value] for name, value in items.items()]

    def __reduce__(self) -> Any:
        return OrderedDict, (self.items,)


def rebuild(*_: Any) -> None:
    raise AssertionError("only its name is pickled")


FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"
rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"

# Words of pickle's machine. The memo's number 0 is a function, 1 a list of a thousand names and values to call it with;
# three bytes and two make one more dict of them. Number 2 is a pair; five bytes make a pair of it and itself.
LIST = (
    b"ccollections\nOrderedDict\nq\0]("
    + b"".join(b"X\3\0\0\0%03dN\x86" % number for number in range(1000))
    + b"e\x85q\1"
)
DICT_OF_LIST = b"h\0h\1R"
PAIR, PAIR_OF_PAIRS = b"NN\x86q\2", b"h\2h\2\x86q\2"


class TorchPickler(pickle._Pickler):  # type: ignore[name-defined]
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Storage):
            return ("storage", FloatStorage, obj.key, "cpu", obj.length, None)
        return None

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj in (FloatStorage, rebuild):
            self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())
        else:
            super().save_global(obj, name)

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]
    dispatch[type] = save_global
    dispatch[type(rebuild)] = save_global


def pickles(*values: Any) -> bytes:
    """Values pickled one behind the other, tensors by torch's names."""
    file = io.BytesIO()
    for value in values:
        TorchPickler(file, protocol=2).dump(value)
    return file.getvalue()


def write(path: Path, state: Any, values: dict[str, np.ndarray], cut: int = 0) -> Path:
    with open(path, "wb") as file:
        file.write(pickles(MAGIC, PROTOCOL, {}, state, list(values)))
        for array in values.values():
            file.write(struct.pack("<q", array.size) + array.astype("<f4").tobytes())
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return path
