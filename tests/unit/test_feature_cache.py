"""The feature cache as a folder: shared by processes, self-checking, bounded."""

import errno
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from graftflow import files
from graftflow.feature_cache import FeatureCache, bound

WRITER = """
import sys
from pathlib import Path
import numpy as np
from graftflow.feature_cache import FeatureCache
first = int(sys.argv[2])
cache = FeatureCache(Path(sys.argv[1]), width=3)
for number in range(first, first + 40):
    cache.add([bytes([number]) * 32], np.full((1, 3), number, np.float32))
    cache.flush()
"""


def digest(number: int) -> bytes:
    return bytes([number]) * 32


def test_rows_come_back_bit_by_bit(tmp_path: Path) -> None:
    rows = np.random.Generator(np.random.PCG64(0)).normal(size=(5, 7)).astype(np.float32)
    rows[0, :3] = (np.nan, -0.0, np.inf)
    cache = FeatureCache(tmp_path / "a", width=7)
    cache.add([digest(i) for i in range(5)], rows)
    assert not list((tmp_path / "a").iterdir())
    cache.flush()
    cache.flush()
    again = FeatureCache(tmp_path / "a", width=7)
    assert len(again) == 5
    assert digest(5) not in again
    for i in range(5):
        assert again.get(digest(i)).tobytes() == rows[i].tobytes()


def test_rows_that_were_written_take_no_memory_and_are_found_all_the_same(tmp_path: Path) -> None:
    rows = np.random.Generator(np.random.PCG64(0)).normal(size=(64, 2**16)).astype(np.float32)
    cache = FeatureCache(tmp_path, width=2**16)
    tracemalloc.start()
    try:
        for i, row in enumerate(rows):
            cache.add([digest(i)], row[None].copy())
        cache.flush()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < rows.nbytes / 20
    assert all(np.array_equal(cache.get(digest(i)), row) for i, row in enumerate(rows))


def test_rows_are_held_where_the_disk_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path, width=3)

    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "atomic_file", full)
    cache.add([digest(1)], np.full((1, 3), 5, np.float32))
    cache.flush()
    assert cache.get(digest(1)).tolist() == [5, 5, 5]


def test_many_rows_are_written_before_the_end(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, width=2**20)
    for i in range(5):
        cache.add([digest(i)], np.zeros((1, 2**20), np.float32))
    assert len(FeatureCache(tmp_path, width=2**20)) == 4


def test_processes_share_the_folder(tmp_path: Path) -> None:
    source = str(Path(__file__).resolve().parents[2] / "src")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), first], env={"PYTHONPATH": source})
        for first in ("0", "20")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    cache = FeatureCache(tmp_path, width=3)
    assert len(cache) == 60
    assert all(cache.get(digest(i)).tolist() == [i, i, i] for i in range(60))
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("damage", [b"", b"x", b"y" * 44])
def test_a_file_that_is_not_what_its_name_says_is_removed(tmp_path: Path, damage: bytes) -> None:
    cache = FeatureCache(tmp_path, width=3)
    cache.add([digest(1)], np.ones((1, 3), np.float32))
    cache.flush()
    (file,) = tmp_path.glob("*.rows")
    file.write_bytes(damage)
    assert len(FeatureCache(tmp_path, width=3)) == 0
    assert not file.exists()


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path: Path) -> None:
    old, young = tmp_path / ".a.x.partial.rows", tmp_path / ".b.y.partial.rows"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    assert len(FeatureCache(tmp_path, width=3)) == 0
    assert not old.exists()
    assert young.exists()


def test_a_cache_that_cannot_be_written_only_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = FeatureCache(tmp_path / "cache", width=3)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file where the folder was")
    cache.add([digest(1)], np.ones((1, 3), np.float32))
    cache.flush()
    assert "not kept for the next run" in capsys.readouterr().out
    assert cache.get(digest(1)).tolist() == [1, 1, 1]


def test_the_caches_opened_longest_ago_go_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.rows").write_bytes(bytes(1000))
        os.utime(folder, (1e9 - age,) * 2)
    bound(tmp_path, keep=tmp_path / "old", limit_bytes=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    bound(tmp_path, keep=tmp_path / "old", limit_bytes=0)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
