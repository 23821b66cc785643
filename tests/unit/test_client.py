"""The client and its command against a server that answers what a test wants."""

import base64
import csv
import io
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from graftflow.errors import InputError
from graftflow.serving import query
from graftflow.serving.client import Client, ServerUnreachableError
from tests.unit.serving_model import ROOT, free_port, picture

RANKED = {"classes": ["cat", "dog"], "scores": [0.75, 0.25]}


class Scripted:
    """A server that gives its answers in turn, the last one again and again."""

    def __init__(self) -> None:
        self.answers = [(200, {"predictions": [RANKED]}, {})]
        self.requests = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.requests.append((self.path, json.loads(body) if body else None))
                answers = script.answers
                status, document, headers = answers.pop(0) if len(answers) > 1 else answers[0]
                if callable(document):
                    status, document = document(script.requests[-1][1])
                text = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST  # noqa: N815 (the name is http.server's)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def scripted():
    script = Scripted()
    thread = threading.Thread(target=script.server.serve_forever, args=(0.02,))
    thread.start()
    yield script
    script.server.shutdown()
    script.server.server_close()
    thread.join()


def test_importing_the_client_and_the_command_never_imports_tensorflow():
    code = (
        "import sys, graftflow.serving.client, graftflow.serving.query\n"
        "heavy = {'tensorflow', 'keras', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_pictures_are_sent_as_base64_to_the_ranked_signature(scripted):
    assert Client(scripted.url, "pets").classify_images([b"\xff\xd8\xffx"]) == [
        [("cat", 0.75), ("dog", 0.25)]
    ]
    path, body = scripted.requests[0]
    assert path == "/v1/models/pets:predict"
    assert body == {
        "signature_name": "ranked",
        "instances": [{"b64": base64.b64encode(b"\xff\xd8\xffx").decode()}],
    }


def test_many_pictures_go_in_several_requests(scripted):
    scripted.answers = [(200, lambda body: (200, {"predictions": [RANKED] * len(body["instances"])}), {})]
    assert len(Client(scripted.url).classify_images([picture()] * 70)) == 70
    assert [len(body["instances"]) for _, body in scripted.requests] == [32, 32, 6]


def test_bytes_anywhere_in_an_instance_are_encoded(scripted):
    Client(scripted.url).predict([{"image": b"a", "more": [(b"b", 1.5)]}])
    assert scripted.requests[0][1]["instances"] == [
        {"image": {"b64": "YQ=="}, "more": [[{"b64": "Yg=="}, 1.5]]}
    ]


def test_numbers_that_json_lacks_are_sent_as_tokens(scripted):
    Client(scripted.url).predict([[float("nan"), float("inf")]])
    assert str(scripted.requests[0][1]["instances"]) == "[[nan, inf]]"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(scripted, status):
    busy = (status, {"error": "busy"}, {"Retry-After": "0"})
    scripted.answers = [busy, busy, (200, {"predictions": [1.0]}, {})]
    assert Client(scripted.url).predict([1.0]) == [1.0]
    assert len(scripted.requests) == 3


def test_a_server_that_stays_busy_ends_the_patience(scripted):
    scripted.answers = [(503, {"error": "busy"}, {})]
    with pytest.raises(ServerUnreachableError, match="is busy: busy"):
        Client(scripted.url, retry=0.3).predict([1.0])


@pytest.mark.parametrize("status", [400, 404, 500])
def test_other_errors_are_not_tried_again(scripted, status):
    scripted.answers = [(status, {"error": "it says\nso"}, {})]
    with pytest.raises(InputError, match="it says so"):
        Client(scripted.url).predict([1.0])
    assert len(scripted.requests) == 1


def test_an_unreachable_server_is_named_with_the_way_to_start_one():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerUnreachableError) as caught:
        Client(url, retry=0.2).predict([1.0])
    assert url in str(caught.value)
    assert "make serve" in str(caught.value)


def test_a_server_that_starts_within_the_patience_is_reached(scripted):
    port = free_port()
    late = ThreadingHTTPServer(
        ("127.0.0.1", port), scripted.server.RequestHandlerClass, bind_and_activate=False
    )

    def start():
        late.server_bind()
        late.server_activate()
        late.serve_forever(0.02)

    timer = threading.Timer(0.3, start)
    timer.start()
    try:
        assert Client(f"http://127.0.0.1:{port}").predict([1.0]) == [RANKED]
    finally:
        late.shutdown()
        late.server_close()
        timer.join()


def test_a_server_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerUnreachableError, match=r"did not answer within 0\.2 s"):
            Client(url, timeout=0.2).status()


@pytest.mark.parametrize("document", [b"<html>hello</html>", {"hello": 1}, [1]])
def test_a_server_of_another_kind_is_recognised(scripted, document):
    scripted.answers = [(200, document, {})]
    with pytest.raises(InputError, match="does not answer as a model server does"):
        Client(scripted.url).predict([1.0])


@pytest.mark.parametrize("url", ["127.0.0.1:8501", "ftp://x", "http://", ""])
def test_an_address_must_be_http(url):
    with pytest.raises(InputError, match="url must be like"):
        Client(url)


def test_what_is_no_picture_is_named(scripted):
    scripted.answers = [(400, {"error": "Unknown image file format."}, {})]
    with pytest.raises(InputError, match="picture 1 is not a picture: it must be JPEG or PNG"):
        Client(scripted.url).classify_images([picture(), b"text"])


def test_the_status_lists_versions(scripted):
    versions = [{"version": "3", "state": "AVAILABLE"}]
    scripted.answers = [(200, {"model_version_status": versions}, {})]
    assert Client(scripted.url).status() == versions


def run(scripted, capsys, *arguments):
    code = query.main([*map(str, arguments), "--url", scripted.url])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def only_pictures(body):
    if any(not i["b64"].startswith("/9j/") for i in body["instances"]):
        return 400, {"error": "Unknown image file format."}
    return 200, {"predictions": [RANKED] * len(body["instances"])}


@pytest.fixture
def pictures(tmp_path, scripted):
    scripted.answers = [(200, only_pictures, {})]
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b [1].JPG", "deep/c.jpeg"):
        (folder / name).write_bytes(picture())
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_command_answers_for_folders_patterns_and_files(scripted, capsys, pictures):
    code, out, err = run(scripted, capsys, pictures, "--format", "json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [d["picture"].removeprefix(str(pictures)) for d in document] == [
        "/a.jpg",
        "/b [1].JPG",
        "/deep/c.jpeg",
    ]
    assert document[0]["predictions"][0] == {"class": "cat", "probability": 0.75}
    code, out, _ = run(
        scripted, capsys, f"{pictures}/*.jpg", pictures / "b [1].JPG", "--format=csv", "--top=1"
    )
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert len(rows) == 2
    assert (rows[1]["rank"], rows[1]["class"], rows[1]["probability"]) == ("1", "cat", "0.75")


def test_the_command_draws_a_table(scripted, capsys, pictures):
    code, out, _ = run(scripted, capsys, pictures / "a.jpg")
    assert code == 0
    assert "cat" in out
    assert "0.7500" in out
    assert "dog" in out
    assert "█" * 18 in out or "#" * 18 in out


def test_one_bad_picture_does_not_keep_the_others_from_an_answer(scripted, capsys, pictures):
    code, out, err = run(
        scripted, capsys, pictures / "notes.txt", "missing.jpg", pictures / "a.jpg", "--format=csv"
    )
    assert code == 1
    assert len(out.splitlines()) == 3
    assert "a.jpg,1,cat" in out
    lines = err.splitlines()
    assert len(lines) == 2
    assert "notes.txt: is not a picture: it must be JPEG or PNG. Received: 10 bytes" in lines[0]
    assert lines[1] == "error: missing.jpg: no such file or folder"


def test_the_command_reads_standard_input(scripted, capsys, pictures, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(picture())))
    code, out, _ = run(scripted, capsys, "-", "--format=csv", "--top=1")
    assert code == 0
    assert out.splitlines()[1].startswith("-,1,cat,")


def test_the_command_stops_at_once_where_no_model_answers(scripted, capsys, pictures):
    scripted.answers = [(404, {"error": "Servable not found for request: Latest(graftflow)"}, {})]
    code, out, err = run(scripted, capsys, pictures)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "serves no model 'graftflow'" in err
    assert len(scripted.requests) == 1
