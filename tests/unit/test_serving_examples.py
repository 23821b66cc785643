"""Classify, Regress and MultiInference: JSON ↔ examples ↔ results, on real SavedModels of both kinds."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorflow.core.example import example_pb2
from tensorflow_serving.apis import inference_pb2, input_pb2

from graftflow.serving import classifications, examples, json_inputs
from graftflow.serving.classifications import CLASSIFY_METHOD, REGRESS_METHOD
from graftflow.serving.status import HTTP_STATUS, Code, ServingError
from tests.unit.example_models import LoadedModel, load_model, save_graph_model, save_module

LARGEST = 2**63 - 1


@pytest.fixture(scope="module")
def graph_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model of TensorFlow 1's kind."""
    path = tmp_path_factory.mktemp("models") / "1"
    save_graph_model(path)
    return load_model(path)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model of TensorFlow 2."""
    path: Path = tmp_path_factory.mktemp("models") / "2"
    save_module(path)
    return load_model(path)


def read(text):
    return examples.read_examples(json_inputs.parse_object(text.encode()))


def features(text):
    """The features of the only example of a request whose only example is ``text``."""
    (example,) = read(f'{{"examples": [{text}]}}').example_list.examples
    return example.features.feature


def values(feature):
    kind = feature.WhichOneof("kind")
    return kind, list(getattr(feature, kind).value)


def error_of(call, *arguments, **named):
    with pytest.raises(ServingError) as caught:
        call(*arguments, **named)
    return caught.value


def classify(model, name, text, **options):
    """All steps of a Classify request, as a server takes them."""
    definition = classifications.find_signature(model.definitions, name)
    call = classifications.classification_request(definition, **options)
    tensor = examples.serialized_examples(read(text))
    outputs = model.run(name or "serving_default", {call.input_key: tensor})
    return classifications.classification_result({k: outputs[k] for k in call.output_keys}, len(tensor))


def regress(model, name, text, **options):
    """All steps of a Regress request."""
    definition = classifications.find_signature(model.definitions, name)
    call = classifications.regression_request(definition, **options)
    tensor = examples.serialized_examples(read(text))
    outputs = model.run(name, {call.input_key: tensor})
    return classifications.regression_result({k: outputs[k] for k in call.output_keys}, len(tensor))


def multi_inference_request(text, *tasks, model="toy"):
    request = inference_pb2.MultiInferenceRequest(input=read(text))
    for signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = model, signature
    return request


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2", ("int64_list", [2])),
        ("2.0", ("float_list", [2.0])),
        ("2e0", ("float_list", [2.0])),
        ("true", ("int64_list", [1])),
        ("[1, true, false]", ("int64_list", [1, 1, 0])),
        ("[1.5, -Infinity]", ("float_list", [1.5, -math.inf])),
        (f"[{LARGEST}, {-LARGEST - 1}]", ("int64_list", [LARGEST, -LARGEST - 1])),
        ("[1e39, -1e39]", ("float_list", [math.inf, -math.inf])),
        ("[0.5, 100000000000000000000]", ("float_list", [0.5, np.float32(1e20)])),
        ('"é"', ("bytes_list", ["é".encode()])),
        ('["a", {"b64": "/wA="}, {"b64": "/wA"}]', ("bytes_list", [b"a", b"\xff\x00", b"\xff\x00"])),
    ],
)
def test_the_first_value_decides_the_kind_of_a_feature(value, expected):
    assert values(features(f'{{"x": {value}}}')["x"]) == expected


def test_a_nan_stays_and_an_empty_list_is_a_feature_of_no_kind():
    found = features('{"x": [NaN], "empty": []}')
    assert math.isnan(found["x"].float_list.value[0])
    assert set(found) == {"x", "empty"}
    assert found["empty"].WhichOneof("kind") is None


def test_a_context_makes_another_kind_of_input_even_when_it_is_empty():
    for text in ('{"x": 1}', "{}"):
        request_input = read(f'{{"context": {text}, "examples": [{{"y": "a"}}, {{}}]}}')
        assert request_input.WhichOneof("kind") == "example_list_with_context"
        assert request_input.example_list_with_context.HasField("context")
        assert len(request_input.example_list_with_context.examples) == 2
    assert read('{"examples": [{}]}').WhichOneof("kind") == "example_list"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "{} When method is classify, key 'examples' is expected and was not found"),
        ('{"instances": [1]}', "When method is classify, key 'examples' is expected and was not found"),
        ('{"examples": {"x": 1}}', "Expecting 'examples' value to be an list/array"),
        ('{"examples": []}', "'examples' value is an empty array"),
        ('{"examples": [1]}', "Example must be JSON object but got JSON Number"),
        ('{"examples": [[{"x": 1}]]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [null]}', "Example must be JSON object but got JSON Null"),
        ('{"context": [], "examples": [{}]}', "Example must be JSON object but got JSON Array"),
        ('{"context": {"x": null}}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [1, null]}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [[1]]}]}', "Feature: x has element with unexpected JSON type: Array"),
        ('{"examples": [{"x": {"y": 1}}]}', "Feature: x has element with unexpected JSON type: Object"),
        ('{"examples": [{"x": {"b64": 1}}]}', "Feature: x has element with unexpected JSON type: Object"),
        ('{"examples": [{"x": [10, 10.0]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": [1.0, 1]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples": [{"x": [1.0, true]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples": [{"x": ["a", 1]}]}', "Unexpected element type in feature: x expecting type: bytes"),
        ('{"examples": [{"x": [1, "a"]}]}', "Unexpected element type in feature: x expecting type: int64"),
        (f'{{"examples": [{{"x": {LARGEST + 1}}}]}}', "x has uint64_t element. Only int64_t is supported."),
        ('{"examples": [{"x": {"b64": "*"}}]}', "Unable to base64 decode"),
        ('{"examples": [{"x": "\\ud800"}]}', "The surrogate pair in string is invalid."),
        ('{"examples": [{"\\ud800": 1}]}', "The surrogate pair in string is invalid."),
        ('{"examples": [{"x": [' + "9" * 400 + "]}]}", "Number too big to be stored in double."),
        ('{"examples": [{"x": ' + "[" * 900 + "]" * 900 + "}]}", "unexpected JSON type: Array"),
        ('{"example": ' + "[" * 900 + "]" * 900 + "}", ""),
    ],
)
def test_a_bad_request_is_told_in_tensorflow_servings_words(text, message):
    error = error_of(read, text)
    assert message in error.message
    assert error.code is Code.INVALID_ARGUMENT
    assert len(error.message) < 600


def test_infinities_are_found_wherever_they_are():
    assert examples.has_infinity(read('{"examples": [{"x": 1.0}, {"y": [1.0, 1e400]}]}'))
    assert examples.has_infinity(read('{"context": {"x": -Infinity}, "examples": [{}]}'))
    assert not examples.has_infinity(read('{"context": {"x": [NaN, 1e38]}, "examples": [{"y": "a"}]}'))
    assert not examples.has_infinity(input_pb2.Input())


def test_the_context_is_merged_and_an_examples_own_feature_counts():
    tensor = examples.serialized_examples(
        read('{"context": {"x": 1.0, "y": 2}, "examples": [{"x": 5.0}, {"z": "a"}]}')
    )
    assert (tensor.shape, tensor.dtype) == ((2,), np.object_)
    first, second = (example_pb2.Example.FromString(text).features.feature for text in tensor)
    assert values(first["x"]) == ("float_list", [5.0])
    assert values(second["x"]) == ("float_list", [1.0])
    assert values(second["y"]) == ("int64_list", [2])
    assert values(second["z"]) == ("bytes_list", [b"a"])
    assert set(first) == {"x", "y"}


def test_a_request_without_examples_is_empty():
    empty = input_pb2.Input()
    only_context = input_pb2.Input()
    only_context.example_list_with_context.context.features.feature["x"].float_list.value.append(1)
    empty_list = input_pb2.Input()
    empty_list.example_list.SetInParent()
    for request_input in (empty, only_context, empty_list):
        error = error_of(examples.serialized_examples, request_input)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "Input is empty.")


def test_classify_answers_label_and_score_pairs(graph_model):
    text = '{"context": {"x": 1.0}, "examples": [{"x": 2.0}, {}, {"x": NaN}]}'
    expected = [[["two", 3.0], ["drei ✓", 4.0]], [["two", 2.5], ["drei ✓", 3.5]]]
    for name in ("", "serving_default", "predict"):
        answer = classifications.write_classifications(classify(graph_model, name, text))
        assert json.loads(answer)["results"][:2] == expected
        assert '["two", NaN]' in answer


def test_without_scores_they_are_zero_and_without_classes_labels_are_empty(graph_model):
    text = '{"examples": [{"x": 2.0}]}'
    labels = classifications.write_classifications(classify(graph_model, "classes_only", text))
    scores = classifications.write_classifications(classify(graph_model, "scores_only", text))
    assert json.loads(labels) == {"results": [[["two", 0.0], ["drei ✓", 0.0]]]}
    assert json.loads(scores) == {"results": [[["", 3.0], ["", 4.0]]]}


@pytest.mark.parametrize(("name", "added"), [("regress", 2), ("regress_flat", 3)])
def test_regress_answers_one_number_an_example(graph_model, name, added):
    result = regress(graph_model, name, '{"examples": [{"x": 1.0}, {"x": 0.2}, {"x": 1e39}]}')
    answer = classifications.write_regressions(result)
    assert answer.startswith(f'{{"results": [{added}.5, {added}.1, Infinity]}}')


def test_a_model_of_tensorflow_2_answers_unless_method_names_are_checked(module):
    text = '{"examples": [{"x": 0.25}]}'
    answer = classifications.write_classifications(classify(module, "classify", text))
    assert json.loads(answer) == {"results": [[["no", 0.75], ["yes", 0.25]]]}
    assert json.loads(classifications.write_regressions(regress(module, "regress", text))) == {
        "results": [0.5]
    }
    for call, name, method in ((classify, "classify", CLASSIFY_METHOD), (regress, "regress", REGRESS_METHOD)):
        message = error_of(call, module, name, text, check_method_name=True).message
        assert message.endswith(f"method_name to be {method}. Was: tensorflow/serving/predict")


def test_a_model_saved_for_its_methods_passes_the_check_of_their_names(graph_model):
    text = '{"examples": [{"x": 2.0}]}'
    assert classify(graph_model, "scores_only", text, check_method_name=True).classifications
    assert regress(graph_model, "regress", text, check_method_name=True).regressions


@pytest.mark.parametrize(
    ("call", "name", "message"),
    [
        (classify, "absent", "No signature was found with the name: absent"),
        (regress, "absent", "No signature was found with the name: absent"),
        (classify, "two_inputs", "Expected one input Tensor."),
        (regress, "two_inputs", "Expected one input Tensor."),
        (classify, "three_outputs", "Expected one or two output Tensors, found 3"),
        (regress, "serving_default", "Expected one output Tensor."),
        (classify, "named_x", "No classification inputs found in SignatureDef: inputs {"),
        (classify, "no_known_output", 'to contain at least one of "classes" or "scores". Signature was: '),
        (classify, "regress", 'to contain at least one of "classes" or "scores". Signature was: '),
        (regress, "renamed", "No regression outputs found in SignatureDef: inputs {"),
        (classify, "flat_scores", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        (regress, "wide", "shape to be either [batch_size] or [batch_size, 1] but got [2,2]"),
    ],
)
def test_a_signature_that_does_not_fit_is_an_invalid_argument(graph_model, call, name, message):
    error = error_of(call, graph_model, name, '{"examples": [{"x": 1.0}, {}]}')
    assert message in error.message
    assert (error.code, HTTP_STATUS[error.code]) == (Code.INVALID_ARGUMENT, 400)


STRINGS = np.array([[b"a", b"b"]], np.object_)
FLOATS = np.zeros((1, 2), np.float32)


@pytest.mark.parametrize(
    ("outputs", "num_examples", "message"),
    [
        ({"classes": FLOATS}, 1, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ({"scores": FLOATS.astype(float)}, 1, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ({"scores": FLOATS.astype(np.int64)}, 1, "Expected scores Tensor of DT_FLOAT. Got: DT_INT64"),
        ({"classes": STRINGS}, 2, "Expected classes output batch size of 2. Got: 1"),
        ({"scores": FLOATS}, 2, "Expected scores output batch size of 2. Got: 1"),
        ({"scores": FLOATS[0]}, 2, "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ({"classes": b"a"}, 1, "Expected Tensor shape: [batch_size num_classes] but got []"),
        (
            {"classes": STRINGS, "scores": FLOATS[:, :1]},
            1,
            "Tensors class and score should match in dim_size(1). Got 2 vs. 1",
        ),
    ],
)
def test_classes_and_scores_have_their_shapes_and_dtypes(outputs, num_examples, message):
    error = error_of(classifications.classification_result, outputs, num_examples)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            np.float32(1),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []",
        ),
        (np.zeros(3, np.float32), "Input batch size did not match output batch size: 2 vs. 3"),
        (np.zeros(2), "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ],
)
def test_regressions_have_their_shape_and_dtype(output, message):
    error = error_of(classifications.regression_result, {"outputs": output}, 2)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


def test_a_label_that_is_no_text_is_still_answered():
    labels = np.array([[b"\xff", b'"']], np.object_)
    result = classifications.classification_result({"classes": labels}, 1)
    assert json.loads(classifications.write_classifications(result)) == {
        "results": [[["�", 0.0], ['"', 0.0]]]
    }


def test_an_empty_result_has_no_json():
    nothing = np.zeros((0, 2), np.float32)
    empty = classifications.classification_result({"scores": nothing}, 0)
    message = error_of(classifications.write_classifications, empty).message
    assert message == "Cannot convert empty ClassificationResults to JSON"
    empty = classifications.regression_result({"outputs": nothing[:, 0]}, 0)
    message = error_of(classifications.write_regressions, empty).message
    assert message == "Cannot convert empty RegressionResults to JSON"


def test_multi_inference_answers_every_task_in_order(graph_model):
    request = multi_inference_request(
        '{"examples": [{"x": 2.0}, {"x": 4.0}]}',
        ("regress", REGRESS_METHOD),
        ("", CLASSIFY_METHOD),
        ("regress_flat", REGRESS_METHOD),
    )
    assert classifications.multi_inference_model(request).name == "toy"
    tasks = classifications.check_multi_inference(request, graph_model.definitions, check_method_name=True)
    tensor = examples.serialized_examples(request.input)
    outputs = [graph_model.run(task.signature, {task.call.input_key: tensor}) for task in tasks]
    response = classifications.multi_inference_response(
        tasks, outputs, len(tensor), model_name="toy", version=7
    )
    first, second, third = response.results
    assert [r.value for r in first.regression_result.regressions] == [3.0, 4.0]
    assert [r.value for r in third.regression_result.regressions] == [4.0, 5.0]
    pairs = [[(c.label, c.score) for c in r.classes] for r in second.classification_result.classifications]
    assert pairs == [[("two", 3.0), ("drei ✓", 4.0)], [("two", 4.0), ("drei ✓", 5.0)]]
    assert [(r.model_spec.name, r.model_spec.signature_name) for r in response.results] == [
        ("toy", "regress"),
        ("toy", "serving_default"),
        ("toy", "regress_flat"),
    ]
    assert {r.model_spec.version.value for r in response.results} == {7}


@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        (
            [("regress", REGRESS_METHOD), ("regress", REGRESS_METHOD)],
            Code.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: regress",
        ),
        (
            [("", CLASSIFY_METHOD), ("serving_default", CLASSIFY_METHOD)],
            Code.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: serving_default",
        ),
        (
            [("absent", REGRESS_METHOD)],
            Code.INVALID_ARGUMENT,
            "Requested signature not found in model graph: absent",
        ),
        (
            [("predict", "tensorflow/serving/predict")],
            Code.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (
            [("regress", REGRESS_METHOD), ("other_input", REGRESS_METHOD)],
            Code.INVALID_ARGUMENT,
            "Input tensor must be the same for all Signatures.",
        ),
        ([("serving_default", REGRESS_METHOD)], Code.INVALID_ARGUMENT, "Expected one output Tensor."),
    ],
)
def test_multi_inference_refuses_tasks_that_do_not_go_together(graph_model, tasks, code, message):
    request = multi_inference_request('{"examples": [{}]}', *tasks)
    error = error_of(classifications.check_multi_inference, request, graph_model.definitions)
    assert (error.code, error.message) == (code, message)


def test_multi_inference_asks_one_model_by_name(graph_model):
    def refuse(request):
        return error_of(classifications.check_multi_inference, request, graph_model.definitions).message

    tasks = [("regress", REGRESS_METHOD), ("regress_flat", REGRESS_METHOD)]
    request = multi_inference_request('{"examples": [{}]}', *tasks)
    request.tasks[1].model_spec.name = "other"
    assert refuse(request) == "All ModelSpecs in a MultiInferenceRequest must access the same model name."
    request.tasks[1].model_spec.name = ""
    assert refuse(request) == "Found ModelSpec with an empty model name."
    unnamed = multi_inference_request('{"examples": [{}]}', *tasks, model="")
    for request in (inference_pb2.MultiInferenceRequest(), unnamed):
        error = error_of(classifications.multi_inference_model, request)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")


def test_multi_inference_on_a_model_of_tensorflow_2_takes_one_signature(module):
    tasks = [("classify", CLASSIFY_METHOD), ("regress", REGRESS_METHOD)]
    one = multi_inference_request('{"examples": [{}]}', tasks[0])
    both = multi_inference_request('{"examples": [{}]}', *tasks)
    assert len(classifications.check_multi_inference(one, module.definitions)) == 1
    error = error_of(classifications.check_multi_inference, both, module.definitions)
    assert error.message == "Input tensor must be the same for all Signatures."
