"""Downloads over bad networks: what is resumed, tried again, refused and told, and what is left on disk."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest

from graftflow import downloads, transfers
from graftflow.addresses import mirrored, shown, split_checksum
from graftflow.downloads import DownloadError, download
from graftflow.errors import InputError
from tests.unit.bad_server import BadServer, File, bad_server
from tests.unit.damages import damage

CONTENT = np.random.Generator(np.random.PCG64(0)).bytes(300_000)
OTHER = CONTENT[::-1]
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    monkeypatch.setattr(downloads, "PAUSES", (0.0, 0.0, 0.0))
    with bad_server() as served:
        yield served


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "a.zip"


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def told(urls: str | list[str], target: Path, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        download(urls, target, **settings)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    return str(caught.value)


def test_a_file_is_fetched_and_its_checksum_returned(server: BadServer, target: Path) -> None:
    server.files["/a.zip"] = File(CONTENT)
    assert download(f"{server.url}/a.zip", target, sha256=SHA256, size=len(CONTENT)) == SHA256
    assert target.read_bytes() == CONTENT
    assert left(target) == ["a.zip"]
    download(f"{server.url}/a.zip", target, sha256=SHA256)
    assert len(server.log) == 1


def test_a_file_that_is_there_and_wrong_is_replaced_or_removed(server: BadServer, target: Path) -> None:
    server.files["/a.zip"] = File(CONTENT)
    target.parent.mkdir()
    target.write_bytes(OTHER)
    told(f"{server.url}/none.zip", target, sha256=SHA256)
    target.write_bytes(OTHER)
    download(f"{server.url}/a.zip", target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("sha256", ["", SHA256])
def test_a_dropped_connection_goes_on_where_it_broke(server: BadServer, target: Path, sha256: str) -> None:
    # More drops than there are pauses: what brings new bytes goes on.
    server.files["/a.zip"] = File(CONTENT, drops=[40_000] * 6)
    download(f"{server.url}/a.zip", target, sha256=sha256)
    assert target.read_bytes() == CONTENT
    assert [request.status for request in server.log] == [200] + [206] * 6
    assert server.sent == len(CONTENT)


def test_a_server_without_ranges_starts_anew(server: BadServer, target: Path) -> None:
    server.files["/a.zip"] = File(CONTENT, drops=[200_000, 100_000], ranges=False)
    download(f"{server.url}/a.zip", target)
    assert target.read_bytes() == CONTENT
    assert server.log[1].range == "bytes=200000-"
    assert [request.status for request in server.log] == [200, 200, 200]


def test_without_validator_or_checksum_nothing_is_continued(server: BadServer, target: Path) -> None:
    server.files["/a.zip"] = File(CONTENT, drops=[200_000], validators=False)
    download(f"{server.url}/a.zip", target)
    assert [request.range for request in server.log] == ["", ""]
    target.unlink()
    server.files["/b.zip"] = File(CONTENT, drops=[200_000], validators=False)
    download(f"{server.url}/b.zip", target, sha256=SHA256)
    assert server.log[-1].range == "bytes=200000-"
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("sha256", ["", hashlib.sha256(OTHER).hexdigest()])
def test_a_file_that_changes_between_tries_is_never_pieced_together(
    server: BadServer, target: Path, heeds: bool, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "PAUSES", ())
    server.files["/a.zip"] = File(CONTENT, drops=[100_000], heeds_if_range=heeds)
    assert "ended before the file did" in told(f"{server.url}/a.zip", target)
    assert left(target) == ["a.zip.part", "a.zip.part.json", "a.zip.part.sums"]
    server.files["/a.zip"] = File(OTHER, heeds_if_range=heeds)
    monkeypatch.setattr(downloads, "PAUSES", (0.0,))
    download(f"{server.url}/a.zip", target, sha256=sha256)
    assert server.log[1].range == "bytes=100000-"
    assert target.read_bytes() == OTHER


def test_pieces_of_two_sources_are_proved_by_the_checksum(server: BadServer, target: Path) -> None:
    server.files["/a.zip"] = File(CONTENT, drops=[100_000, 0, 0, 0])
    server.files["/mirror/a.zip"] = File(CONTENT)
    urls = [f"{server.url}/a.zip", f"{server.url}/mirror/a.zip"]
    download(urls, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.log[-1].range == "bytes=100000-"
    # The first source had another file: its bytes are thrown away, not the second source.
    target.unlink()
    server.files["/a.zip"] = File(OTHER, drops=[100_000, 0, 0, 0])
    download(urls, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert [request.range for request in server.log[-2:]] == ["bytes=100000-", ""]


def test_a_finished_part_is_not_fetched_again(server: BadServer, target: Path) -> None:
    file = server.files["/a.zip"] = File(CONTENT)
    target.parent.mkdir()
    target.with_name("a.zip.part").write_bytes(CONTENT)
    target.with_name("a.zip.part.sums").write_text(f"{len(CONTENT)} {SHA256}\n")
    origin = {"url": f"{server.url}/a.zip", "etag": file.etag, "last_modified": "", "length": len(CONTENT)}
    target.with_name("a.zip.part.json").write_text(json.dumps(origin))
    download(f"{server.url}/a.zip", target)
    assert target.read_bytes() == CONTENT
    assert [(request.status, request.sent) for request in server.log] == [(416, 0)]


@pytest.mark.parametrize("origin", ["", "{", "[]", '{"url": 1, "x": 2}'])
def test_a_part_without_a_readable_origin_starts_anew(server: BadServer, target: Path, origin: str) -> None:
    server.files["/a.zip"] = File(CONTENT)
    target.parent.mkdir()
    target.with_name("a.zip.part").write_bytes(OTHER[:1000])
    target.with_name("a.zip.part.json").write_text(origin)
    download(f"{server.url}/a.zip", target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


@pytest.mark.parametrize("lie", ["bytes 0-199999/300000", "bytes 5-9/10", "nonsense"])
def test_a_wrong_content_range_is_refused(server: BadServer, target: Path, lie: str) -> None:
    server.files["/a.zip"] = File(CONTENT, drops=[100_000], headers={"Content-Range": lie})
    download(f"{server.url}/a.zip", target)
    assert target.read_bytes() == CONTENT
    assert [request.status for request in server.log] == [200, 206, 200]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_answers_that_pass_are_waited_for(server: BadServer, target: Path, status: int) -> None:
    server.files["/a.zip"] = File(CONTENT, answers=[(status, {}), (status, {})])
    download(f"{server.url}/a.zip", target)
    assert [request.status for request in server.log] == [status, status, 200]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_answers_that_stay_lead_to_the_next_source_at_once(
    server: BadServer, target: Path, status: int
) -> None:
    server.files["/a.zip"] = File(CONTENT, answers=[(status, {})] * 9)
    server.files["/b.zip"] = File(CONTENT)
    download([f"{server.url}/a.zip", f"{server.url}/b.zip"], target)
    assert [request.status for request in server.log] == [status, 200]


def test_pauses_grow_and_retry_after_is_kept_within_bounds(
    server: BadServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(downloads, "PAUSES", (1.0, 2.0, 4.0, 8.0, 16.0))
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    server.files["/a.zip"] = File(
        CONTENT,
        answers=[
            (503, {}),
            (503, {"Retry-After": "7"}),
            (429, {"Retry-After": "86400"}),
            (503, {"Retry-After": date}),
            (503, {"Retry-After": "soon"}),
        ],
    )
    download(f"{server.url}/a.zip", target)
    waited = [pause for pause in pauses if pause]  # the server sleeps 0 s before each piece
    assert waited[:3] == [1.0, 7.0, 120.0]
    assert 30 < waited[3] <= 40
    assert waited[4:] == [16.0]


def test_a_server_that_never_recovers_is_given_up(server: BadServer, target: Path) -> None:
    server.files["/a.zip"] = File(CONTENT, answers=[(503, {})] * 99)
    assert "status 503 Service Unavailable (4 tries)" in told(f"{server.url}/a.zip", target)
    assert len(server.log) == 4
    assert left(target) == []


def test_every_source_is_told_in_one_line(server: BadServer, target: Path) -> None:
    server.files["/wrong/a.zip"] = File(OTHER)
    server.files["/short/a.zip"] = File(CONTENT[:-1], length=False)
    server.files["/long/a.zip"] = File(CONTENT + b"x")
    names = ["none", "wrong", "short", "long"]
    urls = [f"{server.url}/{name}/a.zip" for name in names] + [
        "http://127.0.0.1:9/a.zip",
        "nowhere://b/a.zip",
    ]
    message = told(urls, target, sha256=SHA256, size=len(CONTENT))
    assert message.startswith("Cannot download 'a.zip' from any of 6 sources: ")
    parts = message.split("; '")
    assert [url in part for url, part in zip(urls, parts, strict=True)] == [True] * 6
    assert "404 Not Found" in parts[0]
    assert f"not {SHA256}" in parts[1]
    assert "299,999 bytes, not 300,000" in parts[2]
    assert "300,001 bytes, not 300,000" in parts[3]
    assert "the connection was refused" in parts[4]
    assert "nowhere" in parts[5]
    assert left(target) == []


def test_a_wrong_file_is_removed_and_the_next_source_tried(server: BadServer, target: Path) -> None:
    server.files["/a.zip"] = File(OTHER)
    server.files["/mirror/a.zip"] = File(CONTENT)
    download([f"{server.url}/a.zip", f"{server.url}/mirror/a.zip"], target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["a.zip"]


def test_a_killed_download_goes_on_in_the_next_process(server: BadServer, target: Path) -> None:
    content = CONTENT * 8
    server.files["/a.zip"] = File(content, pause=0.05)
    code = "import sys; from graftflow.downloads import download; download(sys.argv[1], sys.argv[2])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, f"{server.url}/a.zip", str(target)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    part = target.with_name("a.zip.part")
    deadline = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size > 500_000):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not target.exists()
    server.files["/a.zip"].pause = 0.0
    download(f"{server.url}/a.zip", target)
    assert target.read_bytes() == content
    assert server.log[-1].status == 206
    assert server.sent < 2 * len(content)
    assert left(target) == ["a.zip"]


@pytest.mark.parametrize("kind", ["cut", "flip", "empty", "delete"])
@pytest.mark.parametrize("name", ["a.zip.part", "a.zip.part.json", "a.zip.part.sums"])
def test_an_earlier_part_that_was_damaged_never_gets_into_the_file(
    server: BadServer, target: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows the file's checksum, and its server says that it is the same."""
    monkeypatch.setattr(downloads, "PAUSES", ())
    server.files["/a.zip"] = File(CONTENT, drops=[250_000])
    told(f"{server.url}/a.zip", target)
    damage(target.with_name(name), kind, seed=1)
    assert download(f"{server.url}/a.zip", target) == SHA256
    assert left(target) == ["a.zip"]
    if name == "a.zip.part" and kind == "cut":
        assert server.log[-1].status == 206, "what is whole is kept"


def test_of_a_damaged_part_the_whole_chunks_are_kept(
    server: BadServer, target: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(downloads, "PAUSES", ())
    server.files["/a.zip"] = File(CONTENT, drops=[250_000])
    told(f"{server.url}/a.zip", target)
    part = target.with_name("a.zip.part")
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    download(f"{server.url}/a.zip", target)
    last = server.log[-1]
    assert last.status == 206
    assert 50_000 < last.sent < len(CONTENT)
    assert "bytes of an earlier try are cut or altered" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["cut", "flip", "empty", "delete"])
@pytest.mark.parametrize("name", ["a.zip", "a.zip.origin.json"])
def test_a_kept_file_that_was_damaged_is_fetched_again(
    server: BadServer, target: Path, name: str, kind: str, capsys
) -> None:
    url = f"{server.url}/a.zip"
    server.files["/a.zip"] = File(CONTENT)
    download(url, target, revalidate=True)
    damage(target.with_name(name), kind, seed=9)
    assert download(url, target, revalidate=True) == SHA256
    assert target.read_bytes() == CONTENT
    if name == "a.zip" and kind != "delete":
        assert "the kept a.zip is cut or altered, and is fetched again" in capsys.readouterr().out
        del server.files["/a.zip"]
        damage(target, kind, seed=9)
        with pytest.raises(DownloadError, match="404"):
            download(url, target, revalidate=True)


def test_two_processes_at_once_fetch_a_file_once(server: BadServer, target: Path) -> None:
    server.files["/a.zip"] = File(CONTENT, pause=0.1)
    found: list[str] = []

    def fetch() -> None:
        found.append(download(f"{server.url}/a.zip", target))

    threads = [threading.Thread(target=fetch) for _ in range(3)]  # flock() takes each open file for a process
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [SHA256] * 3
    assert len(server.log) == 1
    assert left(target) == ["a.zip"]


def test_a_full_disk_is_told(server: BadServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/a.zip"] = server.files["/b.zip"] = File(CONTENT)
    urls = [f"{server.url}/a.zip", f"{server.url}/b.zip"]
    usage = transfers.shutil.disk_usage(target.parent.parent)
    with monkeypatch.context() as patch:
        patch.setattr(transfers.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        assert "must have room for 'a.zip': 300,000 bytes more. Received: 1,000 free" in told(urls, target)
    assert left(target) == []
    target.with_name("a.zip.part").symlink_to("/dev/full")
    assert "No space left on device" in told(urls, target)
    assert {request.path for request in server.log} == {"/a.zip"}


def test_object_stores_are_read_through_fsspec(target: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/bucket/a.zip", CONTENT)
    assert download("memory://bucket/a.zip", target, sha256=SHA256) == SHA256
    assert "memory://bucket/none.zip" in told("memory://bucket/none.zip", target.with_name("b.zip"))
    assert left(target) == ["a.zip"]


def test_a_kept_file_is_fetched_again_only_when_it_changed(server: BadServer, target: Path) -> None:
    url = f"{server.url}/a.zip"
    file = server.files["/a.zip"] = File(CONTENT)
    for _ in range(2):
        assert download(url, target, revalidate=True) == SHA256
    assert [request.status for request in server.log] == [200, 304]
    file.validators = False  # nothing left to compare
    download(url, target, revalidate=True)
    assert server.log[-1].sent == len(CONTENT)
    download(url, target, revalidate=True)  # the length is all there is
    file.content = OTHER + b"x"
    download(url, target, revalidate=True)
    assert target.read_bytes() == file.content
    del server.files["/a.zip"]
    download(url, target, revalidate=True)
    assert target.read_bytes() == file.content
    target.write_bytes(b"cut")
    with pytest.raises(DownloadError, match="404"):
        download(url, target, revalidate=True)


def test_secrets_of_an_address_are_not_shown(server: BadServer, target: Path) -> None:
    address = server.url.replace("http://", "http://me:secret@") + "/a.zip?token=secret"
    message = told(address, target)
    assert "secret" not in message
    assert f"{server.url}/a.zip?…" in message
    server.files["/a.zip"] = File(CONTENT, drops=[100_000, 0, 0, 0])
    told(address, target)
    assert "secret" not in target.with_name("a.zip.part.json").read_text()
    assert shown("/a#b?c") == "/a#b?c"


def test_addresses_are_split_and_mirrored() -> None:
    assert split_checksum(f"https://h/a.zip#sha256={SHA256.upper()}") == ("https://h/a.zip", SHA256)
    assert split_checksum(f"/a#1/b.zip#SHA256={SHA256}") == ("/a#1/b.zip", SHA256)
    assert split_checksum("gs://b/a#1.zip") == ("gs://b/a#1.zip", "")
    for fragment in ("", "x", "sha256=", f"sha256={SHA256[1:]}", f"md5={SHA256}"):
        with pytest.raises(InputError, match="sha256= and 64 hexadecimal digits"):
            split_checksum(f"https://h/a.zip#{fragment}")
    assert mirrored("https://m/x/", "a.zip") == mirrored("https://m/x", "a.zip") == "https://m/x/a.zip"
    assert mirrored("https://m?sig=1", "a.zip") == "https://m/a.zip?sig=1"
