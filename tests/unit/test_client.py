"""The client over REST against a server that answers what a test wants, and against KServe's v1 protocol."""

import base64
import io
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from PIL import Image

from graftflow.errors import InputError
from graftflow.serving.client import Client, PictureError, RefusedError, ServerUnreachableError
from tests.unit.certificates import self_signed
from tests.unit.scripted_server import RANKED, only_jpeg, scripted_server
from tests.unit.serving_model import ROOT, picture

ANSWER = [("cat", 0.75), ("dog", 0.25)]
JPEG = b"\xff\xd8\xffx"  # for a client that sends it as it is


@pytest.fixture
def scripted():
    with scripted_server() as script:
        yield script


@contextmanager
def silent_server():
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


@contextmanager
def dribbling_server():
    """The URL of a server that takes five seconds for its answer, a byte at a time."""
    stop = threading.Event()

    def dribble(bound):
        connection, _ = bound.accept()
        with connection:
            connection.recv(2**16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(100):
                if stop.wait(0.05):
                    return
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=dribble, args=(bound,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def test_importing_the_client_and_the_command_is_light_and_quick():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "import graftflow.serving.client, graftflow.serving.query\n"
        "seconds = time.perf_counter() - start\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'grpc', 'requests', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy} in {seconds} s' if heavy or seconds > 0.5 else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_pictures_are_sent_as_base64_to_the_ranked_signature(scripted):
    assert Client(scripted.url, "pets", as_is=True).classify_images([JPEG]) == [ANSWER]
    path, body = scripted.requests[0]
    assert path == "/v1/models/pets:predict"
    assert body == {"signature_name": "ranked", "instances": [{"b64": base64.b64encode(JPEG).decode()}]}


def test_pictures_are_sent_in_the_form_that_is_stored(scripted):
    red = Image.new("RGB", (6, 4), (200, 30, 30))
    sent = {}
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF"):
        buffer = io.BytesIO()
        red.save(buffer, kind)
        scripted.requests.clear()
        Client(scripted.url).classify_images([buffer.getvalue()])
        sent[kind] = base64.b64decode(scripted.requests[0][1]["instances"][0]["b64"])
        if kind in ("JPEG", "PNG"):
            assert sent[kind] == buffer.getvalue()
        else:
            assert Image.open(io.BytesIO(sent[kind])).format == "PNG"


def test_many_pictures_go_in_several_requests(scripted):
    scripted.answers = [(200, lambda body: (200, {"predictions": [RANKED] * len(body["instances"])}), {})]
    assert len(Client(scripted.url).classify_images([picture()] * 70)) == 70
    assert [len(body["instances"]) for _, body in scripted.requests] == [32, 32, 6]
    scripted.requests.clear()
    Client(scripted.url, batch_size=64).classify_images([picture()] * 70)
    assert [len(body["instances"]) for _, body in scripted.requests] == [64, 6]


def test_what_the_server_cannot_decode_is_sent_once_more_written_anew(scripted):
    """As download_data stores it where TensorFlow refuses what Pillow decodes."""

    def only_png(body):
        if any(not i["b64"].startswith("iVBOR") for i in body["instances"]):
            return 400, {"error": "Invalid JPEG data or crop window"}
        return 200, {"predictions": [RANKED] * len(body["instances"])}

    scripted.answers = [(200, only_png, {})]
    for pictures, requests in (([picture()], 2), ([picture(), picture(kind="PNG")], 4)):
        scripted.requests.clear()
        assert Client(scripted.url).classify_images(pictures) == [ANSWER] * len(pictures)
        assert len(scripted.requests) == requests
    scripted.requests.clear()
    for client in (Client(scripted.url, as_is=True), Client(scripted.url)):
        bad = picture() if client._as_is else picture(kind="PNG")
        scripted.answers = [(400, {"error": "Invalid"}, {})]
        scripted.requests.clear()
        with pytest.raises(InputError, match="Invalid"):
            client.classify_images([bad])
        assert len(scripted.requests) == 1


def test_large_pictures_are_sent_in_requests_of_bounded_size(scripted):
    scripted.answers = [(200, only_jpeg, {})]
    large = b"\xff\xd8\xff" + bytes(7 * 2**20)
    assert len(Client(scripted.url, as_is=True).classify_images([large] * 5)) == 5
    assert [len(body["instances"]) for _, body in scripted.requests] == [2, 2, 1]


def test_several_requests_are_under_way_at_a_time_and_the_order_is_kept(scripted):
    together, most, lock = 0, 0, threading.Lock()

    def answer(body):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        number = int(base64.b64decode(body["instances"][0]["b64"])[3:])
        time.sleep(0.05 if number % 3 else 0.15)  # every third one is overtaken
        with lock:
            together -= 1
        return 200, {"predictions": [{"classes": [str(number)], "scores": [1.0]}]}

    scripted.answers = [(200, answer, {})]
    with Client(scripted.url, as_is=True, batch_size=1, in_flight=4) as client:
        found = client.classify_images([b"\xff\xd8\xff%d" % i for i in range(20)])
    assert [row[0][0] for row in found] == [str(i) for i in range(20)]
    assert 3 <= most <= 4


def test_pictures_are_taken_and_read_no_sooner_than_they_are_sent(scripted):
    scripted.answers = [(200, only_jpeg, {})]
    taken, read = [], []

    def source(index):
        read.append(index)
        return JPEG

    def sources():
        for index in range(1000):
            taken.append(index)
            yield partial(source, index)

    with Client(scripted.url, as_is=True, batch_size=2, in_flight=2) as client:
        answers = client.classify_each(sources())
        for _ in range(10):
            next(answers)
        assert len(read) <= len(taken) <= 10 + 2 * (2 * 2 + 1)
        answers.close()


def test_what_is_no_picture_is_told_before_anything_is_sent(scripted):
    with pytest.raises(PictureError, match="picture 0 is not a picture that can be sent: it is no JPEG, PNG"):
        Client(scripted.url).classify_images([b"text"])
    whole = picture(kind="PNG")
    with pytest.raises(
        PictureError, match="picture 0 is not a picture .*: it (is truncated|cannot be decoded)"
    ):
        Client(scripted.url).classify_images([whole[:-30]])
    assert scripted.requests == []


def test_a_refused_picture_does_not_keep_the_others_from_an_answer(scripted):
    scripted.answers = [(200, only_jpeg, {})]

    def missing():
        raise FileNotFoundError(2, "No such file or directory")

    sources = [lambda: JPEG, missing, lambda: b"\x89PNG", lambda: JPEG]
    answers = list(Client(scripted.url, as_is=True).classify_each(sources))
    assert answers[0] == answers[3] == ANSWER
    assert (type(answers[1]), str(answers[1])) == (PictureError, "cannot be read: No such file or directory")
    assert (type(answers[2]), str(answers[2])) == (
        RefusedError,
        "The server refuses: Unknown image file format.",
    )
    assert [len(body["instances"]) for _, body in scripted.requests] == [3, 1, 1, 1]


def test_bytes_anywhere_in_an_instance_are_encoded_and_those_of_an_answer_decoded(scripted):
    scripted.answers = [(200, {"predictions": [{"crop_bytes": {"b64": "YQ"}, "n": [1, 2]}]}, {})]
    assert Client(scripted.url).predict([{"image": b"a", "more": [(b"b", 1.5)]}]) == [
        {"crop_bytes": b"a", "n": [1, 2]}
    ]
    assert scripted.requests[0][1]["instances"] == [
        {"image": {"b64": "YQ=="}, "more": [[{"b64": "Yg=="}, 1.5]]}
    ]


def test_arrays_are_sent_as_lists_and_what_is_neither_is_refused(scripted):
    Client(scripted.url).predict(np.array([[1.5, 2]], np.float32))
    assert scripted.requests[0][1]["instances"] == [[1.5, 2.0]]
    with pytest.raises(InputError, match="instances must hold numbers, text, bytes and lists of them"):
        Client(scripted.url).predict([ROOT])
    assert len(scripted.requests) == 1


def test_numbers_that_json_lacks_are_sent_as_tokens(scripted):
    Client(scripted.url).predict([[float("nan"), float("inf")]])
    assert str(scripted.requests[0][1]["instances"]) == "[[nan, inf]]"


def test_a_server_that_never_answers_is_given_up():
    with (
        silent_server() as address,
        pytest.raises(ServerUnreachableError, match=r"did not answer within 0\.2 s"),
    ):
        Client(f"http://{address}", timeout=0.2).status()


def test_a_server_that_dribbles_does_not_outlast_the_deadline():
    with dribbling_server() as url:
        start = time.monotonic()
        with pytest.raises(ServerUnreachableError, match=r"did not answer within 0\.5 s"):
            Client(url, timeout=0.5).status()
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("document", [b"<html>hello</html>", {"hello": 1}, [1]])
def test_a_server_of_another_kind_is_recognised(scripted, document):
    scripted.answers = [(200, document, {})]
    for ask in (Client(scripted.url).status, lambda: Client(scripted.url).predict([1.0])):
        with pytest.raises(ServerUnreachableError, match="does not answer as a model server does"):
            ask()


def test_a_server_that_sends_elsewhere_is_not_followed(scripted):
    scripted.answers = [(301, b"", {"Location": "https://models.example/"})]
    with pytest.raises(ServerUnreachableError, match="it sends on to https://models.example/"):
        Client(scripted.url).predict([1.0])


def test_a_port_of_another_protocol_is_no_model_server():
    with socket.create_server(("127.0.0.1", 0)) as bound:

        def greet():
            connection, _ = bound.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            with pytest.raises(ServerUnreachableError, match="The connection to http://127.* failed"):
                Client(f"http://127.0.0.1:{bound.getsockname()[1]}").status()
        finally:
            thread.join()


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8501", "ftp://x", "http://", "", "http://host:port", "grpc://", "http://[::1", "grpc:8500"],
)
def test_an_address_must_have_a_scheme_and_a_host(url):
    with pytest.raises(InputError, match="url must be like http://.* grpc://HOST:8500"):
        Client(url)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model must be the name"),
        ({"version": 1, "label": "stable"}, "Only one of version and label"),
        ({"version": -1}, "version must be a number of 0 or more. Received: -1"),
        ({"label": ""}, "label must be the label"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": float("nan")}, "timeout must be more than 0"),
        ({"batch_size": 0}, "batch_size must be 1 to 1024. Received: 0"),
        ({"in_flight": 5000}, "in_flight must be 1 to 1024"),
        ({"headers": {"a b": "c"}}, "headers must be like"),
        ({"headers": {"a": "c\r\nd: e"}}, "headers must be like"),
        ({"url": "https://x", "ca_file": ROOT / "missing.pem"}, "ca_file must be a file of PEM"),
        ({"url": "grpcs://x", "ca_file": ROOT / "README.md"}, "ca_file must be a file of PEM"),
        ({"url": "grpc://x/path"}, "url of gRPC must end with the port"),
        ({"url": "http://x/?a=b"}, "url must end before"),
    ],
)
def test_a_setting_that_breaks_its_rule_is_told(settings, message):
    with pytest.raises(InputError, match=message):
        Client(**settings)


def test_version_label_prefix_and_headers_are_part_of_the_request(scripted):
    Client(f"{scripted.url}/pre/fix/", "pets", version=7).predict([1.0])
    Client(scripted.url, "a/b", label="canary", headers={"Host": "pets.example", "X-Key": "k"}).predict([1.0])
    assert [path for path, _ in scripted.requests] == [
        "/pre/fix/v1/models/pets/versions/7:predict",
        "/v1/models/a%2Fb/labels/canary:predict",
    ]
    assert (scripted.headers[1]["Host"], scripted.headers[1]["X-Key"]) == ("pets.example", "k")


def test_a_version_or_label_that_is_not_served_is_told_with_what_is(scripted):
    served = [{"version": v, "state": s} for v, s in (("12", "AVAILABLE"), ("9", "AVAILABLE"), ("3", "END"))]
    for choice, status, error in (
        ({"version": 7}, 404, "Servable not found for request: Specific(pets, 7)"),
        ({"label": "old"}, 400, "Unrecognized servable version label: old"),
    ):
        scripted.answers = [(status, {"error": error}, {}), (200, {"model_version_status": served}, {})]
        with pytest.raises(
            ServerUnreachableError, match=r"serves no .* of model 'pets': .* It serves 9, 12\."
        ):
            Client(scripted.url, "pets", **choice).classify_images([picture()])


def test_the_status_lists_versions(scripted):
    versions = [{"version": "3", "state": "AVAILABLE"}]
    scripted.answers = [(200, {"model_version_status": versions}, {})]
    assert Client(scripted.url).status() == versions


def test_an_authority_that_is_not_trusted_is_told_and_one_that_is_given_is(tmp_path):
    key, certificate = self_signed()
    (tmp_path / "both.pem").write_bytes(key + certificate)
    (tmp_path / "ca.pem").write_bytes(certificate)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "both.pem")
    with scripted_server(tls) as safe:
        with Client(safe.url, ca_file=tmp_path / "ca.pem") as client:
            assert client.predict([1.0]) == [RANKED]
        with Client(safe.url, retry=5) as client:
            start = time.monotonic()
            with pytest.raises(ServerUnreachableError, match="TLS with https://127.* fails: self.signed"):
                client.predict([1.0])
            assert time.monotonic() - start < 3  # it is not tried again


def test_an_answer_with_too_few_rows_is_not_taken_for_whole(scripted):
    scripted.answers = [(200, {"predictions": [RANKED]}, {})]
    with pytest.raises(InputError, match="a row for each instance. Received: 1 for 2"):
        Client(scripted.url).predict([1.0, 2.0])


def test_json_that_is_too_deep_is_no_model_servers(scripted):
    scripted.answers = [(200, b'{"predictions": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", {})]
    with pytest.raises(ServerUnreachableError, match="does not answer as a model server does"):
        Client(scripted.url).predict([1.0])
