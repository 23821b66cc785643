"""Reads weight files. Legacy torch ones without torch, and without running anything that the file asks for.

The format (torch before 1.6): five pickles (magic number, protocol, system information, the state dict whose
tensors name their storages, the list of storage keys), then for every key an int64 count and the raw
little-endian values.

The pickles go through a stack machine of our own, which knows only what tensors need. Python's own would not do,
even with its names restricted: nine bytes make it fill a table of gigabytes, and a pickle may change, by BUILD, what
was checked before.
"""

import pickletools  # nosec B403 # names the opcodes; nothing is unpickled
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
# Of the five pickles together; a tensor takes some 150 bytes, so there is room for 28,000.
_MOST_PICKLED = 4 * 2**20
_MOST_DIMENSIONS = 32
# Bytes of all tensors, for each byte of the file: tensors may share a storage, but not make gigabytes of megabytes.
_MOST_SHARED = 4
# Bytes of a pair of name and value in any file: two that are in the memo, and TUPLE2.
_SHORTEST_PAIR = 5


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
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _requires_grad: Any,
    _hooks: Any,
    _metadata: Any = None,
) -> _Tensor:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without a storage or a shape")
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of other than 0 to {_MOST_DIMENSIONS} sizes, each with its stride")
    sizes = (offset, *shape, *strides)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a tensor with a size, stride or offset that is no whole number from 0")
    tensor = _Tensor(storage, offset, shape, strides)
    count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if count > storage.length or (count and last >= storage.length):
        raise ValueError("a tensor that reaches beyond its storage")
    return tensor


def _ordered(items: Any = None) -> OrderedDict[str, Any]:
    """Return what Python 3 fills by SETITEMS; Python 2 gives it a list of its items."""
    if items is None:
        return OrderedDict()
    if not isinstance(items, list):
        raise ValueError("names and values that are no list")
    return OrderedDict(_named(items))


_NAMES: dict[str, Callable[..., Any] | _StorageType] = {
    "collections OrderedDict": _ordered,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch FloatStorage": _StorageType("<f4"),
    "torch DoubleStorage": _StorageType("<f8"),
    "torch HalfStorage": _StorageType("<f2"),
    "torch LongStorage": _StorageType("<i8"),
    "torch IntStorage": _StorageType("<i4"),
}


def _named(items: Any) -> list[tuple[str, Any]]:
    """Check that keys are texts: hashing tuples of tuples of tuples would take for ever."""
    pairs = [(key, value) for key, value in items]
    if not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("a key that is no text")
    return pairs


def _storage(pid: Any) -> _Storage:
    kind, storage_type, key, _location, length, view = pid
    if kind != "storage" or not isinstance(storage_type, _StorageType) or view is not None:
        raise ValueError("a storage of an unknown kind")
    if type(length) is not int or length < 0 or not isinstance(key, str):
        raise ValueError("a storage without a key, or of a length that is no whole number from 0")
    return _Storage(key, storage_type.dtype, length)


class _Pickled:
    """The part of a file that holds pickles, read no further than it may be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MOST_PICKLED
        self._given = 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise ValueError("a value that is too long")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, 1024))
        self._left -= len(line)
        return line

    def give(self, arguments: tuple[Any, ...]) -> None:
        """Refuse one list given again and again: two bytes name it, and each time a dict as large is made of it."""
        self._given += sum(len(argument) for argument in arguments if isinstance(argument, list))
        if self._given * _SHORTEST_PAIR > _MOST_PICKLED - self._left:
            raise ValueError("it makes many dicts of one list")


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MAKERS: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def _unpickle(file: _Pickled) -> Any:
    """Return what one pickle holds: numbers, texts, lists, dicts and tensors.

    What it makes takes memory and time by the bytes that were read, and no value is shown or compared as a whole: a
    tuple of a tuple of a tuple, each of the one before it twice, is short in the file and endless as a text.

    Raises:
        ValueError, TypeError, IndexError, KeyError: for anything else.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any

    def taken() -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        at = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
        match opcode.name:
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _MAKERS:
                stack.append(_MAKERS[name]())
            case name if name in _VALUES:
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(taken()))
            case name if name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            case "APPEND" | "APPENDS":
                items = taken() if opcode.name == "APPENDS" else [stack.pop()]
                _target(stack, list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = taken() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _target(stack, dict).update(_named(zip(items[::2], items[1::2], strict=True)))
            case "GLOBAL":
                stack.append(_lookup(argument))
            case "STACK_GLOBAL":
                stack.append(_lookup(" ".join([stack.pop(-2), stack.pop()])))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                function, arguments = stack.pop(-2), stack.pop()
                # Python's own refusal would show what is called.
                if not callable(function) or not isinstance(arguments, tuple):
                    raise ValueError("it calls what is no function of torch's")
                file.give(arguments)
                stack.append(function(*arguments))
            case "BUILD":  # torch's note of its modules' versions
                stack.pop()
                _target(stack, OrderedDict)
            case name:
                raise ValueError(f"it does {name}, which tensors do not need")
    raise EOFError("it ends within a pickle")


def _target(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise ValueError(f"it fills a {type(stack[-1]).__name__} as if it were a {kind.__name__}")
    return stack[-1]


def _lookup(name: str) -> Any:
    if name not in _NAMES:
        raise ValueError(f"it names {name.replace(' ', '.')}")
    return _NAMES[name]


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
    except (struct.error, EOFError, TypeError, ValueError, KeyError, IndexError, StopIteration,
            RuntimeError, OverflowError, MemoryError) as error:  # fmt: skip
        raise InputError(
            f"A weights file must be a legacy torch state dict that holds tensors only. "
            f"Received: '{file_path}' ({str(error)[:200]})."
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
    pickled = _Pickled(file)
    if _unpickle(pickled) != _MAGIC or _unpickle(pickled) != _PROTOCOL:
        raise ValueError("no torch magic number")
    _unpickle(pickled)  # system information
    state, keys = _unpickle(pickled), _unpickle(pickled)
    if not isinstance(state, dict) or not all(isinstance(t, _Tensor) for t in state.values()):
        raise ValueError("something else than named tensors")
    storages: dict[str, _Storage] = {}
    for tensor in state.values():
        # Each tensor describes its storage: it was checked against that, and only one of them is read.
        if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise ValueError(f"two descriptions of storage {tensor.storage.key}")
    if sum(map(_num_bytes, state.values())) > _MOST_SHARED * size:
        raise ValueError("tensors that are larger than the file by far")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("storages without keys")
    values: dict[str, npt.NDArray[Any]] = {}
    for key in keys:
        storage = storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        dtype = np.dtype(storage.dtype)
        if length != storage.length or length * dtype.itemsize > size - file.tell():
            raise ValueError(f"storage {key} is cut short")
        values[key] = np.frombuffer(file.read(length * dtype.itemsize), dtype=dtype)
    return {name: _materialise(tensor, values[tensor.storage.key]) for name, tensor in state.items()}


def _num_bytes(tensor: _Tensor) -> int:
    count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
    return count * np.dtype(tensor.storage.dtype).itemsize


def _materialise(tensor: _Tensor, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    strides = tuple(stride * values.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides)
    return view.copy()
