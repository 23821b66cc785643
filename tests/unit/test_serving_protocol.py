"""JSON ↔ tensors as TensorFlow Serving maps them, and a model's versions, without TensorFlow."""

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest

from graftflow.errors import InputError
from graftflow.serving import json_inputs, json_outputs
from graftflow.serving.model_store import ModelStore, status_json
from graftflow.serving.server import parse_flags
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
        ('{"instances": [16777217]}', ONE, "to float without loss of precision."),
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
        ('{"instances": [1]}', {"x": "complex64"}, "to type: complex64"),
        ("[" * 100_000, ONE, "JSON Parse error"),
        ('{"instances": ' + "[" * 900 + "]" * 900 + "}", ONE, ""),
        ('{"instances": [' + "9" * 5000 + "]}", ONE, "Number too big"),
    ],
)
def test_a_bad_request_is_told_in_tensorflow_servings_words(text, dtypes, message):
    error = error_of(read, text, dtypes)
    assert message in error.message
    assert len(error.message) < 600
    assert HTTP_STATUS[error.code] == (501 if "complex" in message else 400)


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
    assert "0.1, 3.0, 0.33333334, 1e-07, 1e+30, 1.6777216e+07, -0.0, NaN, Infinity, -Inf" in text
    np.testing.assert_array_equal(np.array(json.loads(text)["outputs"], np.float32), tensor)


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


class Version:
    """Stands in for a loaded SavedModel."""

    def __init__(self, number: int, path: Path) -> None:
        if (path / "odd").exists():
            raise RuntimeError("never seen before")
        if (path / "broken").exists():
            raise ServingError(Code.DATA_LOSS, "it is broken")
        self.number = number


def store_of(tmp_path, *numbers):
    for number in numbers:
        (tmp_path / number).mkdir()
    store = ModelStore("toy", tmp_path, Version)  # type: ignore[arg-type]
    store.poll()
    return store


def states(store):
    return {s.number: s.state for s in store.statuses("toy")}


def test_versions_sort_as_numbers_and_other_folders_are_left_alone(tmp_path):
    store = store_of(tmp_path, "9", "10", ".11.x.partial", "12a", "-13")
    assert store.get("toy").number == 10
    assert states(store) == {10: "AVAILABLE"}


def test_a_new_version_takes_over_and_the_old_one_ends(tmp_path):
    store = store_of(tmp_path, "1")
    old = store.get("toy")
    (tmp_path / "2").mkdir()
    store.poll()
    assert store.get("toy").number == 2
    assert old.number == 1
    assert states(store) == {2: "AVAILABLE", 1: "END"}
    message = error_of(store.get, "toy", 1).message
    assert message == "Servable not found for request: Specific(toy, 1)"


def test_a_broken_version_leaves_the_good_one_and_is_tried_again_once_it_changes(tmp_path):
    store = store_of(tmp_path, "1")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "broken").touch()
    store.poll()
    assert store.get("toy").number == 1
    assert status_json(store.statuses("toy", 2))["model_version_status"] == [
        {
            "version": "2",
            "state": "END",
            "status": {"error_code": "DATA_LOSS", "error_message": "it is broken"},
        }
    ]
    (tmp_path / "2" / "broken").unlink()
    store.poll()
    assert store.get("toy").number == 2


def test_an_unforeseen_failure_is_a_status_too(tmp_path):
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "odd").touch()
    store = store_of(tmp_path, "1")
    status = store.statuses("toy", 2)[0]
    assert (status.code, status.message) == (Code.INTERNAL, "RuntimeError: never seen before")
    assert store.get("toy").number == 1


def test_a_server_that_starts_on_a_broken_version_serves_the_one_before(tmp_path):
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "broken").touch()
    store = store_of(tmp_path, "1")
    assert states(store) == {2: "END", 1: "AVAILABLE"}


def test_a_removed_version_gives_way_but_an_emptied_base_path_unloads_nothing(tmp_path):
    store = store_of(tmp_path, "1", "2")
    (tmp_path / "2").rmdir()
    store.poll()
    assert store.get("toy").number == 1
    (tmp_path / "1").rmdir()
    store.poll()
    assert store.get("toy").number == 1


def test_an_unknown_model_is_not_found(tmp_path):
    store = store_of(tmp_path)
    assert error_of(store.get, "toy").message == "Servable not found for request: Latest(toy)"
    error = error_of(store.statuses, "other")
    assert error.message == "Could not find any versions of model other"
    assert HTTP_STATUS[error.code] == 404


def test_flags_are_tensorflow_servings(tmp_path):
    options = parse_flags(["--rest_api_port=1234", "--model_base_path", str(tmp_path)])
    assert (options.port, options.host) == (1234, "127.0.0.1")
    assert (options.model_name, options.base_path) == ("graftflow", tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--model_base_path=m", "--rest_api_port=0"],
        ["--model_base_path=m", "--rest_api_port=x"],
        ["--model_base_path=m", "--rest_api_port=65536"],
        ["--model_base_path=m", "--model_name=../x"],
        ["--model_base_path=m", "--file_system_poll_wait_seconds=-1"],
        ["--model_base_path=m", "--unknown=1"],
        [f"--model_base_path={__file__}"],
    ],
)
def test_a_bad_flag_is_refused_with_one_line(flags):
    with pytest.raises(InputError) as caught:
        parse_flags(flags)
    assert "\n" not in str(caught.value)
