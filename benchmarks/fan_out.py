"""Where extracting features in shards pays: a cost model, checked by measurement: ``python -m benchmarks.fan_out``.

The seconds until N pictures have features, in n shards that run at once, each in a pod of its own:

    T(n) = pod + start + read + N / (n · rate) + gather(n)

``pod`` is the wait for the pod and its image; ``start`` Python, TensorFlow, the backbone and its folding; ``read``
the records, which every shard passes over to find its own; ``rate`` pictures a second through the backbone. A shard
of one picture gives ``start + read``, one of all pictures ``rate``. T(2), T(4), … are then predictions; they are
compared with the longest of n shards that run one after another, each in a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BACKBONE = "efficientnet_lite0"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cats-vs-dogs"
_SHARD = """
import sys
from graftflow.features import write_feature_shard
write_feature_shard(sys.argv[1], dataset_path=sys.argv[2], backbone=sys.argv[3], weights="imagenet",
                    shard=int(sys.argv[4]), num_shards=int(sys.argv[5]))
"""
_GATHER = """
import sys
from graftflow.feature_shards import merge_shards
merge_shards(sys.argv[1], shard_paths=sys.argv[2:])
"""


@dataclass(frozen=True)
class CostModel:
    """What a shard costs.

    Attributes:
        fixed: seconds of every shard whatever it holds: start and read.
        rate: pictures a second through the backbone, decoding included.
        gather: seconds of the gather, its own start included.
        pod: seconds from the task's submission to its first line, on a node that has the image.
        cold: seconds more on a node without the image: its pull, or the node's own start.
    """

    fixed: float
    rate: float
    gather: float
    pod: float = 0.0
    cold: float = 0.0

    def seconds(self, pictures: int, shards: int) -> float:
        """Return T(n): one shard finds a node with the image, of several the last one does not."""
        waiting = self.pod + (self.cold if shards > 1 else 0.0)
        return waiting + self.fixed + pictures / (shards * self.rate) + self.gather

    def paid(self, pictures: int, shards: int) -> float:
        """Return the seconds that all extracting pods hold their nodes, the wait for the image included."""
        waiting = shards * self.pod + (shards - 1) * self.cold
        return waiting + shards * self.fixed + pictures / self.rate

    def break_even(self, shards: int) -> int:
        """Return from how many pictures on n shards end before one does."""
        return round(self.rate * self.cold / (1 - 1 / shards))

    def twice_paid(self, shards: int) -> int:
        """Return from how many pictures on n shards hold their nodes at most twice as long as one does."""
        extra = (shards - 1) * (self.pod + self.cold + self.fixed)
        return max(0, round(self.rate * (extra - self.pod - self.fixed)))


def timed(code: str, *arguments: object) -> dict[str, float]:
    """Run Python code in a process of its own; returns its ``wall`` and ``cpu`` seconds (user and system)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.monotonic() - started, "cpu": cpu}


def measure(
    dataset: Path, pictures: int, shards: Sequence[int], folder: Path, backbone: str
) -> Iterator[dict[str, Any]]:
    """Run every number of shards, one shard after another; yields all that is measured after each number."""

    def extract(number: int, total: int) -> dict[str, float]:
        place = folder / f"{number}-of-{total}"
        place.mkdir()
        return timed(_SHARD, place, dataset, backbone, number, total)

    extract(0, min(1024, pictures))  # warms the disk's cache
    (folder / f"0-of-{min(1024, pictures)}").rename(folder / "warm")
    measured: dict[str, Any] = {"least": extract(0, min(1024, pictures)), "shards": {}, "gather": {}}
    for total in shards:
        found = []
        for number in range(total):
            found.append(extract(number, total))
            print(f"shard {number + 1} of {total}: {found[-1]['wall']:.1f} s", flush=True)
        measured["shards"][total] = found
        place = folder / f"gathered-{total}"
        place.mkdir()
        parts = [folder / f"{number}-of-{total}" for number in range(total)]
        measured["gather"][total] = timed(_GATHER, place, *parts)
        yield measured


def fit(measured: dict[str, Any], pictures: int, clock: str, *, pod: float, cold: float) -> CostModel:
    """Return the model of a shard with one picture and of one shard with all; nothing else goes in."""
    fixed, whole = measured["least"][clock], measured["shards"][1][0][clock]
    least = pictures / min(1024, pictures)
    rate = (pictures - least) / (whole - fixed)
    return CostModel(fixed - least / rate, rate, measured["gather"][1][clock], pod, cold)


def compare(model: CostModel, measured: dict[str, Any], pictures: int, clock: str) -> list[dict[str, float]]:
    """Return, for every number of shards, what was measured and what the model says, without pods."""
    bare = CostModel(model.fixed, model.rate, model.gather)
    rows = []
    for total, found in measured["shards"].items():
        seen = max(shard[clock] for shard in found) + measured["gather"][total][clock]
        said = bare.seconds(pictures, total)
        rows.append({"shards": total, "measured": seen, "predicted": said, "error": said / seen - 1})
    return rows


def tell(model: CostModel, rows: Sequence[dict[str, float]], shards: Sequence[int]) -> None:
    """Print the tables."""
    print(f"\n{'shards':>6}{'measured':>11}{'predicted':>11}{'error':>8}")
    for row in rows:
        print(f"{row['shards']:>6}{row['measured']:>9.1f} s{row['predicted']:>9.1f} s{row['error']:>8.1%}")
    print(
        f"\nPods start in {model.pod:g} s, {model.cold:g} s more without the image. Speed-up (nodes paid) of n shards:"
    )
    sizes = [10**power for power in range(3, 7)]
    print(f"{'n':>4}{'sooner from':>13}{'≤ 2× paid from':>16}" + "".join(f"{size:>18,}" for size in sizes))
    for total in (total for total in shards if total > 1):
        cells = ""
        for size in sizes:
            faster = model.seconds(size, 1) / model.seconds(size, total)
            dearer = model.paid(size, total) / model.paid(size, 1)
            cells += f"{f'{faster:.2f}× ({dearer:.2f}×)':>18}"
        print(f"{total:>4}{model.break_even(total):>13,}{model.twice_paid(total):>16,}{cells}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 0, also where the pictures are absent and nothing is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fan_out", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=DATA, help="a folder a class (default: the shared photographs)"
    )
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--shards", default="1,2,4,8", help="numbers to measure (default: 1,2,4,8)")
    parser.add_argument("--pod-seconds", type=float, default=10.0, help="to start a pod (default: 10)")
    parser.add_argument("--pull-seconds", type=float, default=60.0, help="to pull the image (default: 60)")
    parser.add_argument("--rate", type=float, help="pictures a second of your device, for the second table")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu on a machine that is not quiet: CPU seconds stand for seconds")  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    if not given.data.is_dir():
        print(f"skipped: the pictures are not there ({given.data}); pass --data FOLDER")
        return 0
    shards = sorted({1, *map(int, given.shards.split(","))})
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = folder / "dataset"
        dataset.mkdir()
        code = (
            "import sys; from graftflow.datasets import write_dataset\n"
            "write_dataset(sys.argv[1], source='directory:' + sys.argv[2], seed=0, "
            "validation_fraction=0.15, test_fraction=0.15)"
        )
        timed(code, dataset, given.data.resolve())
        counts = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["counts"]
        pictures = sum(sum(classes.values()) for classes in counts.values())
        print(f"{pictures} pictures, {given.backbone}, {given.clock} seconds", flush=True)
        for measured in measure(dataset, pictures, shards, folder, given.backbone):
            model = fit(measured, pictures, given.clock, pod=given.pod_seconds, cold=given.pull_seconds)
            rows = compare(model, measured, pictures, given.clock)
            if given.output:
                figures = {"pictures": pictures, "backbone": given.backbone, "clock": given.clock,
                           "model": asdict(model), "rows": rows, "measured": measured}  # fmt: skip
                given.output.parent.mkdir(parents=True, exist_ok=True)
                given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"\nstart + read {model.fixed:.1f} s, {model.rate:.0f} pictures/s, gather {model.gather:.2f} s")
    asked = CostModel(**{**asdict(model), "rate": given.rate or model.rate})
    tell(asked, rows, shards)
    return 0


if __name__ == "__main__":
    sys.exit(main())
