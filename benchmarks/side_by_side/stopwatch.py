"""What a recipe reports of itself. Standard library only: every recipe's own interpreter imports it."""

import argparse
import json
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any


def _cpu_seconds() -> float:
    """Return user and system seconds of this process and of those children that have ended."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


class Stopwatch:
    """Times a recipe by phases that follow each other: import, data, train, evaluate.

    Args:
        started: ``time.monotonic()`` of the moment before the process was started; the clock of Linux is the same in
            all processes, so the phase ``import`` holds the start of the interpreter too.
    """

    def __init__(self, started: float) -> None:
        self._started, self._excluded, self._excluded_cpu = started, 0.0, 0.0
        self._phases: dict[str, dict[str, float]] = {}
        self._open = ("import", 0.0, 0.0)
        self._curve: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []

    def seconds(self) -> float:
        """Return the seconds since the start, without what was excluded."""
        return time.monotonic() - self._started - self._excluded

    def cpu_seconds(self) -> float:
        """Return the CPU seconds since the start, without what was excluded."""
        return _cpu_seconds() - self._excluded_cpu

    def enter(self, phase: str) -> None:
        """End the open phase and begin another; a name that comes again adds up."""
        name, seconds, cpu = self._open
        total = self._phases.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0})
        self._open = (phase, self.seconds(), self.cpu_seconds())
        total["seconds"] += self._open[1] - seconds
        total["cpu_seconds"] += self._open[2] - cpu

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Stop the clock for what only the benchmark wants, such as test predictions of a model on its way."""
        wall, cpu = time.monotonic(), _cpu_seconds()
        try:
            yield
        finally:
            self._excluded += time.monotonic() - wall
            self._excluded_cpu += _cpu_seconds() - cpu

    def validated(self, stage: str, epoch: int, accuracy: float, log_loss: float) -> None:
        """Add a point to the learning curve, with the seconds at which it was known."""
        point = {"seconds": self.seconds(), "stage": stage, "epoch": epoch}
        self._curve.append({**point, "accuracy": float(accuracy), "log_loss": float(log_loss)})

    def ready(self, name: str) -> int:
        """Note that a model of this name could predict now; returns what :meth:`predicted` wants."""
        times = {"seconds": self.seconds(), "cpu_seconds": self.cpu_seconds()}
        self._results.append({"name": name, **times, "probabilities": {}})
        return len(self._results) - 1

    def predicted(self, result: int, paths: Sequence[str], probabilities: Sequence[Sequence[float]]) -> None:
        """Keep a model's test predictions: for every path (class/file) one probability a class, sorted by name."""
        rows = zip(paths, probabilities, strict=True)
        self._results[result]["probabilities"] = {path: [float(p) for p in row] for path, row in rows}

    def write(self, path: Path, *, distributions: Sequence[str]) -> None:
        """Close the last phase and write everything as JSON, aside first."""
        self.enter("end")
        value = {
            "versions": {name: version(name) for name in distributions},
            "phases": self._phases,
            "curve": self._curve,
            "results": self._results,
        }
        aside = path.with_name(path.name + ".partial")
        aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(aside, path)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line that every recipe has.

    Returns:
        ``data`` (folder, one sub-folder a class), ``pictures`` (folder of ``train``, ``validation`` and ``test``, each
        with one sub-folder a class), ``weights`` (file), ``scratch`` (an empty folder), ``record`` (file to write),
        ``started``, ``seed``, ``validation_fraction``, ``test_fraction``, ``defaults`` (graftflow's settings),
        ``quick`` and ``longer``.
    """
    parser = argparse.ArgumentParser()
    for name in ("data", "pictures", "weights", "scratch", "record"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("started", "validation-fraction", "test-fraction"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--defaults", type=json.loads, required=True, help="graftflow's, as JSON")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--quick", action="store_true", help="one epoch a stage")
    parser.add_argument("--longer", action="store_true", help="train until validation stops to improve")
    return parser.parse_args(argv)
