"""Passes through a frozen network: in order, side by side, no more ahead than they say, and the same bits."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from graftflow import passes

# One thread an operation in one process, TensorFlow's own in the other.
ROWS = """
import sys
import numpy as np
import tensorflow as tf
from graftflow import backbones, passes
if sys.argv[1] == "shared":
    assert passes.share_cores()
function = passes.frozen_function(backbones.build("efficientnet_lite0"), 224)
pixels = np.random.default_rng(0).uniform(0, 1, (9, 224, 224, 3)).astype(np.float32)
batches = [(start, tf.constant(pixels[start : start + int(sys.argv[2])])) for start in range(0, 9, int(sys.argv[2]))]
np.save(sys.argv[3], np.concatenate([rows for _, rows in passes.side_by_side(function, batches)]))
# Too late where TensorFlow has computed with other threads.
assert passes.share_cores() == (sys.argv[1] == "shared")
"""


def numbered(count: int) -> list[tuple[int, tf.Tensor]]:
    return [(number, tf.fill((2, 1), float(number))) for number in range(count)]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_rows_come_in_the_order_of_their_batches(at_once: int) -> None:
    def slow_at_first(pixels: tf.Tensor) -> tf.Tensor:
        time.sleep(0.05 if float(pixels[0, 0]) < 2 else 0)
        return pixels * 10

    found = list(passes.side_by_side(slow_at_first, numbered(9), at_once=at_once))
    assert [name for name, _ in found] == list(range(9))
    assert [rows[:, 0].tolist() for _, rows in found] == [[10.0 * n, 10.0 * n] for n in range(9)]


def test_as_many_run_at_once_as_were_asked_for() -> None:
    # Nobody passes the barrier before three are there.
    barrier = threading.Barrier(3, timeout=20)

    def meeting(pixels: tf.Tensor) -> tf.Tensor:
        barrier.wait()
        return pixels

    assert len(list(passes.side_by_side(meeting, numbered(6), at_once=3))) == 6


def test_no_more_batches_are_taken_than_are_under_way() -> None:
    taken, done = [], []

    def counted() -> Iterator[tuple[int, tf.Tensor]]:
        for name, pixels in numbered(20):
            taken.append(name)
            yield name, pixels

    for name, _ in passes.side_by_side(lambda pixels: pixels, counted(), at_once=2):
        done.append(name)
        assert len(taken) - len(done) <= 2


def test_a_failed_pass_ends_the_stream_behind_those_before_it() -> None:
    def failing(pixels: tf.Tensor) -> tf.Tensor:
        if float(pixels[0, 0]) == 3:
            raise ValueError("the third")
        return pixels

    found = []
    with pytest.raises(ValueError, match="the third"):
        for name, _ in passes.side_by_side(failing, numbered(9), at_once=2):
            found.append(name)
    assert found == [0, 1, 2]


def test_threads_and_batches_do_not_change_a_bit(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", ROWS, kind, size, str(tmp_path / f"{kind}.npy")])
        for kind, size in (("shared", "2"), ("alone", "9"))
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    shared, alone = (np.load(tmp_path / f"{kind}.npy") for kind in ("shared", "alone"))
    assert shared.tobytes() == alone.tobytes()
    assert np.ptp(shared) > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("6400000 100000", 64), ("", 64)],
)
def test_cores_follow_the_quota_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(passes, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(passes.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert passes.cores() == expected
    # Memory is bounded on large machines; what is left goes to the operations.
    assert passes.num_passes() == min(expected, 8)


def test_a_gpu_gets_larger_batches_and_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes.batch_size() == 8
    monkeypatch.setattr(passes.tf.config, "list_physical_devices", lambda kind: [kind])
    assert (passes.batch_size(), passes.num_passes()) == (64, 2)
