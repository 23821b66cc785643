"""Does memory stay flat when a data set grows? Prints peak memory and speed of write_dataset, small set against large.

Both are JPEGs of 256 by 192 pixels: crops of the photographs in scikit-image at random places, sizes and brightness;
among many thousands some are nearly equal, so that there is something to find. Each data set is written by a process
of its own, which reports its largest resident set.

    python benchmarks/streaming.py                        # 1,000 and 20,000 pictures, some minutes
    python benchmarks/streaming.py --counts 200 1000 --json streaming.json
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "retina.jpg",
)
SIZE = (256, 192)


def main() -> None:
    """Make the pictures, convert them and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1000, 20_000], help="pictures of each data set"
    )
    parser.add_argument("--cache", action="store_true", help="keep a journal, as a step with a cache does")
    parser.add_argument("--json", type=Path, help="a file for the figures; by default they are printed")
    parser.add_argument(
        "--one", nargs=3, metavar=("PICTURES", "DESTINATION", "CACHE"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(convert(*arguments.one)))
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="streaming-") as scratch:
        root = Path(scratch)
        make_pictures(root / "pictures", max(arguments.counts))
        for count in sorted(arguments.counts):
            source = take(root / "pictures", root / f"first-{count}", count)
            rows.append({"pictures": count, **measure(source, root / f"dataset-{count}", arguments.cache)})
    print(table(rows))
    figures = json.dumps({"threads": os.cpu_count(), "cache": arguments.cache, "rows": rows}, indent=2)
    if arguments.json:
        arguments.json.write_text(figures + "\n", encoding="utf-8")
    else:
        print(figures)


def make_pictures(folder: Path, count: int) -> None:
    """Write ``count`` crops as JPEG, a folder a photograph."""
    generator = np.random.default_rng(0)
    photographs = {
        name.partition(".")[0]: Image.open(str(files("skimage") / "data" / name)).convert("RGB")
        for name in PHOTOGRAPHS
    }
    for label in photographs:
        (folder / label).mkdir(parents=True)
    for i in range(count):
        label = list(photographs)[i % len(photographs)]
        whole = photographs[label]
        width = int(generator.integers(90, min(whole.width, whole.height * 4 // 3)))
        height = width * 3 // 4
        left, top = (
            int(generator.integers(0, room + 1)) for room in (whole.width - width, whole.height - height)
        )
        crop = whole.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.BILINEAR)
        brighter = ImageEnhance.Brightness(crop).enhance(float(generator.uniform(0.7, 1.3)))
        file = io.BytesIO()
        brighter.save(file, "JPEG", quality=85)
        (folder / label / f"{i:06d}.jpg").write_bytes(file.getvalue())


def take(folder: Path, destination: Path, count: int) -> Path:
    """Link the first ``count`` pictures into a folder of their own."""
    for file in folder.glob("*/*.jpg"):
        if int(file.stem) < count:
            (destination / file.parent.name).mkdir(parents=True, exist_ok=True)
            (destination / file.parent.name / file.name).hardlink_to(file)
    return destination


def measure(source: Path, destination: Path, cache: bool) -> dict[str, Any]:
    """Convert in a new process and return what it reports."""
    destination.mkdir()
    kept = str(destination.with_suffix(".cache")) if cache else ""
    command = [sys.executable, __file__, "--one", str(source), str(destination), kept]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def convert(source: str, destination: str, cache: str) -> dict[str, Any]:
    """Write one data set and return peak memory in MB, seconds and what was found."""
    import tensorflow  # noqa: F401  (its memory is counted as that of the imports)

    from graftflow.datasets import write_dataset

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    info = write_dataset(
        destination,
        source=f"directory:{source}",
        seed=0,
        validation_fraction=0.15,
        test_fraction=0.15,
        cache=cache or None,
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "imports_mb": round(before / 1024),
        "peak_mb": round(peak / 1024),
        "seconds": round(seconds, 1),
        "pictures_per_second": round(info.pictures / seconds),
        "near_duplicates": info.audit["near_duplicates"],
        "dataset_mb": round(sum(file.stat().st_size for file in Path(destination).iterdir()) / 2**20),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown, with the growth of the peak from the first row."""
    lines = [
        "| pictures | MB of data | MB after imports | peak MB | peak, relative | seconds | pictures/s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['pictures']:,} | {row['dataset_mb']:,} | {row['imports_mb']:,} | {row['peak_mb']:,} "
            f"| {row['peak_mb'] / rows[0]['peak_mb']:.2f} | {row['seconds']:,} | {row['pictures_per_second']:,} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
