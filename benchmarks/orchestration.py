"""What a run costs above its steps' own work: ``python -m benchmarks.orchestration --output runs/orchestration.json``.

A step's own work is the time inside its function, without what its function imports there. Everything else of a run is
orchestration: the launcher's start, kfp's reading of the pipeline, processes that start and end, imports, seals of
cached artifacts, ``run.json``. The goal is a run that takes at most 1.1 times the sum of its steps' own work.

``deploy_model`` waits for the model server that it starts and asks: that server's start is the step's work.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, table, write

ROOT = Path(__file__).resolve().parents[1]
CLOCK = ROOT / "benchmarks" / "step_clock"
MOST_ABOVE_WORK = 1.1
MOST_CACHED_SECONDS = 15.0
AS_KFP = (
    "import contextlib, sys; from pipelines import run_local; "
    "run_local.forked_steps = contextlib.nullcontext; sys.exit(run_local.main())"
)
# What starts a command for a person; none of these imports TensorFlow.
COMMANDS = {
    "make help": ["make", "-s", "help"],
    "python -m pipelines.compile": ["-m", "pipelines.compile", "--output", "{folder}/pipeline.yaml"],
    "make query": ["-m", "graftflow.serving.query", "--help"],
    "make run": ["-m", "pipelines.run_local", "--help"],
    "make train-head": ["-m", "pipelines.run_step", "--help"],
    "make submit": ["-m", "pipelines.submit", "--help"],
    "make compare-runs": ["-m", "pipelines.compare_runs", "--help"],
    "make releases": ["-m", "graftflow.releases", "list", "--help"],
    "make lineage": ["-m", "graftflow.lineages", "show", "--help"],
}
HEAVY = ("tensorflow", "keras")


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        seconds: wall-clock seconds of the whole command.
        cpu: CPU seconds of all its processes.
        steps: of each step that ran, by its name: ``seconds`` inside its function, ``import_seconds`` of these, and
            the same of the CPU; ``total``, from its start until its process had ended.
    """

    seconds: float
    cpu: float
    steps: dict[str, dict[str, float]]

    @property
    def work(self) -> float:
        """The steps' own work, in seconds."""
        return sum(step["seconds"] - step["import_seconds"] for step in self.steps.values())

    @property
    def work_cpu(self) -> float:
        """The same in CPU seconds; the model server of ``deploy_model`` is not in it."""
        return sum(step["cpu"] - step["import_cpu"] for step in self.steps.values())

    @property
    def imports(self) -> float:
        """Seconds that steps imported in their functions."""
        return sum(step["import_seconds"] for step in self.steps.values())


def measure(start: Sequence[str], runs: Path, flags: Sequence[str]) -> Measured:
    """Run the pipeline in a folder of runs, with a clock in every step.

    Args:
        start: what starts the launcher, behind the interpreter.
        runs: folder of all runs; the store is made beside it.
        flags: the launcher's own.

    Raises:
        RuntimeError: the run failed.
    """
    runs.parent.mkdir(parents=True, exist_ok=True)
    notes = runs.parent / f"notes-{time.time_ns()}.jsonl"
    command = [sys.executable, *start, f"--runs={runs}", f"--store={runs.parent / 'store'}", *flags]
    path = os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path, "GRAFTFLOW_STEP_CLOCK": str(notes)}
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise RuntimeError(f"the run that was to be measured failed: {(done.stderr or done.stdout)[-2000:]}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    told = json.loads((runs / "latest" / "run.json").read_text(encoding="utf-8"))["steps"]
    steps: dict[str, dict[str, float]] = {}
    for line in notes.read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        name = note.pop("step")
        steps[name] = {**note, "total": told[name]["seconds"]}
    return Measured(seconds, cpu, steps)


def imported_by(said: str) -> set[str]:
    """Return the modules in what ``python -X importtime`` said."""
    lines = [line for line in said.splitlines() if line.startswith("import time:") and "[us]" not in line]
    return {line.rpartition("|")[2].strip() for line in lines}


def time_commands(rounds: int) -> dict[str, dict[str, Any]]:
    """Start every command, in turns: ``seconds`` (median), and which of ``HEAVY`` it ``imported``."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    imported: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name, parts in COMMANDS.items():
                command = [part.format(folder=folder) for part in parts]
                if command[0] != "make":
                    # The first round looks what is imported, and warms the disk's cache.
                    command = [sys.executable, *([] if number else ["-X", "importtime"]), *command]
                started = time.perf_counter()
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                if number:
                    seconds[name].append(time.perf_counter() - started)
                else:
                    imported[name] = sorted(imported_by(done.stderr) & set(HEAVY))
    return {
        name: {"seconds": statistics.median(times), "imported": imported[name]}
        for name, times in seconds.items()
    }


def to_rows(
    fresh: Measured, cached: Measured, commands: dict[str, dict[str, Any]], as_kfp: Measured | None
) -> list[Row]:
    """Return the rows: the whole run beside its steps' work, the cached run, each command's start."""
    rows = [
        Row(
            "whole make run",
            "s",
            fresh.seconds,
            limit=fresh.work,
            peers={"an interpreter a step": as_kfp.seconds if as_kfp else None},
            goal=1 / MOST_ABOVE_WORK,
            note=f"the limit is the steps' own work without imports; imports inside steps took {fresh.imports:.1f} s; "
            f"of the CPU, {fresh.cpu / fresh.work_cpu:.2f} times the work",
        ),
        Row("cached make run", "s", cached.seconds, goal=MOST_CACHED_SECONDS, note="deploy_model alone runs"),
    ]
    for name, found in commands.items():
        heavy = f"imports {', '.join(found['imported'])}" if found["imported"] else "no TensorFlow"
        rows.append(Row(f"start of {name}", "s", found["seconds"], note=heavy))
    return rows


def show(measured: Measured) -> str:
    """Return a table of a run's steps."""
    lines = ["| step | seconds | own work | imports inside | start and end |", "|---|---|---|---|---|"]
    for name, step in measured.steps.items():
        work = step["seconds"] - step["import_seconds"]
        around = step["total"] - step["seconds"]
        lines.append(
            f"| {name} | {step['total']:.1f} | {work:.1f} | {step['import_seconds']:.2f} | {around:.2f} |"
        )
    total = sum(step["total"] for step in measured.steps.values())
    lines.append(
        f"| all | {total:.1f} | {measured.work:.1f} | {measured.imports:.2f} | "
        f"{total - measured.work - measured.imports:.2f} |"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    parser.add_argument("--as-kfp", action="store_true", help="measure an interpreter a step, too")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each command (default: 3)")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    parser.add_argument(
        "flags", nargs="*", metavar="FLAG", help="for the run, behind --: -- --dataset=digits"
    )
    given = parser.parse_args(arguments)
    commands = time_commands(given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        as_kfp = measure(["-c", AS_KFP], Path(folder) / "kfp" / "runs", given.flags) if given.as_kfp else None
        runs = Path(folder) / "forked" / "runs"
        fresh = measure(["-m", "pipelines.run_local"], runs, given.flags)
        cached = measure(["-m", "pipelines.run_local"], runs, given.flags)
    rows = to_rows(fresh, cached, commands, as_kfp)
    for title, measured in (("an interpreter a step", as_kfp), ("forked", fresh)):
        if measured:
            whole, ratio = measured.seconds, measured.seconds / measured.work
            print(f"{title}: {whole:.1f} s, {ratio:.3f} times its steps' work\n\n{show(measured)}\n")
    print(table(rows))
    if given.output:
        details = {
            "fresh": asdict(fresh),
            "cached": asdict(cached),
            "as_kfp": asdict(as_kfp) if as_kfp else None,
            "commands": commands,
        }
        write(given.output, "orchestration", rows, details=details)


if __name__ == "__main__":
    main()
