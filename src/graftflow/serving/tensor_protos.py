"""TensorProto ↔ numpy, in TensorFlow Serving's form: outputs in the typed fields, inputs in either."""

import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from graftflow.serving.json_inputs import Tensor
from graftflow.serving.status import invalid

# numpy's dtype → TensorFlow's, the field of TensorProto, and the dtype of the numbers on the wire, where
# the field's packed bytes are those of an array.
_PACKED: dict[str, tuple[int, str]] = {
    "float32": (5, "<f4"),
    "float64": (6, "<f8"),
    "complex64": (9, "<c8"),
    "complex128": (12, "<c16"),
}
_NAMES = {number: name.removeprefix("DT_").lower() for name, number in types_pb2.DataType.items()}
# Their content is used where it lies in the message.
_IN_PLACE = {"float": "<f4", "double": "<f8", "int32": "<i4", "int64": "<i8", "uint8": "u1"}
_MOST_DIMENSIONS = 64  # as in numpy
_MANY = 2**15  # values, which take some milliseconds
_VARINTS = {
    "int32": "int_val",
    "int16": "int_val",
    "uint16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}


def read(alias: str, proto: Any, dtype: str, position: int = 0) -> Tensor:
    """Return an input as a numpy array; strings as objects holding ``bytes``.

    Args:
        alias: the input's name, for messages.
        proto: a ``TensorProto``.
        dtype: the dtype that the signature wants, by TensorFlow's name, e.g. ``"float"``.
        position: the input's place among the others, for messages.

    Raises:
        ServingError: INVALID_ARGUMENT where it has another dtype, or values that do not fit its shape.
    """
    name = _NAMES.get(proto.dtype, str(proto.dtype))
    if name != dtype:
        raise invalid(f"Expects arg[{position}] to be {dtype} but {name} is provided")
    # Before any memory is taken: a short message may claim a shape of billions.
    if proto.tensor_shape.unknown_rank or len(proto.tensor_shape.dim) > _MOST_DIMENSIONS:
        raise invalid(f"tensor parsing error: {alias}")
    shape = [d.size for d in proto.tensor_shape.dim]
    if any(size < 0 for size in shape) or not _plausible(proto, shape):
        raise invalid(f"tensor parsing error: {alias}")
    try:
        if proto.tensor_content and dtype == "string":
            return _texts(proto.tensor_content, math.prod(shape)).reshape(shape)
        if proto.tensor_content and dtype in _IN_PLACE:
            return np.frombuffer(proto.tensor_content, _IN_PLACE[dtype]).reshape(shape)
        return np.asarray(tf.make_ndarray(proto))
    except Exception as error:
        raise invalid(f"tensor parsing error: {alias}") from error


def _plausible(proto: Any, shape: list[int]) -> bool:
    """Whether the values fill the shape, or are some of which the last is to be repeated, within 64 MiB."""
    count = math.prod(shape)
    if proto.tensor_content and proto.dtype == types_pb2.DT_STRING:
        return count <= len(proto.tensor_content)  # a length of each at least
    if proto.tensor_content:
        return bool(count * tf.dtypes.as_dtype(proto.dtype).size == len(proto.tensor_content))
    given = _given(proto)
    if given == count > 0:
        return True
    # Also where a side is 0: the graph may take the others alone.
    claimed = math.prod(size or 1 for size in shape)
    longest = max(map(len, proto.string_val), default=0) if given <= count else 0
    each = 64 + longest if proto.dtype == types_pb2.DT_STRING else 16
    return given <= count and claimed * each <= 2**26


def is_slow(proto: Any) -> bool:
    """Whether reading the tensor takes so long that the event loop should not wait for it."""
    return _given(proto) > _MANY or (proto.dtype == types_pb2.DT_STRING and len(proto.tensor_content) > _MANY)


def _given(proto: Any) -> int:
    """How many values the typed fields hold."""
    return max(
        len(proto.half_val),
        len(proto.float_val),
        len(proto.double_val),
        len(proto.int_val),
        len(proto.string_val),
        len(proto.scomplex_val) // 2,
        len(proto.int64_val),
        len(proto.bool_val),
        len(proto.dcomplex_val) // 2,
        len(proto.uint32_val),
        len(proto.uint64_val),
    )


def _texts(content: bytes, count: int) -> Tensor:
    """Read strings as TensorFlow packs them into bytes: the length of each as a varint, then all of them."""
    lengths: list[int] = []
    place = 0
    while len(lengths) < count:
        length = shift = 0
        while content[place] > 127:
            length |= (content[place] & 127) << shift
            place, shift = place + 1, shift + 7
            if shift > 28:  # of 32 bits
                raise ValueError("a length is too large")
        lengths.append(length | content[place] << shift)
        place += 1
    if place + sum(lengths) != len(content):
        raise ValueError("the lengths do not fill the bytes")
    texts = np.empty(count, np.object_)
    for index, length in enumerate(lengths):
        texts[index] = content[place : place + length]
        place += length
    return texts


def write(tensor: Tensor) -> Any:
    """Return an output as a ``TensorProto`` in the typed fields."""
    name = tensor.dtype.name
    proto = tensor_pb2.TensorProto()
    for size in tensor.shape:
        proto.tensor_shape.dim.add(size=size)
    if tensor.dtype.kind in "OSU":
        proto.dtype = types_pb2.DT_STRING
        proto.string_val.extend(v if isinstance(v, bytes) else str(v).encode() for v in tensor.flat)
    elif name in _PACKED:
        number, wire = _PACKED[name]
        proto.dtype = tf.dtypes.as_dtype(tensor.dtype).as_datatype_enum
        if tensor.size:
            # A packed field is its numbers one behind the other: no loop over them.
            content = np.ascontiguousarray(tensor, wire).tobytes()
            proto.MergeFromString(_varint(number << 3 | 2) + _varint(len(content)) + content)
    elif name in _VARINTS:
        proto.dtype = tf.dtypes.as_dtype(tensor.dtype).as_datatype_enum
        getattr(proto, _VARINTS[name]).extend(tensor.ravel().tolist())
    elif name in ("float16", "bfloat16"):
        proto.dtype = tf.dtypes.as_dtype(tensor.dtype).as_datatype_enum
        proto.half_val.extend(tensor.ravel().view(np.uint16).tolist())
    else:
        raise invalid(f"Failed to write a tensor of type {name}")
    return proto


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
