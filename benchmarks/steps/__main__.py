"""Every step that computes, against its limit and its peer: ``python -m benchmarks.steps --output runs/steps.json``.

A limit is what the step's passes through a network cost where nothing else is done: the passes are counted while it
runs, and one is timed bare, compiled, at its best batch size. The step, its limit and its peer take turns in one
process; CPU seconds stand beside the clock's, since other work on the machine stretches the clock. Loading, compiling
and writing are in the step's time, but not in its limit.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import table, write
from benchmarks.steps.clocks import Setting, artifacts_of
from pipelines.run_index import RunError

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("train_head", "fine_tune", "generate_adversarial", "visualise_model")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--run", type=Path, default=ROOT / "runs" / "latest", help="a run with its artifacts (%(default)s)")
    add("--only", default=",".join(STEPS), help="steps, comma-separated (default: %(default)s)")
    add("--rounds", type=int, default=1, help="turns of step, limit and peer (default: %(default)s)")
    add(
        "--peers-python",
        help="a Python with benchmarks/attacks/requirements.txt; without it no attack library",
    )
    add("--output", type=Path, required=True, help="JSON file for the rows")
    given = parser.parse_args(arguments)
    chosen = [name.strip() for name in given.only.split(",")]
    unknown = [name for name in chosen if name not in STEPS]
    if unknown or given.rounds < 1:
        parser.error(
            f"--only takes {', '.join(STEPS)}, --rounds at least 1. Received: {given.only}, {given.rounds}"
        )
    try:
        artifacts = artifacts_of(given.run)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows, details = [], {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            setting = Setting(artifacts, given.rounds, given.peers_python, Path(scratch))
            found, details[name] = importlib.import_module(f"benchmarks.steps.{name}").measure(setting)
        rows += found
        # What was measured is kept even where a later step fails.
        write(given.output, "steps", rows, details=details)
        print(table(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
