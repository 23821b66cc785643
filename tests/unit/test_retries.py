"""What is tried again over REST, how long, and what is not; gRPC's part is in test_grpc_client.py."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import ThreadingHTTPServer

import pytest

from graftflow.errors import InputError
from graftflow.header_values import retry_after
from graftflow.serving.client import Client, ServerUnreachableError
from tests.unit.scripted_server import RANKED, scripted_server
from tests.unit.serving_model import free_port


@pytest.fixture
def scripted():
    with scripted_server() as script:
        yield script


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(scripted, status):
    busy = (status, {"error": "busy"}, {"Retry-After": "0"})
    scripted.answers = [busy, busy, (200, {"predictions": [1.0]}, {})]
    assert Client(scripted.url).predict([1.0]) == [1.0]
    assert len(scripted.requests) == 3


def test_a_server_that_says_when_to_come_back_is_not_asked_sooner(scripted):
    scripted.answers = [(503, {"error": "busy"}, {"Retry-After": "1"}), (200, {"predictions": [1.0]}, {})]
    start = time.monotonic()
    assert Client(scripted.url, retry=0.1).predict([1.0]) == [1.0]
    assert time.monotonic() - start >= 1
    scripted.answers = [(503, {"error": "busy"}, {"Retry-After": "60"})]
    scripted.requests.clear()
    with pytest.raises(ServerUnreachableError, match="is busy"):
        Client(scripted.url, timeout=2).predict([1.0])
    assert len(scripted.requests) == 1


def test_retry_after_is_read_in_both_forms():
    assert retry_after("7") == 7
    assert 50 < retry_after(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None


def test_a_server_that_stays_busy_ends_the_patience(scripted):
    scripted.answers = [(503, {"error": "busy"}, {})]
    with pytest.raises(ServerUnreachableError, match="is busy: busy"):
        Client(scripted.url, retry=0.3).predict([1.0])
    assert 2 <= len(scripted.requests) <= 8


@pytest.mark.parametrize("status", [400, 404, 413, 500, 504])
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
    late.daemon_threads = True

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
