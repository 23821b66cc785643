"""One process at a time works on a path, and a lock ends with its process."""

import signal
import subprocess
import sys
from pathlib import Path

from graftflow.locks import locked, locked_if_free

HOLDER = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2].split(":")
from graftflow.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen:
    """Start a process that holds the lock of a path, and wait until it does."""
    arguments = [sys.executable, "-c", HOLDER, str(path), ":".join(sys.path)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_path_that_another_process_works_on_is_not_free(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with holder(path) as process:
        with locked_if_free(path) as free:
            assert not free
        process.send_signal(signal.SIGKILL)
    with locked_if_free(path) as free:
        assert free


def test_waiting_ends_with_the_process_that_held_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
        with locked(path):
            pass
    with locked(path) as waited:
        assert not waited
    assert not list(tmp_path.iterdir())
