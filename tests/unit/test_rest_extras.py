"""What the REST API does beside predict, on the real server process: examples, labels, gzip, CORS, metrics."""

import base64
import gzip
import json
import math
import re
import socket

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from graftflow.serving.config_texts import MONITORING_PATH
from tests.unit.grpc_calls import connected, failure, models_config
from tests.unit.serving_model import picture, running_server
from tests.unit.tensor_models import RECORDS, every_input, install, save_versions

SECONDS = 20


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    return save_versions(tmp_path_factory.getbasetemp() / "tensor_models")


@pytest.fixture(scope="module")
def server(exports, tmp_path_factory):
    """Versions 1 (stable) and 2 of ``toy`` with CORS and metrics on; nothing else is asked of it."""
    folder = tmp_path_factory.mktemp("rest")
    for number in (1, 2):
        install(exports / str(number), folder / "toy", number)
    (folder / "broken" / "1").mkdir(parents=True)
    entry = (
        f'base_path: "{folder / "toy"}" model_version_policy {{ all {{}} }} '
        'version_labels { key: "stable" value: 1 }'
    )
    (folder / "models.config").write_text(
        models_config(toy=entry, broken=f'base_path: "{folder / "broken"}"')
    )
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
    flags = (
        f"--model_config_file={folder / 'models.config'}",
        f"--monitoring_config_file={folder / 'monitoring.config'}",
        "--rest_api_enable_cors_support",
    )
    with running_server(None, folder / "log", *flags) as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def plain(exports, tmp_path_factory):
    """A server with no flag but its ports: gRPC off."""
    folder = tmp_path_factory.mktemp("plain")
    install(exports / "1", folder / "toy", 1)
    with running_server(folder / "toy", folder / "log", "--port=0") as running:
        yield running


def post(server, path, body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(f"{server.url}/v1/models/{path}", data=data, headers=headers, timeout=SECONDS)


def metrics(server):
    """Every sample of the metrics, by its name and labels; the parser adds ``_total`` to counters' names."""
    answer = requests.get(server.url + MONITORING_PATH, timeout=SECONDS)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "_total" not in answer.text  # TensorFlow Serving's names have none
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_examples_are_classified_and_regressed_by_version_and_label(server):
    for target, factor in (("toy", 2), ("toy/versions/1", 1), ("toy/labels/stable", 1)):
        x = [factor * record.get("x", 0.0) for record in RECORDS]
        answer = post(server, f"{target}:classify", {"signature_name": "classify", "examples": RECORDS})
        assert answer.json() == {"results": [[["no", 1 - value], ["ja ✓", value]] for value in x]}
        answer = post(server, f"{target}:regress", {"signature_name": "regress", "examples": RECORDS})
        assert answer.json() == {"results": x}


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("toy:classify", {"signature_name": "no", "examples": RECORDS}, 400, "No signature was found"),
        ("toy:regress", {"examples": RECORDS}, 400, "Expected one output Tensor."),
        ("toy:classify", {"signature_name": "classify", "examples": []}, 400, ""),
        ("toy:classify", {"signature_name": "classify"}, 400, "examples"),
        ("toy:classify", {"signature_name": "classify", "examples": [{"x": 2}]}, 400, ""),
        ("toy/labels/no:classify", {"examples": RECORDS}, 400, "Unrecognized servable version label: no"),
        ("toy/versions/3:regress", {"examples": RECORDS}, 404, "Specific(toy, 3)"),
        ("other:classify", {"examples": RECORDS}, 404, "Latest(other)"),
        ("broken:predict", {"instances": [1.0]}, 404, "Latest(broken)"),
    ],
)
def test_bad_examples_are_told(server, path, body, status, error):
    answer = post(server, path, body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert error in answer.json()["error"]


def test_a_broken_model_says_why(server):
    told = requests.get(f"{server.url}/v1/models/broken", timeout=SECONDS).json()
    (version,) = told["model_version_status"]
    assert (version["version"], version["state"]) == ("1", "END")
    assert version["status"]["error_code"] == "NOT_FOUND"
    assert "Could not find SavedModel" in version["status"]["error_message"]


def test_a_label_answers_status_and_metadata(server):
    status = requests.get(f"{server.url}/v1/models/toy/labels/stable", timeout=SECONDS).json()
    assert [s["version"] for s in status["model_version_status"]] == ["1"]
    metadata = requests.get(f"{server.url}/v1/models/toy/labels/stable/metadata", timeout=SECONDS).json()
    assert metadata["model_spec"]["version"] == "1"


def test_a_signature_whose_dtypes_json_has_not_is_refused_with_a_reason(server):
    columns = {name: [] for name in every_input()}
    answer = post(server, "toy:predict", {"signature_name": "every", "inputs": columns})
    assert (answer.status_code, list(answer.json())) == (501, ["error"])
    assert re.search("type: (half|bfloat16|complex64|complex128|uint16)", answer.json()["error"])


def test_nan_and_infinity_go_in_and_out_as_bare_tokens(server):
    body = b'{"instances": [[NaN, 1.0], [Infinity, 0.5], [-Infinity, 1e39]]}'
    answer = post(server, "toy/versions/1:predict", body)
    assert answer.status_code == 200
    compact = answer.text.replace(" ", "").replace("\n", "")
    assert '"y":[NaN,1.0]' in compact
    assert '"y":[Infinity,0.5]' in compact
    assert '"y":[-Infinity,Infinity]' in compact
    rows = answer.json()["predictions"]
    assert math.isnan(rows[0]["total"])
    assert math.isnan(rows[2]["total"])
    assert rows[1]["total"] == math.inf


def test_bytes_are_base64_by_the_name_of_their_output(server):
    encoded = {"b64": base64.b64encode(picture()).decode()}
    (row,) = post(server, "toy:predict", {"signature_name": "decode", "instances": [encoded]}).json()[
        "predictions"
    ]
    assert row["image_bytes"] == encoded


def test_gzip_goes_in_and_comes_out(server):
    rows = np.arange(4000, dtype=np.float32).reshape(-1, 2).tolist()
    body = gzip.compress(json.dumps({"instances": rows}).encode())
    path = "toy/versions/1:predict"
    packed = post(server, path, body, **{"Content-Encoding": "gzip", "Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert int(packed.headers["Content-Length"]) < len(packed.text) / 3
    unpacked = post(server, path, {"instances": rows}, **{"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in unpacked.headers
    assert packed.json() == unpacked.json()
    assert [row["y"] for row in packed.json()["predictions"]] == rows


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"no gzip", "gzip", 400),
        (gzip.compress(b'{"instances": [[1.0, 2.0]]}', mtime=0)[:-9], "gzip", 400),
        (gzip.compress(b'{"instances": [[1.0, 2.0]]}', mtime=0), "br", 400),
        (gzip.compress(b" " * (65 * 2**20)), "gzip", 413),
    ],
)
def test_a_body_that_does_not_unpack_is_refused(server, body, encoding, status):
    answer = post(server, "toy:predict", body, **{"Content-Encoding": encoding})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_pages_of_other_origins_may_read_answers_where_they_are_let(server, plain):
    headers = {
        "Origin": "http://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    url = "/v1/models/toy:predict"
    asked = requests.options(server.url + url, headers=headers, timeout=SECONDS)
    assert asked.status_code == 200
    for answer in (
        asked,
        post(server, "toy:predict", {"instances": [[1.0, 2.0]]}),
        post(server, "toy:predict", b"{"),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert asked.headers["Access-Control-Allow-Headers"] == "Content-Type"
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    refused = requests.options(plain.url + url, headers=headers, timeout=SECONDS)
    assert refused.status_code == 400
    assert not any(name.startswith("Access-Control") for name in refused.headers)


def test_metrics_count_what_was_asked(server):
    count = ":tensorflow:serving:request_count_total"
    before = metrics(server)

    def added(name, **labels):
        key = (name, *sorted(labels.items()))
        return metrics(server).get(key, 0.0) - before.get(key, 0.0)

    for _ in range(3):
        post(server, "toy:predict", {"instances": [[1.0, 2.0]]})
    post(server, "toy:regress", {"signature_name": "regress", "examples": RECORDS})
    post(server, "toy:predict", {"instances": [[1.0]]})
    post(server, "toy/versions/9:predict", {"instances": [[1.0, 2.0]]})
    post(server, "a name from outside:predict", {"instances": [[1.0, 2.0]]})
    with connected(server.address) as stubs:
        for _ in range(2):
            stubs.predict({"x": np.zeros((1, 2), np.float32)})
        failure(stubs.predict, {"x": np.zeros((1, 2), np.int32)})
        failure(stubs.predict, {"x": np.zeros((1, 2), np.float32)}, version=9)
    assert added(count, model_name="toy", status="OK") == 6
    assert added(count, model_name="toy", status="INVALID_ARGUMENT") == 2
    assert added(count, model_name="toy", status="NOT_FOUND") == 2
    assert "from outside" not in str(metrics(server))
    latency = ":tensorflow:serving:request_latency_count"
    assert added(latency, model_name="toy", API="predict", entrypoint="REST") == 3
    assert added(latency, model_name="toy", API="regress", entrypoint="REST") == 1
    assert added(latency, model_name="toy", API="Predict", entrypoint="GRPC") == 2
    assert (
        added(":tensorflow:serving:runtime_latency_count", model_name="toy", API="Predict", runtime="TF1")
        >= 5
    )
    assert added(":tensorflow:core:graph_runs_total") >= 6
    assert metrics(server)[":graftflow:serving:requests_in_flight",] == 0
    loads = {
        dict(key[1:])["status"]: value
        for key, value in before.items()
        if key[0] == ":tensorflow:cc:saved_model:load_attempt_count_total"
    }
    assert loads == {"success": 2, "fail": 1}


def test_metrics_are_off_and_grpc_is_off_where_the_flags_say_so(plain):
    assert requests.get(plain.url + MONITORING_PATH, timeout=SECONDS).status_code == 404
    assert "grpc" not in plain.log()
    host, _, port = plain.address.partition(":")
    with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port)), 5):
        pass
