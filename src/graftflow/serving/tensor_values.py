"""Python's values ↔ ``TensorProto``, without numpy or TensorFlow: what the gRPC client sends and receives.

Tensors are read in either form that the protocol has, typed fields or ``tensor_content``; they are written in the
typed fields. Values are those of the REST API: numbers, ``bool``, text, ``bytes``, and nested lists of them.
"""

import array
import itertools
import math
import operator
import struct
import sys
from collections.abc import Sequence
from typing import Any

from graftflow.errors import InputError
from graftflow.serving.messages import TensorProto

STRING, BOOL, INT64, FLOAT = 7, 10, 9, 1
MOST_DIMENSIONS = 254  # TensorFlow's own limit
MOST_LISTS = 2**22  # 33 pictures of 352 by 352 pixels, each pixel a list
LARGEST = 2**24  # values of a tensor: a few bytes can claim any shape
# DataType of types.proto → its name, the field of TensorProto, and the struct code of one value of tensor_content.
_DTYPES: dict[int, tuple[str, str, str]] = {
    FLOAT: ("float32", "float_val", "f"),
    2: ("float64", "double_val", "d"),
    3: ("int32", "int_val", "i"),
    4: ("uint8", "int_val", "B"),
    5: ("int16", "int_val", "h"),
    6: ("int8", "int_val", "b"),
    STRING: ("string", "string_val", ""),
    INT64: ("int64", "int64_val", "q"),
    BOOL: ("bool", "bool_val", "?"),
    17: ("uint16", "int_val", "H"),
    14: ("bfloat16", "half_val", "H"),
    19: ("float16", "half_val", "e"),
    22: ("uint32", "uint32_val", "I"),
    23: ("uint64", "uint64_val", "Q"),
}


def write(value: Any, dtype: int | None = None) -> Any:
    """Return nested lists as a ``TensorProto``.

    Args:
        value: a value or nested lists of one shape.
        dtype: what the model wants, as types.proto numbers it; ``None`` takes it from the values: text and bytes are
            strings, ``bool`` stays, integers are int64 and other numbers float32.

    Raises:
        InputError: where the lists are uneven, or a value does not fit the dtype.
    """
    shape = _shape(value)
    flat = _flat(value, shape)
    if dtype is None:
        dtype = _guessed(flat)
    if dtype not in _DTYPES:
        raise InputError(f"an input's dtype must be one of {_names()}. Received: number {dtype}")
    name, field, code = _DTYPES[dtype]
    proto = TensorProto(dtype=dtype)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    try:
        getattr(proto, field).extend(_converted(flat, name, code))
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        bad = [f"{value!r:.60}" for value in flat if not _fit({type(value)}, name)]
        received = bad[0] if bad else str(error)
        raise InputError(f"an input of dtype {name} must hold such values. Received: {received}") from None
    return proto


def read(proto: Any, *, as_bytes: bool = False) -> Any:
    """Return a ``TensorProto`` as a value or nested lists; strings as text.

    Args:
        proto: the tensor, its values in the typed field or in ``tensor_content``. As everywhere in TensorFlow, a typed
            field that is shorter than the shape repeats its last value.
        as_bytes: strings stay ``bytes``, as do those that are not UTF-8.

    Raises:
        InputError: where its dtype is unknown or its values do not fill its shape.
    """
    if proto.dtype not in _DTYPES:
        raise InputError(f"an output's dtype must be one of {_names()}. Received: number {proto.dtype}")
    name, field, code = _DTYPES[proto.dtype]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if len(shape) > MOST_DIMENSIONS:
        raise InputError(f"an output must have at most {MOST_DIMENSIONS} dimensions. Received: {len(shape)}")
    if any(size < 0 for size in shape):
        raise InputError(f"an output's shape must be known. Received: {shape}")
    if math.prod(size for size in shape if size) > LARGEST:
        raise InputError(f"an output must have at most {LARGEST} values. Received: shape {shape}")
    # Dimensions of 1 make lists without values: a kilobyte could ask for billions.
    if sum(itertools.accumulate((max(size, 1) for size in shape[:-1]), operator.mul)) > MOST_LISTS:
        raise InputError(f"an output must have at most {MOST_LISTS} lists. Received: shape {shape}")
    total = math.prod(shape)
    if proto.tensor_content and code:
        if len(proto.tensor_content) != total * struct.calcsize(f"<{code}"):
            raise InputError(
                f"an output of shape {shape} must have {total} values of dtype {name}. "
                f"Received: {len(proto.tensor_content)} bytes"
            )
        values = list(struct.unpack(f"<{total}{code}", proto.tensor_content))
    else:
        values = list(getattr(proto, field))
        if len(values) > total or (total and not values and name == "string"):
            raise InputError(f"an output of shape {shape} must have {total} values. Received: {len(values)}")
        if name == "float16":
            bits = struct.pack(f"<{len(values)}H", *(value & 0xFFFF for value in values))
            values = list(struct.unpack(f"<{len(values)}e", bits))
        values += (values[-1:] or [_zero(name)]) * (total - len(values))
        if name == "string" and not as_bytes:
            values = [_text(value) for value in values]
    if name == "bfloat16":  # the upper half of a float32
        values = [struct.unpack("<f", struct.pack("<I", value << 16 & 0xFFFFFFFF))[0] for value in values]
    return _nested(values, shape)


def _zero(name: str) -> Any:
    return False if name == "bool" else 0.0 if name in ("float32", "float64", "float16") else 0


def _names() -> str:
    return ", ".join(name for name, _, _ in _DTYPES.values())


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _nested(values: list[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return values[0]
    for size in reversed(shape[1:]):
        # Without values the outer dimensions alone say how many lists there are.
        count = len(values) // size if size else 0
        values = [values[i * size : (i + 1) * size] for i in range(count)]
    if 0 in shape[1:]:
        return _empty(shape)
    return values


def _empty(shape: Sequence[int]) -> list[Any]:
    return [_empty(shape[1:]) for _ in range(shape[0])] if shape else []


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list | tuple):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _flat(value: Any, shape: Sequence[int]) -> list[Any]:
    flat = [value]
    for size in shape:
        for item in flat:
            if not isinstance(item, list | tuple) or len(item) != size:
                received = f"{len(item)} values" if isinstance(item, list | tuple) else "a single value"
                raise InputError(
                    f"the values of an input must have one shape. Received: {received} beside {size}"
                )
        flat = list(itertools.chain.from_iterable(flat))
    if not {list, tuple}.isdisjoint(map(type, flat)):
        raise InputError("the values of an input must have one shape. Received: lists of unequal depth")
    return flat


def _guessed(flat: Sequence[Any]) -> int:
    types = set(map(type, flat))
    if types & {str, bytes}:
        return STRING
    if types == {bool}:
        return BOOL
    return INT64 if types == {int} else FLOAT


def _fit(types: set[type], name: str) -> bool:
    """Whether values of these types may go into a tensor of that dtype; as over REST, nothing is coerced."""
    if name == "string":
        return types <= {str, bytes}
    if name == "bool":
        return types <= {bool}
    return types <= ({int, float} if "float" in name else {int})


def _converted(flat: list[Any], name: str, code: str) -> Sequence[Any]:
    """The values as the typed field takes them; raises where one does not fit."""
    if not _fit(set(map(type, flat)), name):
        raise TypeError(name)
    if name == "string":
        return [value.encode() if isinstance(value, str) else value for value in flat]
    if name == "float16":
        return struct.unpack(f"<{len(flat)}H", struct.pack(f"<{len(flat)}e", *flat))
    if name == "bfloat16":
        return [int.from_bytes(struct.pack(">f", value)[:2], "big") for value in flat]
    if name == "bool" or sys.byteorder == "big":
        return flat
    return array.array(code, flat)  # checks the range, and is copied at once
