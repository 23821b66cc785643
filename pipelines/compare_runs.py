"""Compares the models of two runs on the test pictures they share: ``python -m pipelines.compare_runs RUN WITH``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import run_index
from pipelines.console import fail
from pipelines.run_index import Run


def evaluation_of(run: Run) -> Path:
    """Return the folder of a run's ``evaluation`` artifact.

    Raises:
        RunError: where the run lacks it.
        InputError: where it is damaged.
    """
    found = run.artifact("evaluation")
    if found is None or not Path(found["uri"]).is_dir():
        raise run_index.RunError(
            f"Both runs must have the artifact 'evaluation' of evaluate, which '{run.folder.name}' lacks. "
            f"Run: make evaluate RUN={run.folder}"
        )
    from graftflow.seals import check_seals

    check_seals(found["uri"])
    return Path(found["uri"])


def compare_runs(first: Run, second: Run, *, seed: int = 0) -> dict[str, Any]:
    """Return what :func:`graftflow.comparisons.compare_evaluations` finds for the models of two runs.

    Raises:
        RunError: where a run has no evaluation.
        InputError: where they are not of the same test pictures or classes.
    """
    from graftflow.comparisons import compare_evaluations

    return compare_evaluations(
        evaluation_of(first), evaluation_of(second), seed=seed, names=(first.folder.name, second.folder.name)
    )


def print_comparison(found: dict[str, Any], names: tuple[str, str], console: Console) -> None:
    """Print both models' figures, their paired differences, and the sentence."""
    from graftflow.comparison_pages import points
    from graftflow.report.numbers import decimal, percent

    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("on the same test pictures")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("difference", justify="right")
    table.add_column("95 % interval", justify="right")
    accuracy, loss = found["accuracy"], found["log_loss"]
    table.add_row(
        "accuracy",
        percent(accuracy["first"]),
        percent(accuracy["second"]),
        f"{points(accuracy['difference'])} points",
        f"{points(accuracy['low'])} to {points(accuracy['high'])}",
    )
    table.add_row(
        "log loss",
        decimal(loss["first"]),
        decimal(loss["second"]),
        f"{loss['difference']:+.3f}",
        f"{loss['low']:+.3f} to {loss['high']:+.3f}",
    )
    console.print(table)
    console.print(f"\n{found['sentence']}.", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 for an error."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.compare_runs", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run, e.g. runs/latest")
    parser.add_argument("other", metavar="WITH", help="folder of another run on the same data and seed")
    parser.add_argument("--seed", type=int, default=0, help="fixes the bootstrap (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead")
    given = parser.parse_args(arguments)
    try:
        first, second = run_index.load(given.run), run_index.load(given.other)
        found = compare_runs(first, second, seed=given.seed)
    except (ValueError, OSError, run_index.RunError) as error:
        return fail(str(error))
    if given.json:
        print(json.dumps(found, indent=2))
        return 0
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=160)
    print_comparison(found, (first.folder.name, second.folder.name), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
