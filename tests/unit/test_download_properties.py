"""The downloader, of any headers: a file that is right, or one line of refusal."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graftflow import downloads
from graftflow.downloads import download
from graftflow.errors import InputError
from tests.unit.bad_server import BadServer, File, bad_server
from tests.unit.properties import examples, refusal_or

# Where requests itself gives up on a header, it leaves the connection to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
CONTENT = np.random.Generator(np.random.PCG64(0)).bytes(30_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[BadServer]:
    with pytest.MonkeyPatch.context() as patch, bad_server() as served:
        patch.setattr(downloads, "PAUSES", (0.0, 0.0))
        patch.setattr(downloads.time, "sleep", lambda _: None)
        yield served


# What headers hold: one character a byte.
_TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=9)
_NUMBERS = [
    "\xb2",
    "1\xb2",
    "0",
    "7",
    "-1",
    "+7",
    "7, 7",
    " 7",
    "9" * 18,
    "9" * 19,
    "9" * 5000,
    "30000",
    "inf",
]
_VALUES = st.one_of(
    st.sampled_from(_NUMBERS),
    st.sampled_from(['"x"', 'W/"x"', '"\xff"', '"', "\xa0x", "\x85", '"' + "x" * 5000 + '"', "\x1b[2J"]),
    st.sampled_from([f"bytes 10000-29999/{number}" for number in _NUMBERS]),
    st.sampled_from(["bytes */\xb2", f"bytes {'9' * 5000}-9/30000", "none", "bytes", "gzip", "chunked"]),
    st.sampled_from(["Mon, 1 Jan 99999 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "Sun, 0 Jan 0000"]),
    _TEXTS,
)
_NAMES = ["Content-Length", "Content-Range", "Retry-After", "ETag", "Last-Modified", "Accept-Ranges",
          "Content-Encoding", "Transfer-Encoding", "Date", "X"]  # fmt: skip
_HEADERS = st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=3)
# Nowhere but to this machine.
_PLACES = st.one_of(
    st.sampled_from(["/a.zip", "", "?", "\xff", "http://\xff/", "http://[", "http://.a/", "http://127.0.0.1:\xb2/",
                     "http://127.0.0.1:99999/", "ftp://127.0.0.1/", "http:///a.zip", "http://127.0.0.1:0/"]),
    _TEXTS.map(lambda text: "/" + text.replace("/", "").replace("\\", "")),
)  # fmt: skip
_ANSWERS = st.tuples(
    st.sampled_from([206, 301, 302, 304, 307, 401, 404, 416, 429, 503]),
    st.builds(lambda headers, place: headers | {"Location": place}, _HEADERS, _PLACES),
)


@given(
    answers=st.lists(_ANSWERS, max_size=2),
    headers=_HEADERS,
    drops=st.lists(st.sampled_from([0, 10_000]), max_size=2),
    sha256=st.sampled_from(["", SHA256]),
)
@example(answers=[], headers={"Content-Length": "\xb2"}, drops=[], sha256="")
@example(answers=[(503, {"Retry-After": "\xb2"})], headers={}, drops=[], sha256="")
@example(answers=[(302, {"Location": "\xff"})], headers={}, drops=[], sha256="")
@examples(2)
def test_any_headers_end_in_the_file_or_in_one_line(
    server: BadServer,
    answers: list[tuple[int, dict[str, str]]],
    headers: dict[str, str],
    drops: list[int],
    sha256: str,
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        for _ in range(
            2
        ):  # the second asks whether the kept file is still the server's, or goes on with a part
            server.files["/a.zip"] = File(CONTENT, answers=list(answers), drops=list(drops), headers=headers)
            found = refusal_or(
                lambda: download(f"{server.url}/a.zip", folder / "a.zip", sha256=sha256, revalidate=True)
            )
            if isinstance(found, InputError):
                assert not (folder / "a.zip").exists()
                continue
            content = (folder / "a.zip").read_bytes()
            assert found == hashlib.sha256(content).hexdigest()
            # Without a checksum nobody knows better than a server that says how long its file is.
            if sha256 or not {"Content-Length", "Transfer-Encoding"} & set(headers):
                assert content == CONTENT
            assert CONTENT.startswith(content)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("validator", ["\xa0x", "\x85", '"\x1b[2J"'])
def test_a_validator_that_cannot_be_sent_back_is_none(
    server: BadServer, tmp_path: Path, validator: str
) -> None:
    """A try that asks with it would fail for ever, and so would those of later processes, on the same part."""
    headers = {"ETag": validator, "Last-Modified": validator}
    server.files["/a.zip"] = File(CONTENT, drops=[10_000], headers=headers)
    for _ in range(2):
        assert download(f"{server.url}/a.zip", tmp_path / "a.zip", revalidate=True) == SHA256
