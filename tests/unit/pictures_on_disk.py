"""Small pictures in folders, and what a data set made of them says; shared by several tests."""

import csv
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graftflow.datasets import DatasetInfo, read_split, write_dataset

FRACTIONS = {"validation_fraction": 0.2, "test_fraction": 0.2}


def bmp(index: int, side: int = 4) -> bytes:
    """Encode a plain colour without any library, so that its bytes are the same everywhere."""
    row = bytes((index % 256, index // 256 % 256, 99)) * side
    row += bytes(-len(row) % 4)
    start = struct.pack("<2sIHHI", b"BM", 54 + len(row) * side, 0, 0, 54)
    about = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return start + about + row * side


def encode(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def photo(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def make_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def cats_and_dogs(count: int = 10) -> dict[str, bytes]:
    return {
        f"{label}/{i}.jpg": encode(photo(1000 * k + i), "JPEG")
        for k, label in enumerate(("cat", "dog"))
        for i in range(count)
    }


def write(root: Path, *, seed: int = 0, **settings: Any) -> tuple[Path, DatasetInfo]:
    destination = root.parent / f"{root.name}-{seed}-{len(list(root.parent.iterdir()))}"
    destination.mkdir()
    settings = FRACTIONS | settings
    return destination, write_dataset(destination, source=f"directory:{root}", seed=seed, **settings)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def reasons(dataset: Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in rows(dataset / "left_out.csv")}


def records(dataset: Path, split: str) -> list[tuple[str, int, bytes]]:
    return [
        (example["path"].decode(), int(example["label"]), example["image"])
        for example in read_split(dataset, split).as_numpy_iterator()
    ]
