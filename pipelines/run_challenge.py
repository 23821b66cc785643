"""Shows a run's model pictures unlike its training data: ``python -m pipelines.run_challenge --dataset=digits``."""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kfp import dsl

from pipelines import run_index
from pipelines.console import RunConsole
from pipelines.run_local import ROOT, LineWriter, fail, interrupt_on_sigterm
from pipelines.run_step import component, take_inputs

STEP = "challenge_model"
PAGE = "challenge.html"


def challenge(run: run_index.Run, folder: Path, *, source: str, num_pictures: int, seed: int) -> None:
    """Run the component on a run's data set and model.

    Args:
        run: has the artifacts ``dataset`` and ``model``.
        folder: where the component's artifacts go; made here.
        source: the pictures, as for download_data.
        num_pictures: how many of them at most.
        seed: fixes the sample and the bootstrap.

    Raises:
        RunError: the run lacks an artifact.
        InputError: a setting breaks its rule, or the source cannot be read.
    """
    inputs = take_inputs(STEP, run)
    outputs = {
        "challenge": dsl.Artifact(name="challenge", uri=str(folder / "challenge")),
        "challenge_page": dsl.HTML(name="challenge_page", uri=str(folder / PAGE)),
        "challenge_metrics": dsl.Metrics(name="challenge_metrics", uri=str(folder / "metrics.json")),
    }
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {"source": source, "num_pictures": num_pictures, "seed": seed}
    kept = {name: run.parameters[name] for name in ("mirrors", "cache") if name in run.parameters}
    component(STEP).python_func(**inputs, **settings, **kept, **outputs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error, 130 when interrupted."""
    interrupt_on_sigterm()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(prog="python -m pipelines.run_challenge", description=__doc__)
    parser.add_argument("--dataset", required=True, help="pictures of another kind, as DATASET of make run")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "latest", help="folder of a run")
    parser.add_argument("--num-pictures", type=int, default=500, help="how many at most (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the sample (default: 0)")
    given = parser.parse_args(arguments)
    folder = None
    try:
        run = run_index.load(given.run)
        folder = run.folder.parent / f"challenge-{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
        with (
            RunConsole(sys.stdout) as console,
            contextlib.redirect_stdout(LineWriter(console.line)),
        ):
            console.started(STEP)
            challenge(run, folder, source=given.dataset, num_pictures=given.num_pictures, seed=given.seed)
        from graftflow.report.challenges import text_summary

        print(text_summary(folder / "challenge"))
        print(f"\nPage     {folder / PAGE}")
        return 0
    except (ValueError, OSError, run_index.RunError) as error:
        code = fail(f"{STEP}: {error}")
    except KeyboardInterrupt:
        fail("interrupted; the run is untouched")
        code = 130
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
