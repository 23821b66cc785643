"""Abuse of the real server process over HTTP: it answers with an error, stays up and keeps its memory bounded."""

import gzip
import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import numpy as np
import pytest
import requests

from tests.unit.abused_server import (
    GOOD,
    MIB,
    PATH,
    Abused,
    encoded,
    hasty_server,
    mutated,
    predict_request,
    save_model,
)
from tests.unit.serving_model import running_server

HEAD = b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\n"
STATUS = b"GET /v1/models/toy HTTP/1.1\r\nHost: x\r\n"
BODY = json.dumps({"instances": [encoded(GOOD)]}).encode()
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("abused") / "toy"
    save_model(folder / "1")
    return folder


@pytest.fixture(scope="module")
def abused(model, tmp_path_factory):
    """A server without batching that all tests here share."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "monitoring.config").write_text('prometheus_config { enable: true path: "/metrics" }')
    with running_server(
        model, folder / "log", f"--monitoring_config_file={folder / 'monitoring.config'}"
    ) as server:
        abused = Abused(server)
        yield abused
        abused.channel.close()
        assert "Traceback" not in server.log()


def error_of(answer):
    """Status and message of one raw answer, which must be an error in the protocol's form."""
    head, _, body = answer.partition(b"\r\n\r\n")
    document = json.loads(body)
    assert list(document) == ["error"]
    return int(head.split()[1]), document["error"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        STATUS + b"X: " + b"a" * 70000,
        STATUS.replace(b"toy", b"t\0y") + b"\r\n",
        b"GET /v1/models/toy HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    ],
    ids=["two lengths", "length and chunks", "bad chunk", "negative chunk", "negative length", "huge length",
         "headers without end", "NUL", "no host", "TLS"],
)  # fmt: skip
def test_what_is_no_http_is_refused_in_json_and_its_connection_closed(abused, request_bytes):
    with abused.unharmed(peak=64, after=64):
        status, message = error_of(abused.talk(request_bytes, end=False))
        assert status == 400
        assert "HTTP" in message or "Transfer-Encoding" in message


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "CONNECT", "FOO"])
def test_other_methods_are_malformed_requests(abused, method):
    answer = abused.talk(HEAD.replace(b"POST", method.encode()) + b"\r\n")
    if method == "HEAD":
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\n")
    else:
        assert error_of(answer) == (400, f"Malformed request: {method} {PATH}")


def test_old_pipelined_expecting_and_half_closed_clients_are_answered(abused):
    assert abused.talk(STATUS.replace(b"1.1", b"1.0") + b"\r\n").count(b'"AVAILABLE"') == 1
    assert (
        abused.talk((STATUS + b"\r\n") * 3 + STATUS + b"Connection: close\r\n\r\n", end=False).count(
            b'"AVAILABLE"'
        )
        == 4
    )
    expecting = WHOLE.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n", 1)
    assert abused.talk(expecting).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert b'"predictions"' in abused.talk(WHOLE)
    assert abused.talk(WHOLE[:-5]) == b""  # what it says to be is not what it sent: nothing to answer


def test_each_port_survives_the_others_protocol(abused):
    with abused.unharmed(peak=64, after=64):
        assert abused.talk(PREFACE + SETTINGS).startswith(b"HTTP/1.1 40")
        assert b"HTTP/1.1 200" not in abused.talk(STATUS + b"\r\n", "grpc")
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        assert abused.talk(STATUS + upgrade).startswith(b"HTTP/1.1 200 OK")  # no upgrade: HTTP/1.1 goes on


@pytest.mark.parametrize("port", ["rest", "grpc"])
def test_random_and_mutated_bytes_harm_nobody(abused, port):
    rng = np.random.default_rng(0)
    frames = PREFACE + SETTINGS + b"\0\0\4\3\0\0\0\0\1\0\0\0\2" + b"\0\1\0\0\1\0\0\0\1" + bytes(256)
    good = WHOLE if port == "rest" else frames
    with abused.unharmed(peak=256, after=128), ThreadPoolExecutor(8) as pool:
        sent = [rng.bytes(int(rng.integers(1, 2000))) for _ in range(100)]
        sent += [mutated(good, rng) for _ in range(200)]
        answers = list(pool.map(lambda data: abused.talk(data, port, 5), sent))
    if port == "rest":
        assert {a[9:12] for a in answers if a} <= {b"200", b"400", b"404", b"413", b"100"}
        assert sum(b" 400 " in a[:20] for a in answers) > 100


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("..%2f..%2fetc%2fpasswd", 404), ("%2e%2e", 404), ("toy%00", 404), ("%ff%fe", 404),
        ("%E6%BC%A2", 404), ("a" * 60000, 404), ("../../etc/passwd", 400), ("toy/../toy", 400),
        ("toy/versions/-1", 400), ("toy/versions/" + "9" * 23, 400), ("toy/versions/9223372036854775808", 400),
        ("toy/versions/%31", 400), ("toy/labels/..%2f1", 400), ("toy/labels/" + "a" * 60000, 400),
    ],
)  # fmt: skip
def test_a_name_leads_nowhere_else(abused, name, status):
    for suffix, method in ((":predict", b"POST"), ("", b"GET"), ("/metadata", b"GET")):
        head = b"%s /v1/models/%s%s HTTP/1.1\r\nHost: x\r\n" % (method, name.encode(), suffix.encode())
        length = b"Content-Length: %d\r\n\r\n" % len(BODY) if suffix == ":predict" else b"\r\n"
        answered, message = error_of(abused.talk(head + length + (BODY if suffix == ":predict" else b"")))
        assert answered == status
        assert len(message) < 4200
        assert "root:" not in message


def of(name, instances):
    return b'{"signature_name": "%s", "instances": [%s]}' % (name.encode(), instances)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"instances": ' + b"[" * 100000 + b"]" * 100000 + b"}", "Nested too deeply"),
        (b'{"instances": ' + b'{"a":' * 100000 + b"1" + b"}" * 100000 + b"}", "Nested too deeply"),
        (of("any_shape", b"[" * 900 + b"1.0" + b"]" * 900), "tensor of rank|Nested too deeply"),
        (of("any_shape", b"[" * 70 + b"1.0" + b"]" * 70), "tensor of rank"),
        (of("any_shape", b"1e999999"), "Number too big"),
        (of("any_shape", b"9" * 10**6), "Number too big"),
        (of("any_shape", b"9" * 10**6 + b".5"), "Number too big"),
        (of("any_shape", b"9" * 4000), "Number too big"),
        (json.dumps({"inputs": {f"k{i}": i for i in range(10**6)}}).encode(), "Missing named input"),
        (b'{"instances": [{"%s": 1.0}]}' % (b"k" * 8 * MIB), "element: 0 key: kkk"),
        (of("x" * 8 * MIB, b"1.0"), "Serving signature name: .xxx"),
        (b'{"instances": [1.0], "instances": [2.0]}', "2.0 Type: Number is not of expected"),
        (b'{"instances": ["\xff\xfe"]}', "Invalid encoding"),
        (of("lengths", b'"\\ud800"'), "surrogate pair in string is invalid"),
        (b'{"instances": [{"\\ud800": 1}]}', "does not have named input"),
        (b'{"instances": [{"b64": "@@@@"}]}', "Unable to base64 decode"),
        (b'{"instances": [{"b64": "\\ud800"}]}', "Unable to base64 decode"),
        (b'{"instances": [{"b64": "' + b"QUFB" * MIB + b'"}]}', "picture must be"),
        (of("any_shape", b"[]," * 2**23 + b"[]"), "More than 8388608 lists"),
        (of("any_shape", b"{}," * 2**22 + b"{}"), "More than 8388608 lists"),
    ],
    ids=["lists in lists", "objects in objects", "900 levels", "rank 70", "exponent", "million digits",
         "million digits and a half", "4,000 digits", "million keys", "long key", "long signature", "same key",
         "no UTF-8", "half a pair", "half a pair as a key", "no base64", "half a pair as base64", "no picture",
         "millions of lists", "millions of objects"],
)  # fmt: skip
def test_json_that_goes_too_far_is_an_error_of_one_line(abused, body, error):
    with abused.unharmed(peak=700, after=300):
        status, document = abused.post(body)
        assert (status, list(document)) == (400, ["error"])
        assert re.search(error, document["error"])
        assert len(document["error"]) < 4200


def test_a_million_empty_lists_are_answered_and_forgotten(abused):
    with abused.unharmed(peak=700, after=200):
        status, document = abused.post(of("any_shape", b"[]," * (10**6 - 1) + b"[]"))
        assert (status, len(document["predictions"])) == (200, 10**6)


def test_large_bodies_at_the_same_time_wait_for_each_other(abused):
    """Each would take 64 MiB and what is made of it: 128 MiB are read at a time."""
    limit = 64 * MIB
    bodies = [b" " * (limit - len(BODY)) + BODY, b" " * (limit - len(BODY) - 1) + BODY]
    bodies += [b" " * limit + BODY, b"x" * limit]

    def chunks():
        for _ in range(70):
            yield b" " * MIB

    with abused.unharmed(peak=900, after=500), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda b: abused.post(b), bodies * 2))
        assert [status for status, _ in answers] == [200, 200, 413, 400] * 2
        over = requests.post(abused.server.url + PATH, data=chunks(), timeout=60)
        assert (over.status_code, list(over.json())) == (413, ["error"])


def test_gzip_bombs_are_not_unpacked(abused):
    bomb = gzip.compress(bytes(1024 * MIB), 1)
    junk = {"nested": gzip.compress(bomb), "cut": gzip.compress(BODY)[:-9], "none": b"junk", "empty": b""}
    with abused.unharmed(peak=600, after=400), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda b: abused.post(b, Content_Encoding="gzip"), [bomb] * 6))
        assert [status for status, _ in answers] == [413] * 6
        assert "unpacks to more" in answers[0][1]["error"]
        for body in junk.values():
            status, document = abused.post(body, Content_Encoding="gzip")
            assert (status, list(document)) == (400, ["error"])
        assert abused.post(gzip.compress(BODY), Content_Encoding="gzip")[0] == 200


def test_names_from_outside_make_no_time_series(abused):
    def series():
        text = requests.get(f"{abused.server.url}/metrics", timeout=20).text
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    def ask(number):
        path = f"/v1/models/unknown{number}/labels/l{number}:predict"
        abused.post({"signature_name": f"s{number}", "instances": ["x"]}, path)
        abused.post({"signature_name": f"s{number}", "instances": ["x"]})
        abused.talk(b"M%d /v1/models/m%d HTTP/1.1\r\nHost: x\r\n\r\n" % (number, number))
        for change in ("name", "signature_name"):
            request = predict_request()
            setattr(request.model_spec, change, f"x{number}")
            with pytest.raises(Exception, match="NOT_FOUND|FAILED_PRECONDITION"):
                abused.stub.Predict(request, timeout=20)

    ask(0)
    before = series()
    assert before
    for number in range(1, 20):
        ask(number)
    assert series() == before


def test_slow_and_silent_clients_hold_up_nobody_and_not_the_end(model, tmp_path):
    big = json.dumps({"signature_name": "large", "instances": [1.0] * 4}).encode()
    with hasty_server(model, tmp_path / "log") as abused, ExitStack() as held:

        def connected(port, data=b"", receive_buffer=0):
            plain = held.enter_context(abused.connect(port, receive_buffer))
            plain.sendall(data)
            return plain

        # Dripped headers, on a new connection and on one that was answered before; then a dripped body.
        new, kept = connected("rest", STATUS[:9]), connected("rest", STATUS + b"\r\n")
        answer = b""
        while b"AVAILABLE" not in answer:
            answer += kept.recv(65536)
        body, unread = connected("rest", WHOLE[:-500]), connected("rest", b"", 4096)
        unread.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(big) + big)
        started = time.monotonic()
        for number in range(14):
            for slow, data in ((new, STATUS), (kept, STATUS), (body, b" " * 99)):
                try:
                    slow.sendall(data[number : number + 1])
                except OSError:
                    continue
            asked = time.monotonic()
            assert abused.good() == abused.first
            assert time.monotonic() - asked < 3
            time.sleep(0.2)
        for slow in (new, kept):
            slow.settimeout(10)
            with suppress(ConnectionError):
                assert slow.recv(65536) == b""
        body.settimeout(10)
        assert b" 504 " in body.recv(65536)[:20]
        given_up = {slow.getsockname()[1] for slow in (new, kept, unread)}

        def peers():
            return {c.raddr.port for c in abused.process.net_connections() if c.raddr}

        abused.server.wait(lambda: not peers() & given_up, 20)
        assert time.monotonic() - started < 20

        for _ in range(100):
            connected("rest")
            connected("grpc")
        connected("grpc", PREFACE[:8])
        connected("grpc", PREFACE + SETTINGS)
        connected("rest", WHOLE[:-5])
        connected("rest", HEAD + b"Content-Length: %d\r\n\r\n" % len(big) + big, 4096)
        assert abused.good() == abused.first
        import tensorflow as tf

        running = abused.stub.Predict.future(predict_request("spin", x=tf.make_tensor_proto([1.0])))
        time.sleep(0.5)
        ended = time.monotonic()
        abused.server.process.send_signal(signal.SIGTERM)
        assert abused.server.process.wait(15) == 0
        assert time.monotonic() - ended < 12
        assert running.exception() is not None
        assert "Traceback" not in abused.server.log()
