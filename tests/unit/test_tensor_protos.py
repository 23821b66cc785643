"""TensorProto ↔ numpy: both forms of every dtype, and messages that lie."""

import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from graftflow.serving import tensor_protos
from graftflow.serving.status import Code, ServingError
from tests.unit.tensor_models import NUMBERS, every_input

SHAPES = [(), (0,), (3,), (2, 0, 4), (2, 3, 2)]


def signature_name(array):
    """TensorFlow's name of a dtype, as signatures have it."""
    number = (
        tf.string.as_datatype_enum if array.dtype == object else tf.as_dtype(array.dtype).as_datatype_enum
    )
    return types_pb2.DataType.Name(number).removeprefix("DT_").lower()


def random_array(name, shape, random):
    """Values of a dtype: the extreme ones and others, or texts of any bytes."""
    if name == "string":
        texts = [random.bytes(length) for length in random.integers(0, 300, int(np.prod(shape)))]
        array = np.empty(len(texts), np.object_)
        array[:] = texts
        return array.reshape(shape)
    row = every_input()[name]
    return row[random.integers(0, len(row), int(np.prod(shape)))].reshape(shape)


def same(a, b):
    if a.dtype == object:
        return a.shape == b.shape and a.tolist() == b.tolist()
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("name", [*NUMBERS, "string"])
def test_what_is_written_is_read_again_bit_by_bit(name):
    random = np.random.default_rng(1)
    for shape in SHAPES:
        array = random_array(name, shape, random)
        proto = tensor_protos.write(array)
        assert proto.tensor_content == b""
        assert same(tensor_protos.read("x", proto, signature_name(array)), array)
        again = tensor_pb2.TensorProto.FromString(proto.SerializeToString())
        if array.size or name != "string":
            assert same(tf.make_ndarray(again).reshape(shape), array)  # TensorFlow reads the same


@pytest.mark.parametrize("name", [*NUMBERS, "string"])
def test_what_tensorflow_packs_is_read(name):
    """``Tensor::AsProtoTensorContent``, which clients in C++ call; its Python form is an op."""
    random = np.random.default_rng(2)
    for shape in SHAPES:
        array = random_array(name, shape, random)
        if not array.size:
            continue
        tensor = tf.constant(array) if name != "string" else tf.constant(array.tolist(), tf.string, shape)
        packed = tensor_pb2.TensorProto.FromString(tf.io.serialize_tensor(tensor).numpy())
        assert same(tensor_protos.read("x", packed, signature_name(array)), array)
        proto = tensor_pb2.TensorProto(dtype=packed.dtype, tensor_shape=packed.tensor_shape)
        if name == "string":
            texts = array.ravel().tolist()
            lengths = b"".join(
                bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
                for length in map(len, texts)
            )
            proto.tensor_content = lengths + b"".join(texts)
        else:
            proto.tensor_content = array.tobytes()
        assert same(tensor_protos.read("x", proto, signature_name(array)), array)


def test_the_last_value_fills_the_rest_as_in_tensorflow():
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.0, 2.0])
    proto.tensor_shape.dim.add(size=2)
    proto.tensor_shape.dim.add(size=2)
    assert tensor_protos.read("x", proto, "float").tolist() == [[1.0, 2.0], [2.0, 2.0]]
    del proto.float_val[:]
    assert tensor_protos.read("x", proto, "float").tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", ["float", "int64", "string"])
@pytest.mark.parametrize(
    ("shape", "content", "values"),
    [
        ((2**40, 2**40), b"", 1),
        ((2**31,), b"", 1),
        ((2**31,), b"", 0),
        ((-1,), b"", 1),
        ((2,), b"", 3),
        ((2,), b"\x01", 0),
        ((2,), b"\x05\x05abc", 0),
        ((2,), b"\x01\x01abc", 0),
        ((1,), b"\xff" * 9, 0),
        ((4,), b"\x80" * 4, 0),
    ],
)
def test_a_message_that_lies_is_refused_before_memory_is_taken(dtype, shape, content, values):
    number = types_pb2.DataType.Value(f"DT_{dtype.upper()}")
    proto = tensor_pb2.TensorProto(dtype=number, tensor_content=content)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    field = {"float": "float_val", "int64": "int64_val", "string": "string_val"}[dtype]
    getattr(proto, field).extend([b"a"] * values if dtype == "string" else [1] * values)
    started = time.monotonic()
    with pytest.raises(ServingError, match="tensor parsing error: x") as caught:
        tensor_protos.read("x", proto, dtype)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert time.monotonic() - started < 0.5


def test_a_shape_of_unknown_rank_and_another_dtype_are_refused():
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.0])
    proto.tensor_shape.unknown_rank = True
    with pytest.raises(ServingError, match="tensor parsing error: x"):
        tensor_protos.read("x", proto, "float")
    with pytest.raises(ServingError, match=r"Expects arg\[2\] to be string but float is provided"):
        tensor_protos.read("x", proto, "string", 2)
    for number in (0, types_pb2.DT_RESOURCE, 999):
        with pytest.raises(ServingError, match="Expects arg"):
            tensor_protos.read("x", tensor_pb2.TensorProto(dtype=number), "float")


def test_strings_of_any_kind_are_written_as_bytes():
    for array in (np.array(["ja ✓", ""]), np.array([b"raw\xff", b"x"]), np.array(["a", b"b"], np.object_)):
        proto = tensor_protos.write(array)
        assert proto.dtype == types_pb2.DT_STRING
        assert list(proto.string_val) == [v if isinstance(v, bytes) else v.encode() for v in array.tolist()]


def test_an_array_that_is_not_contiguous_is_written_in_its_order():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T[:, ::2]
    assert tf.make_ndarray(tensor_protos.write(array)).tolist() == array.tolist()
    big_endian = np.array([1.5, -2.0], ">f4")
    assert tf.make_ndarray(tensor_protos.write(big_endian)).tolist() == [1.5, -2.0]


def test_a_dtype_without_a_field_is_told():
    with pytest.raises(ServingError, match="Failed to write a tensor of type datetime64"):
        tensor_protos.write(np.array(["2020-01-01"], "datetime64[s]"))
