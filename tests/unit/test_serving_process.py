"""The real server process over the loopback: a small SavedModel, asked as a client would."""

import base64
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import requests

from graftflow.deployment import deploy
from graftflow.errors import InputError
from graftflow.files import sha256_directory, write_json
from graftflow.serving.client import Client, ServerUnreachableError
from tests.unit.serving_model import (
    CLASSES,
    ROOT,
    SIDE,
    picture,
    running_server,
    save_model,
    write_warm_up,
)

RED, BLUE = picture((200, 30, 30)), picture((20, 30, 220), "PNG")


@pytest.fixture(scope="session")
def versions(tmp_path_factory):
    """Exported versions 1 and 2, which disagree about every picture."""
    folder = tmp_path_factory.mktemp("exports")
    for version, scale in (("1", 4.0), ("2", -4.0)):
        save_model(folder / version / version, scale=scale)
        write_warm_up(folder / version / version, "ranked", RED)
        digest = sha256_directory(folder / version / version)
        write_json(folder / version / "export.json", {"version": version, "sha256": digest})
    return folder


@pytest.fixture(scope="session")
def server(versions, tmp_path_factory):
    """A server of version 1 that the tests share and none changes."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(versions / "1" / "1", folder / "toy" / "1")
    with running_server(folder / "toy", folder / "log") as running:
        yield running
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == 0


def encoded(image):
    return {"b64": base64.b64encode(image).decode()}


def post(server, document, path="/v1/models/toy:predict"):
    body = {"data": document} if isinstance(document, bytes) else {"json": document}
    response = requests.post(server.url + path, timeout=20, **body)
    return response.status_code, response.json()


def test_it_says_once_where_it_serves_after_the_warm_up(server):
    lines = server.log().splitlines()
    assert f"serving toy at {server.url} and grpc://{server.address} (stop with Ctrl-C)" == lines[-1]
    assert "version 1: replayed 1 warm-up requests" in lines


def test_pictures_are_decoded_in_the_graph_in_every_format(server):
    status, rows = post(server, {"instances": [encoded(RED), encoded(BLUE)]})
    assert status == 200
    assert [r["label"] for r in rows["predictions"]] == ["red", "blue"]
    assert [r["class_index"] for r in rows["predictions"]] == [1, 0]
    _, named = post(server, {"instances": [{"image_bytes": encoded(i)} for i in (RED, BLUE)]})
    assert named == rows
    for inputs in ([encoded(RED)], {"image_bytes": [encoded(RED)]}):
        _, columns = post(server, {"inputs": inputs}, "/v1/models/toy/versions/1:predict")
        assert columns["outputs"]["probabilities"] == [rows["predictions"][0]["probabilities"]]


def test_raw_pixels_and_encoded_pictures_agree(server):
    pixels = np.tile(np.array([200, 30, 30], np.float32) / 255, (1, SIDE, SIDE, 1))
    client = Client(server.url, "toy")
    by_pixels = client.predict(pixels.tolist(), "pixels")[0]["probabilities"]
    lossless = client.predict([picture(kind="PNG")])[0]["probabilities"]
    np.testing.assert_allclose(by_pixels, lossless, atol=1e-5)


def test_ranked_classes_come_best_first(server):
    red, blue = Client(server.url, "toy").classify_images([RED, BLUE])
    assert [c for c, _ in red] == ["red", "blue"]
    assert [c for c, _ in blue] == ["blue", "red"]
    assert {c for c, _ in red} == set(CLASSES)
    assert abs(sum(s for _, s in red) - 1) < 1e-6


@pytest.mark.parametrize(
    ("path", "document", "status", "error"),
    [
        ("toy:predict", b"{nope", 400, "JSON Parse error"),
        ("toy:predict", b"", 400, "JSON Parse error: The document is empty"),
        ("toy:predict", {"instances": ["x"], "signature_name": "no"}, 400,
         'Serving signature name: "no" not found in signature def'),
        ("toy:predict", {"instances": [{"b64": "anVuaw=="}]}, 400, "Unknown image file format"),
        ("toy:predict", {"instances": [1.0]}, 400, "is not of expected type: string"),
        ("toy:predict", {"inputs": "x"}, 400, ""),
        ("toy:predict", {"instances": [[1.0]], "signature_name": "pixels"}, 400, ""),
        ("toy:predict", b'{"instances": [[[[1e400]]]], "signature_name": "pixels"}', 400,
         "Number too big"),
        ("other:predict", {"instances": ["x"]}, 404,
         "Servable not found for request: Latest(other)"),
        ("toy/versions/9:predict", {"instances": ["x"]}, 404,
         "Servable not found for request: Specific(toy, 9)"),
        ("toy/versions/99999999999999999999:predict", {}, 400, "Failed to convert version"),
        ("toy/labels/stable:predict", {}, 400, "Unrecognized servable version label: stable"),
        ("toy:classify", {}, 400, "key 'examples' is expected"),
        ("toy:explain", {}, 400, "Malformed request: POST /v1/models/toy:explain"),
        ("..%2ftoy:predict", {"instances": ["x"]}, 404, "Latest(../toy)"),
    ],
)  # fmt: skip
def test_a_bad_request_gets_tensorflow_servings_answer(server, path, document, status, error):
    answered, body = post(server, document, f"/v1/models/{path}")
    assert (answered, list(body)) == (status, ["error"])
    assert error in body["error"]
    assert "Traceback" not in body["error"]
    assert "Graph execution error" not in body["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v1/models/other", 404, "Could not find any versions of model other"),
        ("GET", "/v1/models/toy/versions/9", 404, "Could not find version 9 of model toy"),
        ("GET", "/v1/models/other/metadata", 404, "Servable not found for request: Latest(other)"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/models/toy:predict", 400, "Malformed request: GET /v1/models/toy:predict"),
        ("PUT", "/v1/models/toy:predict", 400, "Malformed request: PUT /v1/models/toy:predict"),
        ("GET", "/v1/nothing", 400, "Malformed request: GET /v1/nothing"),
        ("GET", "/", 404, "Not Found: /"),
    ],
)
def test_other_paths_and_methods_get_a_json_error(server, method, path, status, error):
    response = requests.request(method, server.url + path, timeout=20)
    assert response.headers["Content-Type"] == "application/json"
    assert (response.status_code, response.json()) == (status, {"error": error})


def test_status_and_metadata_have_the_protos_form(server):
    assert requests.get(f"{server.url}/v1/models/toy/versions/1", timeout=20).json() == {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    metadata = requests.get(f"{server.url}/v1/models/toy/metadata", timeout=20).json()
    assert metadata["model_spec"] == {"name": "toy", "signature_name": "", "version": "1"}
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "pixels", "ranked"}
    shape = signatures["pixels"]["inputs"]["pixels"]["tensor_shape"]
    assert [d["size"] for d in shape["dim"]] == ["-1", str(SIDE), str(SIDE), "3"]
    assert signatures["ranked"]["method_name"] == "tensorflow/serving/predict"


def test_a_body_beyond_the_limit_is_refused_and_a_large_one_is_not(server):
    status, body = post(server, b" " * (65 * 2**20))
    assert status == 413
    assert "at most 67108864 bytes (64 MiB)" in body["error"]
    status, body = post(server, b" " * (8 * 2**20) + b'{"instances": []}')
    assert status == 400
    assert "No values in 'instances' array" in body["error"]


def test_a_body_in_chunks_is_read(server):
    chunks = iter([b'{"instances": [', b'{"b64": "' + base64.b64encode(RED), b'"}]}'])
    response = requests.post(f"{server.url}/v1/models/toy:predict", data=chunks, timeout=20)
    assert response.json()["predictions"][0]["label"] == "red"


def test_the_client_reports_what_the_server_says(server):
    with pytest.raises(ServerUnreachableError, match="serves no model 'other'"):
        Client(server.url, "other").classify_images([RED])
    with pytest.raises(InputError, match="picture 1 is not a picture"):
        Client(server.url, "toy").classify_images([RED, b"junk"])
    assert Client(server.url, "toy").status()[0]["version"] == "1"


def test_the_command_works_against_the_server(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    command = [sys.executable, "-m", "graftflow.serving.query", str(tmp_path / "red.jpg")]
    done = subprocess.run(
        [*command, "--url", server.url, "--model=toy", "--format=csv", "--top=1"],
        capture_output=True, text=True, timeout=30, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith(f"{tmp_path}/red.jpg,1,red,0.9")


def test_a_port_in_use_is_one_line_before_tensorflow_is_loaded(server, tmp_path):
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "graftflow.serving", f"--rest_api_port={port}",
         f"--model_base_path={tmp_path}"],
        capture_output=True, text=True, timeout=30, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: Cannot listen on 127.0.0.1:{port}: Address already in use. "
        "Choose another --rest_api_port, or stop the server that has this one."
    ]


def test_the_life_of_a_server(versions, tmp_path):
    """Empty store, first version, take-over and a broken version under requests, then a drain."""
    store = tmp_path / "toy"
    with running_server(store, tmp_path / "log") as server:
        assert f"waiting for a version of toy: {store} holds no numbered folder" in server.log()
        status, body = post(server, {"instances": [encoded(RED)]})
        assert (status, body) == (404, {"error": "Servable not found for request: Latest(toy)"})

        deploy(versions / "1", store=str(tmp_path), model_name="toy")
        server.wait(lambda: server.states() == {"1": "AVAILABLE"})

        labels, failures, stop = [], [], threading.Event()

        def ask():
            session = requests.Session()
            while not stop.is_set():
                try:
                    response = session.post(
                        f"{server.url}/v1/models/toy:predict",
                        json={"instances": [encoded(RED)]},
                        timeout=20,
                    )
                    labels.append(response.json()["predictions"][0]["label"])
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            server.wait(lambda: len(labels) > 20)
            deploy(versions / "2", store=str(tmp_path), model_name="toy")
            server.wait(lambda: server.states() == {"2": "AVAILABLE", "1": "END"})
            shutil.copytree(versions / "2" / "2", tmp_path / "broken")
            (tmp_path / "broken" / "variables" / "variables.index").write_bytes(b"broken")
            (tmp_path / "broken").rename(store / "3")
            server.wait(lambda: server.states().get("3") == "END")
            after = len(labels)
            server.wait(lambda: len(labels) > after + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        first_blue = labels.index("blue")
        # Three clients: an answer of the old version may overtake one of the new.
        assert set(labels[:first_blue]) == {"red"}
        assert set(labels[first_blue + 3 :]) == {"blue"}

        broken = requests.get(f"{server.url}/v1/models/toy/versions/3", timeout=20).json()
        said = broken["model_version_status"][0]["status"]
        assert said["error_code"] != "OK"
        assert said["error_message"]
        assert "version 3 of toy does not load, version 2 stays" in server.log()

        answer = end_within_a_request(server, signal.SIGTERM)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"label": "blue"' in answer
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log()


def end_within_a_request(server, number):
    """Send a signal while half of a request has arrived; returns the answer to it."""
    body = b'{"instances": [{"b64": "' + base64.b64encode(RED) + b'"}]}'
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 10) as slow:
        head = f"POST /v1/models/toy:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        slow.sendall(head.encode() + b"\r\n\r\n" + body[:10])
        server.states()  # answered after the half request was read
        server.process.send_signal(number)
        slow.settimeout(0.5)
        with pytest.raises(TimeoutError):
            slow.recv(1)
        slow.sendall(body[10:])
        slow.settimeout(20)
        answer = b""
        while b"predictions" not in answer and (part := slow.recv(65536)):
            answer += part
    return answer
