"""Reads weight files. Legacy torch ones without torch, and without running anything that the file asks for.

The format (torch before 1.6): five pickles (magic number, protocol, system information, the state dict whose
tensors name their storages, the list of storage keys), then for every key an int64 count and the raw
little-endian values. Only what builds tensors is allowed in the pickles; any other name is refused.
"""

import pickle  # nosec B403 # only through _TensorUnpickler, which builds tensors and refuses every other name
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from graftflow.errors import InputError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor before its storage has been read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _requires_grad: Any, _hooks: Any
) -> _Tensor:
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor without a storage of its own")
    tensor = _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise pickle.UnpicklingError("a tensor with a negative size, stride or offset")
    count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if count > storage.length or (count and last >= storage.length):
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return tensor


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | _StorageType | type] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): _StorageType("<f4"),
    ("torch", "DoubleStorage"): _StorageType("<f8"),
    ("torch", "HalfStorage"): _StorageType("<f2"),
    ("torch", "LongStorage"): _StorageType("<i8"),
    ("torch", "IntStorage"): _StorageType("<i4"),
}


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, length, view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or view is not None:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        if int(length) < 0:
            raise pickle.UnpicklingError("a storage of negative length")
        return _Storage(str(key), storage_type.dtype, int(length))


def read_torch_weights(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """Read a legacy (non-zip) torch state dict.

    Args:
        path: a ``.pth`` file.

    Returns:
        Name → array, in the file's order, shapes and dtypes as torch has them (convolutions are OIHW).

    Raises:
        InputError: where the file is missing, is no such file, is cut short, or asks for anything but tensors.
    """
    file_path = Path(path)
    if not file_path.is_file():
        raise InputError(f"A weights file must exist. Received: '{file_path}', which is no file.")
    try:
        with open(file_path, "rb") as file:
            return _read(file, size=file_path.stat().st_size)
    except (pickle.UnpicklingError, struct.error, EOFError, TypeError, ValueError, KeyError,
            AttributeError, IndexError, OverflowError, ImportError, MemoryError) as error:  # fmt: skip
        raise InputError(
            f"A weights file must be a legacy torch state dict that holds tensors only. "
            f"Received: '{file_path}' ({error})."
        ) from error


def load_keras_weights(network: Any, path: Path) -> None:
    """Load a Keras weights file into a network, every weight of it.

    Raises:
        UserWarning: where Keras would warn only, of layers that it leaves at their random start.
        ValueError, OSError: where the file does not fit or cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network.load_weights(path)


def _read(file: BinaryIO, *, size: int) -> dict[str, npt.NDArray[Any]]:
    if _TensorUnpickler(file).load() != _MAGIC or _TensorUnpickler(file).load() != _PROTOCOL:
        raise pickle.UnpicklingError("no torch magic number")
    _TensorUnpickler(file).load()  # system information
    state = _TensorUnpickler(file).load()
    keys = _TensorUnpickler(file).load()
    if not isinstance(state, dict) or not all(isinstance(t, _Tensor) for t in state.values()):
        raise pickle.UnpicklingError("something else than named tensors")
    storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
    values: dict[str, npt.NDArray[Any]] = {}
    for key in keys:
        storage = storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        dtype = np.dtype(storage.dtype)
        if length != storage.length or length * dtype.itemsize > size - file.tell():
            raise pickle.UnpicklingError(f"storage {key} is cut short")
        values[key] = np.frombuffer(file.read(length * dtype.itemsize), dtype=dtype)
    return {name: _materialise(tensor, values[tensor.storage.key]) for name, tensor in state.items()}


def _materialise(tensor: _Tensor, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    strides = tuple(stride * values.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides)
    return view.copy()
