"""Bytes on disk: shards, flat memory, and disks that refuse."""

import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftflow.datasets import read_split, write_dataset
from graftflow.errors import InputError
from graftflow.files import atomic_directory
from graftflow.records import Record, Spool, write_shards
from tests.unit.pictures_on_disk import (
    FRACTIONS,
    bmp,
    cats_and_dogs,
    encode,
    make_folder,
    photo,
    records,
    write,
)


def test_shards_divide_a_split_and_keep_its_order(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", cats_and_dogs(20))
    (whole, _), (divided, _) = write(root), write(root, shard_megabytes=0.002)
    names = sorted(p.name for p in divided.glob("train-*"))
    assert len(names) > 3
    assert names[-1] == f"train-{len(names) - 1:05d}-of-{len(names):05d}.tfrecord"
    assert records(divided, "train") == records(whole, "train")
    (divided / names[1]).unlink()
    with pytest.raises(InputError, match=f"'train' must have {len(names)} TFRecord files"):
        read_split(divided, "train")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses files beyond ``size`` bytes, as a disk refuses them when it is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_refusing_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {f"{c}/{i}.bmp": bmp(i, 300) for c in "ab" for i in range(5)})
    files = {f"{c}/{i}.png": encode(noise(i + ord(c)), "PNG") for c in "ab" for i in range(5)}
    make_folder(root, files)
    runs = tmp_path / "runs"
    with (
        pytest.raises(InputError, match=r"Cannot write in folder '.*dataset.*': File too large"),
        largest_file(50_000),
        atomic_directory(runs / "dataset") as folder,
    ):
        write_dataset(folder, source=f"directory:{root}", seed=0, **FRACTIONS)
    assert list(runs.iterdir()) == []


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 80, 3), np.uint8))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Spool, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "add", full)
    root = make_folder(tmp_path / "pets", cats_and_dogs())
    destination = tmp_path / "dataset"
    destination.mkdir()
    with pytest.raises(InputError, match=r"in folder '.*dataset': No space left on device"):
        write_dataset(destination, source=f"directory:{root}", seed=0, **FRACTIONS)
    assert list(destination.iterdir()) == []


def test_a_disk_that_refuses_a_shard_is_one_line(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        span = spool.add(bytes(10_000))
        many = [Record(f"a/{i}", 0, span) for i in range(100)]
        with (
            pytest.raises(InputError, match="Cannot write in folder") as caught,
            largest_file(99_999),
        ):
            write_shards(tmp_path, {"train": many}, spool, shard_bytes=10**9, advance=lambda: None)
    assert "\n" not in str(caught.value)


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    # 100 pictures of 1 MB each: all of them at once would be 100 MB.
    files = {f"{c}/{i}.jpg": encode(photo(i + 100 * ord(c)), "JPEG") for c in "ab" for i in range(50)}
    padding = b"".join(b"\xff\xfe\xff\xff" + bytes(0xFFFD) for _ in range(16))
    padded = {name: content[:2] + padding + content[2:] for name, content in files.items()}
    root = make_folder(tmp_path / "large", padded)
    tracemalloc.start()
    dataset, info = write(root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert info.audit["converted"] == 0
    assert sum(p.stat().st_size for p in dataset.iterdir()) > 100e6
    assert peak < 40e6
