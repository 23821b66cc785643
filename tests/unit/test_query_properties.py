"""The query client, of any answer: predictions or one line of error, and nothing that acts on the terminal."""

import contextlib
import csv
import gzip
import io
import json
import math
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftflow.errors import InputError, one_line
from graftflow.header_values import retry_after
from graftflow.serving import messages, tensor_values
from graftflow.serving.answer_texts import WRITERS, Answer
from graftflow.serving.query import main
from graftflow.serving.rankings import ranking
from tests.unit.properties import changed, examples, refusal_or
from tests.unit.scripted_server import RANKED, scripted_server

# Where requests itself gives up on a header, it leaves the connection to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
_HOSTILE = [
    "\x1b[2J",
    "\x1b]52;c;aGk=\x07",
    "\x9b31m",
    "\u202ecat",
    "\ud800",
    "a\nb",
    "\0",
    "",
    "cat",
    "\N{CAT FACE}",
]
_TEXTS = st.one_of(st.sampled_from(_HOSTILE), st.text(max_size=8))
_NUMBERS = st.one_of(
    st.floats(), st.integers(-3, 3), st.sampled_from([10**400, -(10**400), True, 2**63, math.inf, math.nan])
)
_VALUES = st.recursive(
    st.one_of(st.none(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(
                st.sampled_from(["classes", "scores", "probabilities", "label", "class_index", "b64"]), _TEXTS
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
_ROWS = st.one_of(
    _VALUES,
    st.fixed_dictionaries(
        {"classes": st.lists(_TEXTS, max_size=3), "scores": st.lists(_NUMBERS, max_size=3)}
    ),
    st.fixed_dictionaries(
        {"probabilities": st.lists(_NUMBERS, max_size=3), "label": _VALUES, "class_index": _VALUES}
    ),
)

_COLOURS = re.compile(r"\x1b\[(?:0|1|2|32|1;32|2;32)m")


class Printed(io.TextIOWrapper):
    """Standard output as Python opens it: UTF-8, and strict."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


def ask(url: str, *flags: str) -> str:
    """Run the command on one picture, check what must hold of any answer, and return what it printed."""
    with (
        contextlib.redirect_stdout(Printed(terminal=True)) as out,
        contextlib.redirect_stderr(Printed()) as err,
    ):
        code = main(["--url", url, "--as-is", "--retry=0", "--timeout=5", *flags, __file__])
    said = err.text()
    assert code == (1 if said else 0)
    assert said.count("\n") <= 1
    assert said.startswith("error: ") or not said
    assert_harmless(out.text() + said)
    return out.text()


def assert_harmless(text: str) -> None:
    """Nothing but lines that can be shown, in the colours of our own table."""
    for line in _COLOURS.sub("", text).split("\n"):
        assert line == one_line(line), repr(line)


@pytest.fixture(scope="module")
def scripted() -> Iterator[Any]:
    with scripted_server() as script:
        yield script


_HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "Location", "Content-Type", "Content-Encoding", "X"]),
    st.one_of(st.sampled_from(["gzip", "br", "\xb2", "99999999999999", "\x1b[2J", "Mon, 1 Jan 99999 00:00:00 GMT"]),
              st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=9)),
    max_size=2,
)  # fmt: skip


@given(
    status=st.sampled_from([200, 200, 200, 302, 400, 401, 404, 429, 500, 503, 504]),
    document=st.one_of(
        _ROWS.map(lambda row: {"predictions": [row]}),
        st.fixed_dictionaries({"predictions": _VALUES}),
        st.fixed_dictionaries({"error": _VALUES}),
        st.fixed_dictionaries({"error": _TEXTS, "model_version_status": st.lists(_VALUES, max_size=2)}),
        _VALUES,
        st.binary(max_size=40),
    ),
    headers=_HEADERS,
    form=st.sampled_from(["table", "json", "jsonl", "csv"]),
    label=st.booleans(),
)
@examples(2)
def test_any_answer_over_rest_is_told_or_refused_in_one_line(
    scripted: Any, status: int, document: Any, headers: dict[str, str], form: str, label: bool
) -> None:
    scripted.answers = [(status, document, headers)]
    ask(scripted.url, f"--format={form}", *(["--label=stable"] if label else []))


@pytest.mark.parametrize("depth", [200, 600, 900, 980, 100_000])
@pytest.mark.parametrize("key", ["predictions", "error"])
def test_an_answer_of_any_depth_is_refused(scripted: Any, depth: int, key: str) -> None:
    body = b'{"%s": [' % key.encode() + b"[" * depth + b"]" * depth + b"]}"
    scripted.answers = [(400 if key == "error" else 200, body, {})]
    assert ask(scripted.url) == ""


@pytest.mark.parametrize("times", [1, 2])
def test_a_packed_bomb_is_not_unpacked(scripted: Any, times: int) -> None:
    body = gzip.compress(bytes(10 * 2**20)) * 30
    for _ in range(times - 1):
        body = gzip.compress(body)
    scripted.answers = [(200, body, {"Content-Encoding": ", ".join(["gzip"] * times)})]
    tracemalloc.start()
    try:
        assert ask(scripted.url) == ""
        assert tracemalloc.get_traced_memory()[1] < 250 * 2**20
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def raw() -> Iterator[Any]:
    """A server that answers whatever bytes it is told, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        class Raw:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            answer = b""

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                with plain, contextlib.suppress(OSError):
                    plain.settimeout(5)
                    received = plain.recv(2**20)
                    length = int(received.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
                    while len(received.partition(b"\r\n\r\n")[2]) < length:
                        received += plain.recv(2**20)
                    plain.sendall(Raw.answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Raw
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


_BODY = json.dumps({"predictions": [RANKED]}).encode()
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY
)


@given(
    answer=st.one_of(
        changed(_ANSWER), st.binary(max_size=60), st.binary(max_size=9).map(lambda b: b"HTTP/1.1 " + b)
    )
)
def test_any_bytes_instead_of_http_are_one_line(raw: Any, answer: bytes) -> None:
    raw.answer = answer
    ask(raw.url)


def _response() -> bytes:
    response = messages.PredictResponse()
    response.outputs["classes"].CopyFrom(tensor_values.write([["cat", "dog"]]))
    response.outputs["scores"].CopyFrom(tensor_values.write([[0.75, 0.25]]))
    return bytes(response.SerializeToString())


def _metadata() -> bytes:
    described = messages.SignatureDefMap()
    described.signature_def["ranked"].inputs["image_bytes"].dtype = 7
    response = messages.GetModelMetadataResponse()
    response.metadata["signature_def"].value = described.SerializeToString()
    return bytes(response.SerializeToString())


@pytest.fixture(scope="module")
def rpc() -> Iterator[Any]:
    """A gRPC server that answers any method with the bytes, or the status and words, that it is told."""

    class Rpc(grpc.GenericRpcHandler):  # type: ignore[misc]
        url, metadata, predict, status, words = "", b"", b"", grpc.StatusCode.OK, ""

        def service(self, details: Any) -> Any:
            def answer(_request: bytes, context: Any) -> bytes:
                if self.status is not grpc.StatusCode.OK:
                    context.abort(self.status, self.words)
                return self.metadata if details.method.endswith("Metadata") else self.predict

            return grpc.unary_unary_rpc_method_handler(answer)

    handler = Rpc()
    server = grpc.server(ThreadPoolExecutor(4), handlers=(handler,))
    handler.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield handler
    server.stop(0).wait()


@given(
    metadata=st.one_of(st.just(_metadata()), changed(_metadata())),
    predict=st.one_of(st.just(_response()), changed(_response()), st.binary(max_size=40)),
    status=st.sampled_from([grpc.StatusCode.OK] * 12 + list(grpc.StatusCode)),
    words=_TEXTS.filter(str.isprintable),
    label=st.booleans(),
)
def test_any_answer_over_grpc_is_told_or_refused_in_one_line(
    rpc: Any, metadata: bytes, predict: bytes, status: Any, words: str, label: bool
) -> None:
    rpc.metadata, rpc.predict, rpc.status, rpc.words = metadata, predict, status, words
    ask(rpc.url, *(["--label=stable"] if label else []))


@given(row=_ROWS)
@examples(3)
def test_any_row_is_a_ranking_or_refused(row: Any) -> None:
    found = refusal_or(lambda: ranking(row))
    if not isinstance(found, InputError):
        scores = [score for _, score in found if not math.isnan(score)]
        assert scores == sorted(scores, reverse=True)


@given(
    dtype=st.integers(0, 24),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 2**24, 2**40, -1]), max_size=6),
    repeated=st.integers(1, 400),
    content=st.binary(max_size=40),
    strings=st.lists(st.binary(max_size=5), max_size=4),
    numbers=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
)
@examples(3)
def test_any_tensor_is_read_or_refused(
    dtype: int, shape: list[int], repeated: int, content: bytes, strings: list[bytes], numbers: list[int]
) -> None:
    proto = messages.TensorProto(
        dtype=dtype, tensor_content=content, string_val=strings, int_val=numbers, half_val=numbers
    )
    many = 2**20 if {2**24, 2**40} & set(shape) else repeated
    for size in shape * (repeated if many < 2**20 else 1):
        proto.tensor_shape.dim.add(size=size)
    if math.prod(size for size in shape if size > 0) ** (repeated if many < 2**20 else 1) <= 10**4:
        refusal_or(lambda: tensor_values.read(proto))
    elif math.prod(size for size in shape if size) > tensor_values.LARGEST:
        assert isinstance(refusal_or(lambda: tensor_values.read(proto)), InputError)


@pytest.mark.parametrize(
    "shape", [[1, 38, 1, 38, 1, 1, 38, 1, 38, 1, 1, 1], [2**24] + [1] * 200, [2**22, 2, 0, 2], [1] * 255],
    ids=["found by the fuzzer", "lists of lists", "empty ones", "dimensions"],
)  # fmt: skip
def test_a_shape_cannot_ask_for_millions_of_lists(shape: list[int]) -> None:
    proto = messages.TensorProto(dtype=tensor_values.STRING, string_val=[b"cat"])
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    started = time.monotonic()
    assert isinstance(refusal_or(lambda: tensor_values.read(proto)), InputError)
    assert time.monotonic() - started < 5


_DATES = st.one_of(
    _TEXTS,
    st.from_regex(r"\A[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d\d?:\d\d:\d\d ?[-+A-Z0-9]{0,6}\Z"),
)


@given(text=_DATES, date=_DATES)
@examples(2)
def test_any_retry_after_is_a_number_from_0_or_none(text: str, date: str) -> None:
    found = retry_after(text, date)
    assert found is None or found >= 0


@given(
    name=_TEXTS,
    picture=_TEXTS,
    score=st.floats(0, 1),
    form=st.sampled_from(sorted(WRITERS)),
    terminal=st.booleans(),
)
@examples(3)
def test_names_reach_files_whole_and_no_terminal(
    name: str, picture: str, score: float, form: str, terminal: bool
) -> None:
    to = Printed(terminal=terminal)
    writer = WRITERS[form](to)
    writer.write(Answer(picture, [(name, score)]))
    writer.end()
    text = to.text()
    if terminal or form != "csv":
        assert_harmless(text)
    whole = all(not 0xD800 <= ord(c) < 0xE000 for c in name)
    if form in ("json", "jsonl"):
        document = json.loads(text)[0] if form == "json" else json.loads(text)
        assert document["predictions"][0]["class"] == name
        assert document["picture"] == picture
    elif form == "csv" and not terminal and whole and "\0" not in name + picture:
        (_, row) = csv.reader(io.StringIO(text, newline=""))
        assert row[2] == name


def test_time_is_bounded_where_a_server_asks_for_ages(scripted: Any) -> None:
    started = time.monotonic()
    for ages in ("9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"):
        scripted.answers = [(503, {"error": "later"}, {"Retry-After": ages})]
        ask(scripted.url)
    assert time.monotonic() - started < 8
