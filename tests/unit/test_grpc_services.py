"""The gRPC services of the real server process, by the stubs that clients of TensorFlow Serving use."""

import logging
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from graftflow.serving.classifications import CLASSIFY_METHOD, REGRESS_METHOD
from graftflow.serving.server import somebody_listened
from tests.unit.example_models import PREDICT, save_graph_model
from tests.unit.grpc_calls import (
    SECONDS,
    TYPED_FIELDS,
    classify_request,
    connected,
    example_input,
    failure,
    fill_typed_field,
    models_config,
    multi_request,
    predict_request,
    regress_request,
)
from tests.unit.serving_model import running_server
from tests.unit.tensor_models import RECORDS, TEXTS, every_input, install, save_versions

X = np.array([[1.0, 2.0], [3.0, 4.5]], np.float32)
FOREVER = np.array([2**62])
PYTHON_TEXT = ("Traceback", "Graph execution error", 'File "', "tf.", "Op:", "{{node", "Detected at")


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    return save_versions(tmp_path_factory.getbasetemp() / "tensor_models")


@pytest.fixture(scope="module")
def server(exports, tmp_path_factory):
    """Versions 1 (stable) and 2 (canary) of ``toy``, and ``graph`` of TensorFlow 1; one request at a time."""
    folder = tmp_path_factory.mktemp("grpc")
    for number in (1, 2):
        install(exports / str(number), folder / "toy", number)
    entry = (
        f'base_path: "{folder / "toy"}" model_version_policy {{ all {{}} }} '
        'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
    )
    save_graph_model(folder / "graph" / "1")
    graph = f'base_path: "{folder / "graph"}"'
    (folder / "models.config").write_text(models_config(toy=entry, graph=graph))
    flags = (
        f"--model_config_file={folder / 'models.config'}",
        "--grpc_max_threads=1",
        "--rest_api_timeout_in_ms=1000",
    )
    with running_server(None, folder / "log", *flags) as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def stubs(server):
    with connected(server.address) as found:
        yield found


def test_the_newest_version_answers_and_says_who_it_is(stubs):
    answer = stubs.prediction.Predict(predict_request({"x": X}), timeout=SECONDS)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("toy", 2)
    assert answer.model_spec.signature_name == "serving_default"
    assert list(answer.outputs["y"].float_val) == [2.0, 4.0, 6.0, 9.0]
    assert [d.size for d in answer.outputs["y"].tensor_shape.dim] == [2, 2]


@pytest.mark.parametrize(
    ("spec", "number"), [({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)]
)
def test_a_version_answers_by_its_number_and_by_its_label(stubs, spec, number):
    answer = stubs.prediction.Predict(predict_request({"x": X}, **spec), timeout=SECONDS)
    assert answer.model_spec.version.value == number
    assert answer.model_spec.version_label == ""
    assert list(answer.outputs["total"].float_val) == [3.0 * number, 7.5 * number]


@pytest.mark.parametrize("typed", [False, True])
def test_every_dtype_goes_in_either_form_and_comes_out_in_the_typed_fields(stubs, typed):
    import tensorflow as tf

    rows = every_input()
    protos = {name: tf.make_tensor_proto(row[:0]) for name, row in rows.items()}
    for name, row in rows.items():
        protos[name].tensor_shape.dim[0].size = len(row)
        if typed:
            fill_typed_field(protos[name], row)
        else:
            lengths = bytes(len(text) for text in TEXTS)
            packed = lengths + b"".join(TEXTS) if name == "string" else row.tobytes()
            protos[name].tensor_content = packed
    answer = stubs.prediction.Predict(predict_request(protos, "every"), timeout=SECONDS)
    assert set(answer.outputs) == {f"{name}_out" for name in rows}
    for name, row in rows.items():
        proto = answer.outputs[f"{name}_out"]
        assert (proto.dtype, proto.tensor_content) == (protos[name].dtype, b"")
        filled = {f.name for f, _ in proto.ListFields()} - {"dtype", "tensor_shape"}
        assert filled == {TYPED_FIELDS[name]}
        came = tf.make_ndarray(proto)
        assert came.dtype == row.dtype
        assert came.tolist() == row.tolist() if name == "string" else came.tobytes() == row.tobytes()


def test_empty_tensors_of_every_dtype_come_back_empty(stubs):
    rows = {name: row[:0] for name, row in every_input().items()}
    import tensorflow as tf

    protos = {name: tf.make_tensor_proto(row, shape=(0,), dtype=name) for name, row in rows.items()}
    for came in stubs.predict(protos, "every").values():
        assert came.shape == (0,)


def test_a_scalar_has_no_dimensions(stubs):
    came = stubs.predict({"x": X[0]}, "scalar")["sum"]
    assert (came.shape, came.item()) == ((), 3.0)


def test_one_value_fills_a_shape(stubs):
    """``tf.make_tensor_proto`` writes a constant tensor as one value."""
    import tensorflow as tf

    proto = tf.make_tensor_proto(0.0, tf.float32, (3, 2))
    del proto.float_val[:]
    proto.float_val.append(1.5)
    assert stubs.predict({"x": proto}, "", "total", version=1)["total"].tolist() == [3.0, 3.0, 3.0]


def test_the_output_filter_gives_what_it_names(stubs):
    assert list(stubs.predict({"x": X}, "", "total")) == ["total"]
    assert set(stubs.predict({"x": X}, "", "y", "total")) == {"total", "y"}


@pytest.mark.parametrize(
    ("inputs", "signature", "outputs", "spec", "code", "message"),
    [
        ({"x": X}, "no", (), {}, "FAILED_PRECONDITION", 'Serving signature key "no" not found.'),
        ({"x": X}, "", ("z",), {}, "INVALID_ARGUMENT", "output tensor alias not found in signature: z "
         "Outputs expected to be in the set {size,total,y}."),
        ({"x": X}, "", ("y", "y"), {}, "INVALID_ARGUMENT", "duplicate output tensor alias: y"),
        ({}, "", (), {}, "INVALID_ARGUMENT", "input size does not match signature: 0!=1 len({}) != len({x}). "
         "Sent extra: {}. Missing but required: {x}."),
        ({"x": X, "y": X}, "", (), {}, "INVALID_ARGUMENT", "input size does not match signature: 2!=1 "
         "len({x,y}) != len({x}). Sent extra: {y}. Missing but required: {}."),
        ({"z": X}, "", (), {}, "INVALID_ARGUMENT", "input tensor alias not found in signature: z. "
         "Inputs expected to be in the set {x}."),
        ({"x": X.astype(np.int32)}, "", (), {}, "INVALID_ARGUMENT", "float but int32 is provided"),
        ({"x": X.astype(np.float64)}, "", (), {}, "INVALID_ARGUMENT", "float but double is provided"),
        ({"x": ["text"]}, "", (), {}, "INVALID_ARGUMENT", "float but string is provided"),
        ({"x": X[:, :1]}, "", (), {}, "INVALID_ARGUMENT", "shape"),
        ({"x": X[0]}, "", (), {}, "INVALID_ARGUMENT", "shape"),
        ({"x": X}, "", (), {"version": 3}, "NOT_FOUND", "Servable not found for request: Specific(toy, 3)"),
        ({"x": X}, "", (), {"name": "other"}, "NOT_FOUND", "Servable not found for request: Latest(other)"),
        ({"x": X}, "", (), {"label": "no"}, "INVALID_ARGUMENT", "Unrecognized servable version label: no"),
        ({"x": X}, "", (), {"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ({"a": [1, 2], "b": [1, 0]}, "divide", (), {}, "INVALID_ARGUMENT", "Integer division by zero"),
        ({"image": [b"junk"]}, "decode", (), {}, "INVALID_ARGUMENT", "Unknown image file format"),
        ({"inputs": [b"\xff\xff"]}, "classify", (), {}, "INVALID_ARGUMENT", "Could not parse example input"),
    ],
)  # fmt: skip
def test_a_bad_predict_gets_its_own_status(stubs, inputs, signature, outputs, spec, code, message):
    import tensorflow as tf

    protos = {k: tf.make_tensor_proto(v, tf.int32 if k in "ab" else None) for k, v in inputs.items()}
    got, said = failure(stubs.predict, protos, signature, *outputs, **spec)
    assert got == code
    assert message in said
    assert not any(text in said for text in PYTHON_TEXT)
    assert stubs.predict({"x": X})["y"].shape == (2, 2)  # and it serves on


def test_a_request_without_a_model_spec_is_refused(stubs):
    for call, request in (
        (stubs.prediction.Predict, predict_pb2.PredictRequest()),
        (stubs.prediction.Classify, classification_pb2.ClassificationRequest()),
        (stubs.prediction.GetModelMetadata, get_model_metadata_pb2.GetModelMetadataRequest()),
        (stubs.models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()),
    ):
        assert failure(call, request, timeout=SECONDS) == ("INVALID_ARGUMENT", "Missing ModelSpec")


@pytest.mark.parametrize(
    ("shape", "floats", "content"),
    [
        ((2, 2), [1.0] * 5, b""),
        ((2**31, 2**31), [], b""),
        ((2**20, 2**10), [1.0], b""),
        ((-1, 2), [1.0, 2.0], b""),
        ((2, 2), [], b"\0" * 15),
        ((2, 2), [], b"\0" * 20),
    ],
)
def test_a_shape_that_its_values_do_not_fill_is_refused(stubs, shape, floats, content):
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto(dtype=1, float_val=floats, tensor_content=content)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    assert failure(stubs.predict, {"x": proto}) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_a_long_message_that_is_no_ascii_still_brings_its_code(stubs):
    code, said = failure(stubs.predict, {"x": X}, "✓" * 20_000)
    assert code == "FAILED_PRECONDITION"
    assert said.startswith('Serving signature key "✓✓')


def test_classify_regress_and_multi_inference_agree_with_predict(stubs):
    serialized = [e.SerializeToString() for e in example_input(RECORDS).example_list.examples]
    for version in (1, 2):
        scores = stubs.predict({"inputs": serialized}, "classify", version=version)["scores"]
        classified = stubs.prediction.Classify(classify_request(RECORDS, version=version), timeout=SECONDS)
        assert (classified.model_spec.version.value, classified.model_spec.signature_name) == (
            version,
            "classify",
        )
        rows = [[(c.label, c.score) for c in row.classes] for row in classified.result.classifications]
        assert rows == [[("no", a), ("ja ✓", b)] for a, b in scores.tolist()]
        numbers = stubs.predict({"inputs": serialized}, "regress", version=version)["outputs"]
        regressed = stubs.prediction.Regress(regress_request(RECORDS, version=version), timeout=SECONDS)
        assert (
            [r.value for r in regressed.result.regressions]
            == numbers[:, 0].tolist()
            == [version * r.get("x", 0.0) for r in RECORDS]
        )
    request = multi_request(RECORDS, ("toy", None, "regress", REGRESS_METHOD))
    request.tasks[0].model_spec.version_label = "stable"
    answer = stubs.prediction.MultiInference(request, timeout=SECONDS).results
    assert [r.model_spec.version.value for r in answer] == [1]
    assert [r.value for r in answer[0].regression_result.regressions] == [2.0, 0.0, -3.5]


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (classify_request(RECORDS, "no"), "INVALID_ARGUMENT", "No signature was found with the name: no"),
        (classify_request(RECORDS, ""), "INVALID_ARGUMENT", "Expected one or two output Tensors, found 3"),
        (classify_request(RECORDS, "regress"), "INVALID_ARGUMENT", "contain at least one of"),
        (classify_request([]), "INVALID_ARGUMENT", "Input is empty"),
        (classify_request(RECORDS, version=9), "NOT_FOUND", "Specific(toy, 9)"),
        (classify_request(RECORDS, name="other"), "NOT_FOUND", "Latest(other)"),
        (classify_request(RECORDS, label="no"), "INVALID_ARGUMENT", "Unrecognized servable version label: no"),
        (regress_request(RECORDS, "no"), "INVALID_ARGUMENT", "No signature was found with the name: no"),
        (regress_request(RECORDS, "classify"), "INVALID_ARGUMENT", "Expected one output Tensor."),
        (regress_request([]), "INVALID_ARGUMENT", "Input is empty"),
    ],
)  # fmt: skip
def test_bad_examples_get_their_own_status(stubs, request_, code, message):
    kind = "Classify" if isinstance(request_, classification_pb2.ClassificationRequest) else "Regress"
    got, said = failure(getattr(stubs.prediction, kind), request_, timeout=SECONDS)
    assert got == code
    assert message in said


def test_multi_inference_answers_every_task_in_order(stubs):
    """Half of x plus 2 or 3, by two methods on one input."""
    tasks = (("graph", None, "regress", REGRESS_METHOD), ("graph", None, "", CLASSIFY_METHOD))
    regressed, classified = stubs.prediction.MultiInference(
        multi_request(RECORDS, *tasks), timeout=SECONDS
    ).results
    assert [r.value for r in regressed.regression_result.regressions] == [3.0, 2.0, 0.25]
    rows = [[(c.label, c.score) for c in r.classes] for r in classified.classification_result.classifications]
    assert rows[0] == [("two", 3.0), ("drei ✓", 4.0)]
    assert (classified.model_spec.name, classified.model_spec.version.value) == ("graph", 1)
    assert [r.model_spec.signature_name for r in (regressed, classified)] == ["regress", "serving_default"]


@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("graph", 9, "regress", REGRESS_METHOD)], "NOT_FOUND", "Specific(graph, 9)"),
        ([("other", None, "regress", REGRESS_METHOD)], "NOT_FOUND", "Latest(other)"),
        ([("graph", None, "no", REGRESS_METHOD)], "INVALID_ARGUMENT", "not found in model graph: no"),
        ([("graph", None, "regress", PREDICT)], "UNIMPLEMENTED", "Unsupported signature method_name"),
        ([("graph", None, "regress", REGRESS_METHOD)] * 2, "INVALID_ARGUMENT", "Duplicate evaluation"),
        ([("graph", None, "regress", REGRESS_METHOD), ("toy", None, "regress", REGRESS_METHOD)],
         "INVALID_ARGUMENT", "must access the same model name"),
        ([("graph", None, "regress", REGRESS_METHOD), ("graph", None, "other_input", REGRESS_METHOD)],
         "INVALID_ARGUMENT", "Input tensor must be the same"),
    ],
)  # fmt: skip
def test_multi_inference_checks_its_tasks(stubs, tasks, code, message):
    got, said = failure(stubs.prediction.MultiInference, multi_request(RECORDS, *tasks), timeout=SECONDS)
    assert got == code
    assert message in said


def test_metadata_is_what_was_exported(stubs, exports):
    from tensorflow.core.protobuf import saved_model_pb2

    written = saved_model_pb2.SavedModel.FromString((exports / "1" / "saved_model.pb").read_bytes())
    answer = stubs.metadata("signature_def", label="stable")
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("toy", 1)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(found)
    definitions = {k: v for k, v in written.meta_graphs[0].signature_def.items() if not k.startswith("__")}
    assert dict(found.signature_def) == definitions
    assert failure(stubs.metadata) == (
        "INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field",
    )  # fmt: skip
    assert failure(stubs.metadata, "assets") == ("INVALID_ARGUMENT", "Metadata field assets is not supported")
    assert failure(stubs.metadata, "signature_def", version=7)[0] == "NOT_FOUND"


def test_the_status_of_models_is_told(stubs):
    assert stubs.status() == [(2, "AVAILABLE", 0, ""), (1, "AVAILABLE", 0, "")]
    assert stubs.status(version=1) == stubs.status(label="stable") == [(1, "AVAILABLE", 0, "")]
    assert failure(stubs.status, version=5) == ("NOT_FOUND", "Could not find version 5 of model toy")
    assert failure(stubs.status, name="other") == ("NOT_FOUND", "Could not find any versions of model other")
    assert failure(stubs.status, label="no")[0] == "INVALID_ARGUMENT"


def test_health_is_told_for_the_server_and_each_service(server):
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        unknown = health_pb2.HealthCheckRequest(service="unknown")
        assert failure(health.Check, unknown, timeout=SECONDS)[0] == "NOT_FOUND"
        watched = health.Watch(unknown, timeout=SECONDS)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watched.cancel()


@pytest.mark.parametrize(("error", "told"), [("ExecuteBatchError", False), ("UsageError", True)])
def test_a_caller_that_is_gone_before_its_answer_is_no_traceback(error, told):
    from grpc._cython import cygrpc

    raised = getattr(cygrpc, error)("Failed")
    record = logging.makeLogRecord({"exc_info": (type(raised), raised, None)})
    assert somebody_listened(record) is told


def test_work_beyond_its_deadline_is_given_up(stubs):
    for _ in range(2):
        started = time.monotonic()
        code, _ = failure(stubs.predict, {"turns": FOREVER}, "spin", timeout=0.5)
        assert code == "DEADLINE_EXCEEDED"
        stubs.predict({"x": X})  # the only thread is free again
        assert time.monotonic() - started < 3


def test_work_that_is_cancelled_before_it_starts_is_not_begun(stubs):
    """Five requests for ever, each of half a second, on one thread: all end with the first."""
    request = predict_request({"turns": FOREVER}, "spin")
    started = time.monotonic()
    calls = [stubs.prediction.Predict.future(request, timeout=0.6) for _ in range(5)]
    assert {call.exception(SECONDS).code().name for call in calls} == {"DEADLINE_EXCEEDED"}
    stubs.predict({"x": X})
    assert time.monotonic() - started < 2.5


def test_rest_gives_up_after_its_own_time(server, stubs):
    import requests

    started = time.monotonic()
    body = {"inputs": FOREVER.tolist(), "signature_name": "spin"}
    answer = requests.post(f"{server.url}/v1/models/toy:predict", json=body, timeout=SECONDS)
    assert (answer.status_code, list(answer.json())) == (504, ["error"])
    stubs.predict({"x": X})
    assert 0.9 < time.monotonic() - started < 4


def test_a_message_beyond_64_mib_is_refused_and_a_large_one_is_not(stubs):
    code, _ = failure(stubs.predict, {"x": np.zeros((2**23 + 1, 2), np.float32)}, "", "total")
    assert code == "RESOURCE_EXHAUSTED"
    rows = np.arange(2**21, dtype=np.float32).reshape(-1, 2)
    came = stubs.predict({"x": rows}, "", "y", version=1)["y"]
    np.testing.assert_array_equal(came, rows)


def test_the_numbers_are_those_of_the_saved_model_over_rest_and_grpc(server, stubs, exports):
    import requests
    import tensorflow as tf

    x = np.random.default_rng(3).normal(size=(50, 2)).astype(np.float32)
    module = tf.saved_model.load(str(exports / "2"))
    direct = module.signatures["serving_default"](x=tf.constant(x))["total"].numpy()
    by_grpc = stubs.predict({"x": x}, "", "total", version=2)["total"]
    answer = requests.post(
        f"{server.url}/v1/models/toy/versions/2:predict", json={"instances": x.tolist()}, timeout=SECONDS
    )
    by_rest = np.array([row["total"] for row in answer.json()["predictions"]], np.float32)
    np.testing.assert_array_equal(by_grpc, direct)
    np.testing.assert_array_equal(by_rest, direct)
