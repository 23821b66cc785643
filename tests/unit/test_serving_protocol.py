"""JSON ↔ tensors as TensorFlow Serving maps them, and a model's versions, without TensorFlow."""

import base64
import json
import math

import numpy as np
import pytest

from graftflow.serving import json_inputs, json_outputs
from graftflow.serving.status import HTTP_STATUS, Code, ServingError

ONE = {"x": "float"}
TWO = {"x": "float", "text": "string"}


def read(text, dtypes):
    return json_inputs.read_inputs(json_inputs.parse_object(text.encode()), dtypes)


def error_of(call, *arguments):
    with pytest.raises(ServingError) as caught:
        call(*arguments)
    return caught.value


def test_row_and_column_formats_give_the_same_tensor():
    rows, row = read('{"instances": [[1, 2.5], [3.0, NaN]]}', ONE)
    columns, columnar = read('{"inputs": [[1, 2.5], [3.0, NaN]]}', ONE)
    named, _ = read('{"instances": [{"x": [1, 2.5]}, {"x": [3.0, NaN]}]}', ONE)
    assert (row, columnar) == ("row", "columnar")
    for tensors in (rows, columns, named):
        assert tensors["x"].dtype == np.float32
        np.testing.assert_array_equal(tensors["x"], np.array([[1, 2.5], [3, np.nan]], np.float32))


def test_several_inputs_are_named():
    rows, _ = read('{"instances": [{"x": 1, "text": "a"}, {"x": 2, "text": "é"}]}', TWO)
    assert rows["x"].shape == (2,)
    assert rows["text"].tolist() == [b"a", "é".encode()]
    columns, _ = read('{"inputs": {"x": [1], "text": ["a", "b"], "ignored": 1}}', TWO)
    assert columns["x"].shape == (1,)
    assert columns["text"].shape == (2,)


@pytest.mark.parametrize("padding", ["", "="])
def test_bytes_come_as_base64_padded_or_not(padding):
    text = base64.b64encode(b"\xff\x00").decode().rstrip("=") + padding
    rows, _ = read(json.dumps({"instances": [{"b64": text}]}), {"image": "string"})
    assert rows["image"].tolist() == [b"\xff\x00"]


@pytest.mark.parametrize(
    ("text", "dtypes", "message"),
    [
        ("", ONE, "JSON Parse error: The document is empty"),
        ("{nope", ONE, "JSON Parse error: Invalid value."),
        ("[1]", ONE, "Is not object"),
        ("{}", ONE, "Missing 'inputs' or 'instances' key"),
        ('{"instances": [1], "inputs": [1]}', ONE, "Not formatted correctly expecting only one of"),
        ('{"instances": 1}', ONE, "Excepting 'instances' to be an list/array"),
        ('{"instances": []}', ONE, "No values in 'instances' array"),
        ('{"instances": [true]}', ONE, "Type: True is not of expected type: float"),
        ('{"instances": [null]}', ONE, "Type: Null is not of expected type: float"),
        ('{"instances": ["1"]}', ONE, "Type: String is not of expected type: float"),
        ('{"instances": [1.0]}', {"x": "int32"}, "Type: Number is not of expected type: int32"),
        ('{"instances": [true]}', {"x": "int64"}, "Type: True is not of expected type: int64"),
        ('{"instances": [1]}', {"x": "bool"}, "Type: Number is not of expected type: bool"),
        ('{"instances": [300]}', {"x": "uint8"}, "is not of expected type: uint8"),
        ('{"instances": [1]}', {"x": "string"}, "Type: Number is not of expected type: string"),
        ('{"instances": [[1], [1, 2]]}', ONE, "Expecting tensor size: 1 but got: 2"),
        ('{"instances": [[[1, 2]], [[1], [2]]]}', ONE, "Expecting shape [1,2] but got: [2,1]"),
        ('{"inputs": [[1, 2], [1]]}', ONE, "Encountered list at unexpected size: 1 at level: 1"),
        ('{"inputs": [1, [1]]}', ONE, "Encountered list at unexpected level: 1 expected < 1"),
        ('{"inputs": [[1], 1]}', ONE, "found at incorrect level: 2 in the JSON DOM."),
        ('{"instances": [1]}', TWO, "instances is a plain list, but expecting list of objects"),
        ('{"inputs": [1]}', TWO, "inputs is a plain value/list, but expecting an object"),
        ('{"inputs": {"x": 1}}', TWO, "Missing named input: text in 'inputs' object."),
        ('{"instances": [{"x": 1}]}', TWO, "keys must be equal to: text,x"),
        ('{"instances": [{"x": 1, "y": 2}]}', ONE, "does not have named input: y"),
        ('{"instances": [{"x": 1}, 2]}', ONE, "Expecting object but got list at item 1"),
        ('{"instances": [1, {"x": 1}]}', ONE, "Expecting value/list but got object at item 1"),
        ('{"instances": [{"b64": "*"}]}', {"x": "string"}, "Unable to base64 decode"),
        ('{"inputs": {"x": {"b64": 1}}}', {"x": "string"}, "not formatted correctly for base64"),
        ('{"instances": [1]}', {"x": "complex64"}, "Error: UNIMPLEMENTED: Conversion of JSON Value"),
        ('{"instances": ["\\ud800"]}', {"x": "string"}, "surrogate pair in string is invalid"),
        ('{"instances": [1]}', {}, "Failed to get input map for signature: DEFAULT"),
        ('{"inputs": {}, "signature_name": "s"}', {}, "Failed to get input map for signature: s"),
        ("[" * 100_000, ONE, "JSON Parse error"),
        ('{"instances": ' + "[" * 900 + "]" * 900 + "}", ONE, ""),
        ('{"instances": [' + "9" * 5000 + "]}", ONE, "Number too big"),
    ],
)
def test_a_bad_request_is_told_in_tensorflow_servings_words(text, dtypes, message):
    error = error_of(read, text, dtypes)
    assert message in error.message
    assert len(error.message) < 600
    assert HTTP_STATUS[error.code] == 400


def test_a_dtype_without_a_json_form_is_unimplemented_in_column_format():
    error = error_of(read, '{"inputs": [1]}', {"x": "complex64"})
    assert error.code is Code.UNIMPLEMENTED
    assert "to type: complex64" in error.message


def test_whole_numbers_are_rounded_into_floats():
    tensors, _ = read('{"instances": [16777217, 123456789012345678901234567890, 1e39]}', ONE)
    expected = np.array([16777216, 1.2345679e29, np.inf], np.float32)
    np.testing.assert_array_equal(tensors["x"], expected)


def test_a_signature_name_is_a_string():
    assert json_inputs.signature_name({}) == "serving_default"
    assert json_inputs.signature_name({"signature_name": "ranked"}) == "ranked"
    error = error_of(json_inputs.signature_name, {"signature_name": 1})
    assert "'signature_name' key must be a string value." in error.message


def test_overflowing_decimals_are_refused_and_infinity_is_not():
    body = b'{"instances": [1e400]}'
    tensors, _ = read(body.decode(), ONE)
    assert json_inputs.has_infinity(tensors)
    assert "Number too big" in error_of(json_inputs.refuse_overflow, body).message
    json_inputs.refuse_overflow(b'{"instances": [Infinity, -Infinity, 1e39]}')
    assert read('{"instances": [1e39]}', ONE)[0]["x"].tolist() == [math.inf]


def test_floats_are_written_as_the_shortest_float32_that_reads_back():
    values = [0.1, 3.0, 1 / 3, 1e-7, 1e30, 16777216.0, -0.0, math.nan, math.inf, -math.inf]
    tensor = np.array(values, np.float32)
    text = json_outputs.write_outputs({"y": tensor}, "columnar")
    assert "0.1, 3.0, 0.33333334, 1e-7, 1e+30, 16777216.0, -0.0, NaN, Infinity, -Inf" in text
    np.testing.assert_array_equal(np.array(json.loads(text)["outputs"], np.float32), tensor)


@pytest.mark.parametrize("form", ["row", "columnar"])
@pytest.mark.parametrize("size", [3, 3000])
def test_large_answers_are_those_of_small_ones(form, size):
    """A fast writer takes large tensors without NaN; both must write the same numbers."""
    random = np.random.Generator(np.random.PCG64(0))
    y = random.standard_normal((size, 4)).astype(np.float32) * np.float32(10) ** random.integers(
        -9, 9, (size, 4)
    )
    with_nan = y.copy()
    with_nan[1, 2] = np.nan
    name = "predictions" if form == "row" else "outputs"
    for tensor in (y, with_nan, (1e6 * y).astype(np.int64)):
        answer = json.loads(json_outputs.write_outputs({"y": tensor}, form))[name]
        np.testing.assert_array_equal(np.array(answer, tensor.dtype), tensor)


def test_answers_lose_the_name_of_a_single_output_only():
    y = np.array([[1, 2], [3, 4]], np.int64)
    label = np.array([b"a", b'"\xc3\xa9'], object)

    def write(*arguments):
        return json.loads(json_outputs.write_outputs(*arguments))

    assert write({"y": y}, "row") == {"predictions": [[1, 2], [3, 4]]}
    assert write({"y": y}, "columnar") == {"outputs": [[1, 2], [3, 4]]}
    assert write({"y": y, "label": label}, "row") == {
        "predictions": [{"y": [1, 2], "label": "a"}, {"y": [3, 4], "label": '"é'}]
    }
    assert write({"y": y, "label": label}, "columnar") == {
        "outputs": {"y": [[1, 2], [3, 4]], "label": ["a", '"é']}
    }
    assert write({"y": np.zeros((2, 0, 3), np.float32)}, "columnar") == {"outputs": [[], []]}
    assert write({"y": np.array(True)}, "columnar") == {"outputs": True}


def test_an_output_is_base64_by_its_suffix_also_where_its_name_is_left_out():
    tensor = np.array([b"\xff"], object)
    text = json_outputs.write_outputs({"image_bytes": tensor}, "row")
    assert json.loads(text) == {"predictions": [{"b64": "/w=="}]}


def test_uneven_or_scalar_outputs_fail_in_row_format_only():
    uneven = {"a": np.zeros(2), "b": np.zeros(3)}
    assert (
        "inconsistent batch size: 3 expecting: 2"
        in error_of(json_outputs.write_outputs, uneven, "row").message
    )
    assert (
        "has no shape information"
        in error_of(json_outputs.write_outputs, {"a": np.array(1.0)}, "row").message
    )
    assert json.loads(json_outputs.write_outputs(uneven, "columnar"))
