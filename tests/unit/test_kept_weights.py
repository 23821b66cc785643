"""Weight files that stay on this machine: taken as they came, fetched again otherwise, by one process at a time."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftflow import backbones, downloads
from graftflow.backbones import _local_file
from graftflow.downloads import DownloadError
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


def at_once(call: Callable[[], Any], times: int = 4) -> list[Any]:
    """Call a function in some threads; flock() takes each open file for a process."""
    found: list[Any] = []

    def note() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=note) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_weights_with_a_checksum_are_checked_each_time(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    server.files["/w.h5"] = File(CONTENT)
    address = f"{server.url}/w.h5"
    path = _local_file(f"{address}#sha256={SHA256}")
    assert path.read_bytes() == CONTENT
    assert _local_file(address) == path
    path.write_bytes(OTHER)
    assert _local_file(f"{address}#sha256={SHA256}").read_bytes() == CONTENT
    assert len(server.log) == 2
    with pytest.raises(DownloadError, match=r"w\.h5': its file has the SHA-256"):
        _local_file(f"{address}#sha256={'0' * 64}")


@pytest.mark.parametrize("kind", ["cut", "flip", "empty", "delete"])
def test_kept_weights_that_were_damaged_are_fetched_again(
    server: BadServer, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    server.files["/w.h5"] = File(CONTENT)
    address = f"{server.url}/w.h5"
    path = _local_file(address)
    assert _local_file(address) == path
    assert len(server.log) == 1
    for file in (path, path.with_name(f"{path.name}.sha256")):
        capsys.readouterr()
        damage(file, kind, seed=3)
        assert _local_file(address).read_bytes() == CONTENT
        told = f"the kept weights '{path}' are cut or altered" in capsys.readouterr().out
        assert told == (kind != "delete")
    # Where it cannot be fetched, it is not used either.
    damage(path, "flip", seed=3)
    del server.files["/w.h5"]
    with pytest.raises(DownloadError, match="404"):
        _local_file(address)


def test_weights_whose_note_was_never_written_are_not_trusted(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two leaves a file alone; a power cut may have cut it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    server.files["/w.h5"] = File(CONTENT)
    address = f"{server.url}/w.h5"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("graftflow.kept_weights.note", killed)
        with pytest.raises(KeyboardInterrupt):
            _local_file(address)
    (path,) = (tmp_path / ".cache" / "graftflow").iterdir()
    damage(path, "cut", seed=0)
    assert _local_file(address).read_bytes() == CONTENT
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.sha256"]


def test_processes_that_find_the_same_damage_fetch_the_file_once(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    server.files["/w.h5"] = File(CONTENT, pause=0.02)
    address = f"{server.url}/w.h5"
    path = _local_file(address)
    for fetched in range(2, 5):
        damage(path, "flip", seed=fetched)
        assert at_once(lambda: _local_file(address)) == [path] * 4
        assert path.read_bytes() == CONTENT
        assert len(server.log) == fetched


@pytest.mark.parametrize("kind", ["flip", "killed", "none"])
def test_keras_fetches_a_file_once_for_processes_that_find_it_damaged(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras writes into the file itself: without a lock, the second process loads half of it."""
    import keras

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    file = tmp_path / "models" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
    fetched: list[str] = []

    def fake(*, weights: str, **_: object) -> str:
        if not file.exists():
            fetched.append(weights)
            file.parent.mkdir(exist_ok=True)
            for end in (1000, len(CONTENT)):
                file.write_bytes(CONTENT[:end])
                time.sleep(0.05)
        if len(file.read_bytes()) != len(CONTENT):
            raise OSError("truncated file")
        return "network"

    def build() -> Any:
        return backbones._application(backbones.get("mobilenetv2"), "imagenet", include_top=False)

    monkeypatch.setattr(keras.applications, "MobileNetV2", fake)
    if kind != "none":
        assert build() == "network"
        damage(file, "flip" if kind == "flip" else "cut", seed=0)
        if kind == "killed":
            file.with_name(f"{file.name}.sha256").unlink()
    assert at_once(build) == ["network"] * 4
    assert file.read_bytes() == CONTENT
    assert len(fetched) == (1 if kind == "none" else 2)
