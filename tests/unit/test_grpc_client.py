"""The client over gRPC against TensorFlow Serving's own stubs, and its messages against the originals."""

import http.server
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from graftflow.errors import InputError
from graftflow.serving.client import Client, RefusedError, ServerUnreachableError
from tests.unit.certificates import self_signed
from tests.unit.grpc_double import grpc_double
from tests.unit.serving_model import ROOT, free_port, picture
from tests.unit.test_client import silent_server

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ANSWER = [("cat", 0.75), ("dog", 0.25)]


@pytest.fixture
def double():
    with grpc_double() as served:
        yield served


@pytest.fixture
def client(double):
    with Client(double.url, "pets") as asking:
        yield asking


def test_a_request_never_imports_tensorflow(double):
    code = (
        "import sys; from graftflow.serving.client import Client\n"
        f"client = Client({double.url!r}, 'pets', as_is=True)\n"
        "assert client.classify_images([b'\\xff\\xd8\\xffx']) == [[('cat', 0.75), ('dog', 0.25)]]\n"
        "heavy = {'tensorflow', 'tensorflow_serving', 'keras', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=30, env={"PYTHONPATH": str(ROOT / "src")}
    )


@pytest.mark.parametrize("in_content", [False, True])
def test_pictures_are_classified(double, client, in_content):
    double.in_content = in_content
    assert client.classify_images([picture(), picture()]) == [ANSWER, ANSWER]
    (request,) = double.requests
    assert request.model_spec.signature_name == "ranked"
    assert list(request.inputs["image_bytes"].string_val) == [picture(), picture()]


def test_the_default_signature_serves_where_the_model_ranks_nothing(double, client):
    double.signatures = ["serving_default"]
    assert client.classify_images([picture()]) == [[("cat", 0.75), ("class 1", 0.25)]]
    client.classify_images([picture()])
    assert [r.model_spec.signature_name for r in double.requests] == ["serving_default"] * 2


def test_a_server_that_describes_nothing_is_asked_all_the_same(double, client):
    double.signatures = []
    assert client.classify_images([picture()]) == [ANSWER]


def test_values_go_there_and_back_with_the_models_dtypes(client):
    rows = [
        {"numbers": [1, 2.5], "counts": 3, "texts": "é"},
        {"numbers": [float("-inf"), 0.0], "counts": -4, "texts": b"b"},
    ]
    answers = client.predict(rows, "echo")
    assert answers == [rows[0], {**rows[1], "texts": "b"}]
    assert [type(v) for v in answers[0]["numbers"]] == [float, float]
    arrays = [{"numbers": np.array([1, 2.5], np.float32), "counts": np.int32(3), "texts": np.str_("é")}]
    assert client.predict(arrays, "echo") == answers[:1]
    with pytest.raises(InputError, match="dtype float32 must hold such values. Received: None"):
        client.predict([{"numbers": [None], "counts": 1, "texts": ""}], "echo")


def test_signatures_are_looked_up_again_after_a_refusal(double, client):
    client.predict([picture()], "serving_default")
    double.signatures = ["other"]  # a new version has taken over
    with pytest.raises(RefusedError, match='signature key "serving_default" not found'):
        client.predict([picture()], "serving_default")
    with pytest.raises(RefusedError, match="signature 'serving_default' not found. It has: echo, other"):
        client.predict([picture()], "serving_default")


def test_inputs_that_have_no_name_are_refused_where_there_are_several(double, client):
    with pytest.raises(InputError, match="instances must name the inputs counts, numbers, texts"):
        client.predict([1.0], "echo")
    with pytest.raises(InputError, match="must all have the same inputs"):
        client.predict([{"counts": 1}, {"numbers": 1}], "echo")
    assert double.requests == []


def test_version_and_label_choose(double):
    for choice in ({"version": 3}, {"label": "stable"}):
        with Client(double.url, "pets", **choice) as client:
            assert client.classify_images([picture()]) == [ANSWER]
            assert [v["version"] for v in client.status()] == ["3", "2"]
    assert [r.model_spec.WhichOneof("version_choice") for r in double.requests] == [
        "version",
        "version_label",
    ]


@pytest.mark.parametrize(
    ("model", "choice", "message"),
    [
        ("pet", {}, "serves no model 'pet': Servable not found.* Check the name"),
        ("pets", {"version": 9}, "serves no version 9 of model 'pets': .* It serves 3\\."),
        (
            "pets",
            {"label": "canary"},
            "serves no label 'canary' of model 'pets': Unrecognized .* It serves 3\\.",
        ),
    ],
)
def test_what_is_not_served_is_told_with_what_is(double, model, choice, message):
    with Client(double.url, model, **choice) as client:
        for ask in (client.status, lambda: client.classify_images([picture()])):
            with pytest.raises(ServerUnreachableError, match=message):
                ask()
    assert double.requests == []


def test_the_status_has_the_rest_apis_form(client):
    assert client.status()[0] == {
        "version": "3",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }


def test_unavailable_is_tried_again_and_nothing_else(double, client):
    double.faults = [(UNAVAILABLE, "starting", ()), (UNAVAILABLE, "starting", ())]
    assert client.classify_images([picture()]) == [ANSWER]
    assert len(double.requests) == 3
    for code in ("INVALID_ARGUMENT", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED", "UNKNOWN"):
        double.requests.clear()
        double.faults = [(grpc.StatusCode[code], "it says\nso", ())] * 2
        with pytest.raises(RefusedError, match="The server refuses: it says so") as caught:
            client.predict([picture()])
        assert (caught.value.code, len(double.requests)) == (code, 1)


def test_a_server_that_stays_unavailable_ends_the_patience(double):
    double.faults = [(UNAVAILABLE, "too many requests", ())] * 100
    with Client(double.url, "pets", retry=0.5) as client:
        start = time.monotonic()
        with pytest.raises(ServerUnreachableError, match="is unavailable: too many requests"):
            client.classify_images([picture()])
    assert time.monotonic() - start < 3
    assert 2 <= len(double.requests) <= 10


def test_a_pause_that_the_server_asks_for_is_kept(double):
    double.faults = [(UNAVAILABLE, "later", (("grpc-retry-pushback-ms", "700"),))]
    with Client(double.url, "pets", retry=0.1) as client:
        client.status()
        start = time.monotonic()
        assert client.classify_images([picture()]) == [ANSWER]
        assert time.monotonic() - start > 0.7
        double.faults = [(UNAVAILABLE, "never", (("grpc-retry-pushback-ms", "-1"),))]
        double.requests.clear()
        with pytest.raises(ServerUnreachableError, match="never"):
            client.classify_images([picture()])
    assert len(double.requests) == 1


def test_a_bad_picture_fails_alone(double):
    pictures = [picture(), b"\x89PNG text", picture(), b"GIF8", picture()]
    with Client(double.url, "pets", as_is=True) as client:
        answers = list(client.classify_each([lambda p=p: p for p in pictures]))
    assert [answer for answer in answers if isinstance(answer, list)] == [ANSWER] * 3
    assert [i for i, answer in enumerate(answers) if isinstance(answer, RefusedError)] == [1, 3]
    assert str(answers[1]) == "The server refuses: Unknown image file format."
    assert len(double.requests) == 1 + len(pictures)


def test_one_deadline_covers_all_tries(double):
    double.faults = [(UNAVAILABLE, "starting", ())] * 1000
    with Client(double.url, "pets", timeout=0.6, retry=60) as client:
        start = time.monotonic()
        with pytest.raises(ServerUnreachableError):
            client.classify_images([picture()])
    assert time.monotonic() - start < 2


def test_a_server_that_never_answers_is_given_up():
    with silent_server() as address, Client(f"grpc://{address}", timeout=0.5) as client:
        start = time.monotonic()
        with pytest.raises(ServerUnreachableError, match="did not answer within 0.5 s"):
            client.status()
        assert time.monotonic() - start < 3


def test_an_unreachable_server_is_named_with_the_way_to_start_one():
    url = f"grpc://127.0.0.1:{free_port()}"
    with Client(url, retry=0.3) as client, pytest.raises(ServerUnreachableError) as caught:
        client.status()
    assert str(caught.value).startswith(f"No model server answers at {url}. Start one with `make serve`")


def test_a_web_server_is_no_model_server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        try:
            with (
                Client(f"grpc://127.0.0.1:{web.server_port}", timeout=5, retry=0.3) as client,
                pytest.raises(ServerUnreachableError, match="does not answer as a model server does"),
            ):
                client.status()
        finally:
            web.shutdown()
            thread.join()


def test_tls_with_a_known_authority_and_without(double, tmp_path):
    key, certificate = self_signed()
    (tmp_path / "ca.pem").write_bytes(certificate)
    with grpc_double(grpc.ssl_server_credentials([(key, certificate)])) as safe:
        with Client(safe.url, "pets", ca_file=tmp_path / "ca.pem") as client:
            assert client.classify_images([picture()]) == [ANSWER]
        with Client(safe.url, "pets", retry=5) as client:
            start = time.monotonic()
            with pytest.raises(ServerUnreachableError, match=r"TLS with grpcs://127.* fails: .*--ca-file"):
                client.status()
            assert time.monotonic() - start < 4  # it is not tried again
    with (
        Client(double.url.replace("grpc:", "grpcs:"), "pets", retry=0.3) as plain,
        pytest.raises(ServerUnreachableError, match="TLS with grpcs://127.* fails"),
    ):
        plain.status()


def test_headers_come_along_as_metadata(double):
    with Client(double.url, "pets", headers={"Authorization": "Bearer x", "Host": "pets.example"}) as client:
        client.classify_images([picture()])
    assert double.metadata[0]["authorization"] == "Bearer x"
    assert "host" not in double.metadata[0]


def test_requests_of_thirty_megabytes_pass_and_larger_ones_are_refused_here(double):
    with Client(double.url, "pets", as_is=True) as client:
        assert client.classify_images([b"\xff\xd8\xff" + bytes(30 * 2**20)]) == [ANSWER]
        with pytest.raises(InputError, match="a request must have at most 67108864 bytes"):
            client.predict([b"\xff\xd8\xff" + bytes(65 * 2**20)], "ranked")
    assert len(double.requests) == 1


def test_many_requests_at_a_time_keep_the_order(double):
    colours = [(i, 0, 255 - i) for i in range(60)]
    with Client(double.url, "pets", batch_size=4, in_flight=6) as client:
        answers = list(client.classify_each([lambda c=c: picture(c) for c in colours]))
    assert answers == [ANSWER] * 60
    sent = {image for request in double.requests for image in request.inputs["image_bytes"].string_val}
    assert sent == {picture(colour) for colour in colours}
    assert len(double.requests) == 15
