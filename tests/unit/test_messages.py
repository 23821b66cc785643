"""The gRPC client's messages and tensors against the originals, byte for byte."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from graftflow.errors import InputError
from graftflow.serving import messages, tensor_values
from graftflow.serving.tensor_protos import write as typed

VALUES = {
    "float32": [[1.5, -2.25], [float("inf"), 0.1]],
    "float64": [[1.5, -2.25], [1e300, 0.1]],
    "float16": [[1.5, -2.25], [float("-inf"), 0.5]],
    "bfloat16": [[1.5, -2.0], [0.5, 3.0]],
    "int32": [[1, -2], [2**31 - 1, 0]],
    "int64": [[1, -2], [2**63 - 1, 0]],
    "uint8": [[1, 255], [3, 0]],
    "int8": [[1, -128], [3, 0]],
    "int16": [[1, -(2**15)], [3, 0]],
    "uint16": [[1, 2**16 - 1], [3, 0]],
    "uint32": [[1, 2**32 - 1], [3, 0]],
    "uint64": [[1, 2**64 - 1], [3, 0]],
    "bool": [[True, False], [False, False]],
    "string": [["a", "é"], ["", "bc"]],
}


def bytes_of(message):
    return message.SerializeToString(deterministic=True)


def tensor(dtype, *, in_content):
    kind = tf.dtypes.as_dtype(dtype)
    values = VALUES[dtype]
    if dtype == "string":
        values = [[text.encode() for text in row] for row in values]
    array = np.array(values, object if dtype == "string" else kind.as_numpy_dtype)
    return tf.make_tensor_proto(array, kind) if in_content else typed(array)


class TestMessages:
    def test_a_predict_request_has_the_originals_bytes(self):
        for set_choice in (
            lambda spec: setattr(spec.version, "value", 7),
            lambda spec: setattr(spec.version, "value", 0) or spec.version.SetInParent(),
            lambda spec: setattr(spec, "version_label", "stable"),
            lambda spec: None,
        ):
            pair = messages.PredictRequest(), predict_pb2.PredictRequest()
            for request in pair:
                request.model_spec.name, request.model_spec.signature_name = "pets", "ranked"
                set_choice(request.model_spec)
                request.output_filter.append("scores")
                for dtype in VALUES:
                    proto = tensor_values.write(VALUES[dtype], tf.dtypes.as_dtype(dtype).as_datatype_enum)
                    request.inputs[dtype].MergeFromString(proto.SerializeToString())
            ours, theirs = map(bytes_of, pair)
            assert ours == theirs
            assert messages.PredictRequest.FromString(theirs) == pair[0]

    def test_answers_are_read_as_the_originals_write_them(self):
        theirs = predict_pb2.PredictResponse()
        theirs.model_spec.name, theirs.model_spec.version.value = "pets", 3
        theirs.outputs["scores"].CopyFrom(tf.make_tensor_proto([[0.5, 0.5]]))
        ours = messages.PredictResponse.FromString(theirs.SerializeToString())
        assert bytes_of(ours) == bytes_of(theirs)
        assert (ours.model_spec.version.value, list(ours.outputs)) == (3, ["scores"])

        status = get_model_status_pb2.GetModelStatusResponse()
        added = status.model_version_status.add(version=3, state="AVAILABLE")
        added.status.error_code, added.status.error_message = 5, "gone"
        read = messages.GetModelStatusResponse.FromString(status.SerializeToString())
        assert bytes_of(read) == bytes_of(status)
        assert messages.STATES[read.model_version_status[0].state] == "AVAILABLE"
        named = {value: key for key, value in get_model_status_pb2.ModelVersionStatus.State.items()}
        assert named == messages.STATES

        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "pets"
        original = get_model_metadata_pb2.GetModelMetadataRequest.FromString(request.SerializeToString())
        assert (original.model_spec.name, original.metadata_field) == ("pets", ["signature_def"])

    @pytest.mark.parametrize("in_content", [False, True])
    @pytest.mark.parametrize("dtype", VALUES)
    def test_tensors_are_read_in_either_form(self, dtype, in_content):
        theirs = tensor(dtype, in_content=in_content)
        read = tensor_values.read(messages.TensorProto.FromString(theirs.SerializeToString()))
        expected = VALUES[dtype]
        if dtype == "float32":
            expected = np.array(expected, np.float32).tolist()
        assert read == expected
        assert [type(v) for v in read[0]] == [type(v) for v in expected[0]]

    @pytest.mark.parametrize("dtype", VALUES)
    def test_what_is_written_tensorflow_reads(self, dtype):
        kind = tf.dtypes.as_dtype(dtype)
        proto = tensor_values.write(VALUES[dtype], kind.as_datatype_enum)
        array = tf.make_ndarray(_original(proto))
        assert array.shape == (2, 2)
        expected = tf.make_ndarray(tensor(dtype, in_content=False))
        np.testing.assert_array_equal(array, expected)

    def test_a_short_typed_field_repeats_its_last_value(self):
        proto = _mine(tf.make_tensor_proto(7.5, shape=(2, 2)))
        assert tensor_values.read(proto) == [[7.5, 7.5], [7.5, 7.5]]
        empty = messages.TensorProto(dtype=3)
        empty.tensor_shape.dim.add(size=3)
        assert tensor_values.read(empty) == [0, 0, 0]

    @pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 0, 3), (2, 3, 0)])
    def test_empty_tensors_keep_their_shape(self, shape):
        proto = _mine(tf.make_tensor_proto(np.zeros(shape, np.float32)))
        assert tensor_values.read(proto) == np.zeros(shape).tolist()

    @pytest.mark.parametrize(
        ("shape", "content", "message"),
        [
            ((2, 3), b"1234", "must have 6 values of dtype float32. Received: 4 bytes"),
            ((2**40,), b"", "must have at most 16777216 values"),
            ((2**40, 0), b"", "must have at most 16777216 values"),
            ((-1,), b"", "shape must be known"),
        ],
    )
    def test_a_tensor_that_lies_about_its_size_is_refused(self, shape, content, message):
        proto = messages.TensorProto(dtype=1, tensor_content=content)
        for size in shape:
            proto.tensor_shape.dim.add(size=size)
        with pytest.raises(InputError, match=message):
            tensor_values.read(proto)

    @pytest.mark.parametrize(
        ("values", "dtype", "message"),
        [
            ([[1.0], [1.0, 2.0]], 1, "must have one shape. Received: 2 values beside 1"),
            ([1.0, [1.0]], 1, "must have one shape. Received: lists of unequal depth"),
            ([[1.0], 1.0], 1, "must have one shape. Received: a single value beside 1"),
            ([1.5], 3, "dtype int32 must hold such values. Received: 1.5"),
            ([True], 1, "dtype float32 must hold such values. Received: True"),
            ([1], 7, "dtype string must hold such values. Received: 1"),
            ([300], 4, "dtype uint8 must hold such values. Received: .*(less|greater)"),
            ([1], 21, "dtype must be one of float32.* Received: number 21"),
        ],
    )
    def test_values_that_do_not_fit_are_refused_in_one_line(self, values, dtype, message):
        with pytest.raises(InputError, match=message) as caught:
            tensor_values.write(values, dtype)
        assert "\n" not in str(caught.value)

    def test_without_a_dtype_the_values_choose_one(self):
        kinds = {1: [1, 2.5], 9: [1, 2], 10: [True], 7: ["a", b"b"]}
        assert [tensor_values.write(values).dtype for values in kinds.values()] == list(kinds)


def _original(proto):
    return tensor_pb2.TensorProto.FromString(proto.SerializeToString())


def _mine(proto):
    return messages.TensorProto.FromString(proto.SerializeToString())
