"""What could be chosen otherwise in extraction: ``python -m benchmarks.extraction.choices --output runs/choices.json``.

Measured are, of the forward pass with a pass a core, batch size, threads, oneDNN, XLA and bfloat16, by CPU seconds, by
the wall, and with what they change of the features; and of the whole loop the passes that run at once, by the wall.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.extraction.contenders import DATA, Contender, ContenderError, prepare, take_turns
from benchmarks.rows import Row

MOST_DIFFERENCE = 1e-3  # of features, relative to the largest
CHOSEN = "batch 8, one thread"
# Of the whole loop; the chosen one first.
LOOPS: Mapping[str, dict[str, Any]] = {
    "a pass a core, one thread each": {},
    "batch 4": {"batch_size": 4},
    "batch 16": {"batch_size": 16},
    "batch 64": {"batch_size": 64},
    "one pass, all threads": {"at_once": 1, "batch_size": 64, "threads_for_all": True},
    "a pass a core, all threads": {"threads_for_all": True},
    "one pass more than cores": {"at_once": (os.cpu_count() or 1) + 1},
    "decoded ahead by tf.data": {"decode_ahead": 224},
}
# Another channel order is no choice: TensorFlow's convolutions on a CPU take NHWC alone without oneDNN, and with it
# oneDNN orders the channels in blocks of its own.
OPTIONS: Mapping[str, tuple[dict[str, Any], dict[str, str]]] = {
    CHOSEN: ({"batch_size": 8}, {}),
    "batch 4": ({"batch_size": 4}, {}),
    "batch 16": ({"batch_size": 16}, {}),
    "batch 64": ({"batch_size": 64}, {}),
    "batch 128": ({"batch_size": 128}, {}),
    "all threads": ({"batch_size": 8, "threads": None}, {}),
    "all threads, batch 64": ({"batch_size": 64, "threads": None}, {}),
    "without oneDNN": ({"batch_size": 8}, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
    "bfloat16": ({"batch_size": 8, "bfloat16": True}, {}),
    "XLA": ({"batch_size": 8, "xla": True}, {}),
}


def measure(dataset: Path, folder: Path, *, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure the forward pass under every option, taking turns.

    Returns:
        For each option its ``name``, ``cpu_ms`` and ``wall_ms`` a picture, ``times`` as fast as the chosen one by CPU
        seconds and ``by_wall``, ``difference`` of its features relative to the largest, and ``why``; and every round.
    """
    with ExitStack() as stack:
        contenders, failed = {}, {}
        for number, (name, (job, environment)) in enumerate(OPTIONS.items()):
            told = {
                "dataset": str(dataset),
                "rows": str(folder / f"{number}.npy"),
                "threads": 1,
                "at_once": None,
            }
            told |= job
            try:
                contenders[name] = stack.enter_context(Contender("forward", told, environment=environment))
            except ContenderError as error:
                failed[name] = str(error)
        rounds_of = take_turns(contenders, rounds)
    chosen = np.load(folder / "0.npy")
    found = []
    for number, name in enumerate(OPTIONS):
        if name in failed:
            found.append({"name": name, "why": f"not possible: {failed[name][:120]}"})
            continue
        cost = {clock: statistics.median(1e3 * one[clock] / one["pictures"] for one in rounds_of[name])
                for clock in ("cpu", "wall")}  # fmt: skip
        times, by_wall = (
            statistics.median(
                (own[clock] / own["pictures"]) / (one[clock] / one["pictures"])
                for own, one in zip(rounds_of[CHOSEN], rounds_of[name], strict=True)
            )
            for clock in ("cpu", "wall")
        )
        difference = float(np.abs(np.load(folder / f"{number}.npy") - chosen).max() / np.abs(chosen).max())
        found.append({"name": name, "cpu_ms": cost["cpu"], "wall_ms": cost["wall"], "times": times, "by_wall": by_wall,
                      "difference": difference, "why": why(name, times, by_wall, difference)})  # fmt: skip
    return found, rounds_of


def why(name: str, times: float, by_wall: float, difference: float) -> str:
    """Say in a few words why an option was chosen or not; it must be faster by both clocks."""
    if name == CHOSEN:
        return "chosen"
    if difference > MOST_DIFFERENCE:
        return f"changes features by {difference:.1e} of the largest, more than {MOST_DIFFERENCE:g}"
    if min(times, by_wall) < 0.95:
        return "slower"
    if min(times, by_wall) < 1.05:
        return "no faster beyond 5 % by both clocks"
    return f"{min(times, by_wall):.2f} times as fast: choose it"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the options as a Markdown table."""
    lines = [
        "| forward pass | CPU ms a picture | wall ms | times as fast, CPU | wall | difference | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        cells = [
            f"{one[key]:.3g}" if key in one else "–"
            for key in ("cpu_ms", "wall_ms", "times", "by_wall", "difference")
        ]
        lines.append("| " + " | ".join([one["name"], *cells, one["why"]]) + " |")
    return "\n".join(lines)


def measure_loops(dataset: Path, *, rounds: int) -> dict[str, float]:
    """Measure the whole loop, records read and features in memory, by the passes that run at once.

    Returns:
        Pictures a second by the wall, the median of the rounds, for each of :data:`LOOPS`.
    """
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(Contender("graftflow", {"dataset": str(dataset), **job}))
            for name, job in LOOPS.items()
        }
        told = take_turns(contenders, rounds)
    return {
        name: statistics.median(one["pictures"] / one["wall"] for one in own) for name, own in told.items()
    }


def rows_of(found: Sequence[Mapping[str, Any]], loops: Mapping[str, float]) -> list[Row]:
    """Return what informs: the chosen option beside the others, with why they were not taken."""
    costs = {one["name"]: one.get("cpu_ms") for one in found}
    reasons = "; ".join(f"{one['name']}: {one['why']}" for one in found if one["name"] != CHOSEN)
    lines = []
    if (chosen := costs.pop(CHOSEN)) is not None:
        lines.append(Row("forward pass, CPU", "ms", chosen, peers=costs, note=f"chosen: {CHOSEN}. {reasons}"))
    (name, best), *others = loops.items()
    lines.append(
        Row("extract_features, its loop", "pictures/s", best, peers=dict(others), note=f"chosen: {name}")
    )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 0, also where the pictures are absent and nothing is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction.choices",
                                     description=__doc__.splitlines()[0])  # fmt: skip
    parser.add_argument("--data", type=Path, default=DATA, help="JPEGs, a folder a class")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    given = parser.parse_args(arguments)
    if not given.data.is_dir():
        print(f"skipped: the pictures are not there ({given.data}); pass --data FOLDER")
        return 0
    with tempfile.TemporaryDirectory(prefix="choices-") as scratch:
        dataset = Path(scratch) / "dataset"
        prepare(given.data.resolve(), dataset)
        found, told = measure(dataset, Path(scratch), rounds=given.rounds)
        loops = measure_loops(dataset, rounds=given.rounds)
    lines = rows_of(found, loops)
    print(f"\n{table(found)}\n\n{rows.table(lines)}")
    if given.output:
        rows.write(given.output, "extraction.choices", lines, details={"rounds": told, "choices": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
