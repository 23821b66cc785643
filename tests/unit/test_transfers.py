"""What a killed or cut-off download leaves beside its destination, and how much of it the next one keeps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graftflow.downloads import download
from graftflow.transfers import Origin, Part
from tests.unit.bad_server import File, bad_server

CHUNK = 1448  # bytes of a packet: on a slow link they come one by one
_APPEND_AND_DIE = """
import os, signal, sys
from pathlib import Path
from graftflow.transfers import Part
chunks = (os.urandom(int(sys.argv[2])) for _ in range(9))
appended = Part(Path(sys.argv[1]), "a.zip").append(chunks)
for _ in range(5):
    next(appended)
os.kill(os.getpid(), signal.SIGKILL)
"""


def chunks(count: int) -> list[bytes]:
    return [bytes([number]) * CHUNK for number in range(count)]


def test_what_came_before_a_kill_is_kept_however_often_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    Part(path, "a.zip").begin(Origin("http://h/a.zip"))
    for kills in range(1, 4):
        subprocess.run([sys.executable, "-c", _APPEND_AND_DIE, str(path), str(CHUNK)], check=False)
        assert Part(path, "a.zip").size == kills * 5 * CHUNK


@pytest.mark.parametrize("torn", [0, 9])
def test_a_sum_of_bytes_that_are_gone_does_not_stand_for_others(tmp_path: Path, torn: int) -> None:
    """A power cut may keep the sums and lose the end of the bytes, or tear a sum."""
    part = Part(tmp_path / "a.zip", "a.zip")
    part.begin(Origin("http://h/a.zip"))
    list(part.append(iter(chunks(4))))
    os.truncate(part.path, 3 * CHUNK)
    sums = tmp_path / "a.zip.part.sums"
    os.truncate(sums, sums.stat().st_size - torn)
    list(Part(tmp_path / "a.zip", "a.zip").append(iter(chunks(9)[8:])))
    assert Part(tmp_path / "a.zip", "a.zip").path.read_bytes() == b"".join([*chunks(3), chunks(9)[8]])


def test_a_file_takes_its_name_once_its_bytes_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test cuts the power; what it would leave is what was synced."""
    content, synced, named = b"".join(chunks(9)), {}, []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    def noted_replace(source: Path, destination: Path) -> None:
        if destination == tmp_path / "a.zip":
            named.append(synced.get(os.stat(source).st_ino))
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with bad_server() as server:
        server.files["/a.zip"] = File(content)
        download(f"{server.url}/a.zip", tmp_path / "a.zip")
    assert named == [len(content)]
