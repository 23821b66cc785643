"""Compares backbones on this machine: ``python -m pipelines.run_compare --backbones=resnet50,mobilenetv2``."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import compare_backbones, parameters, run_index
from pipelines import settings as settings_file
from pipelines.console import RunConsole
from pipelines.run_index import Run, Step
from pipelines.run_local import (
    ROOT,
    fail,
    interrupt_on_sigterm,
    only_run_in,
    run_pipeline,
    source_image,
)

PAGE = "comparison.html"


@dataclass
class Comparison(Run):
    """A comparison: a run that ``latest`` never points at, since no step can go on from it."""

    def save(self) -> None:
        """Write ``run.json``, and the comparison's table and page beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        compared = self.artifact("comparison"), self.artifact("comparison_page")
        if compared[0] and compared[1]:
            shutil.copyfile(Path(compared[0]["uri"]) / "comparison.json", self.folder / "comparison.json")
            shutil.copyfile(compared[1]["uri"], self.folder / PAGE)
        content = {**asdict(self), "folder": self.folder.name}
        aside = self.folder / f".{run_index.FILE}.partial"
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, self.folder / run_index.FILE)


def local_pipeline(image: str) -> Any:
    """Return the pipeline for this machine: one backbone after the other, so that their times do not contend."""
    settings = settings_file.load().for_this_machine(image)
    return compare_backbones.build(settings, parallelism=1)


def read_values(pipeline: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Return the pipeline's parameters of a command line, checked.

    Raises:
        ValueError: for the first value that breaks its rule (InputError), before any work is done.
    """
    from graftflow import backbone_measurements, checks

    values = parameters.defaults(pipeline)
    values.update(
        {name: value for name, value in vars(given).items() if name in values and value is not None}
    )
    parameters.refuse_rewritten({**values, "the folder of the runs": str(given.runs.resolve())})
    backbone_measurements.check_comparison(values)
    values["fingerprint"] = checks.fingerprint(values["dataset"], "imagenet")
    return values


def key_figures(name: str, step: Step, values: dict[str, Any]) -> str:
    """Return, in a few words, what a step of a comparison found."""
    if name == "check_comparison" and step.outputs:
        return f"to measure: {', '.join(step.outputs['Output'])}"
    if name == "measure_backbone" and step.artifacts:
        found = step.artifacts["measurement"]["metadata"]
        if found["error"]:
            return f"{found['backbone']}: not measured, {found['error']}"
        return (
            f"{found['backbone']}: test accuracy {found['accuracy']:.3f}, {found['milliseconds']:.3g} ms a picture, "
            f"{found['megabytes']:.3g} MB"
        )
    if name == "compare_backbones" and step.artifacts:
        return str(step.artifacts["comparison"]["metadata"]["summary"])
    return run_index.key_figures(name, step, values)


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print the table, and below it what could not be measured, and why."""
    from graftflow import comparison_pages
    from graftflow.backbone_measurements import BATCH

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("backbone", overflow="fold")
    headings = (
        "test\naccuracy",
        "points to\nthe best",
        "p",
        "log\nloss",
        "ms\nalone",
        f"ms\nin {BATCH}",
        "MB",
        "s",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    rows = comparison_pages.table_rows(comparison)
    for row in rows:
        apart = row["difference_interval"]
        table.add_row(
            row["name"],
            f"{row['accuracy']}\n[dim]{row['interval']}[/]",
            f"{row['difference']}\n[dim]{apart}[/]" if apart else "best",
            "" if row["p"] == "best" else row["p"],
            *(row[key] for key in ("log_loss", "single", "batch", "megabytes", "seconds")),
        )
    console.print()
    console.print(table)
    if any("*" in row["seconds"] for row in rows):
        console.print("[dim]* some features came from the cache[/]")
    for row in comparison["rows"]:
        if row["error"]:
            console.print(f"[yellow]not measured[/]  {row['name']}: {row['error']}", soft_wrap=True)
    console.print(f"\n{comparison_pages.summary(comparison)}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error, 130 for an interrupted run."""
    started = time.monotonic()
    interrupt_on_sigterm()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    pipeline = local_pipeline(source_image())
    parser = argparse.ArgumentParser(prog="python -m pipelines.run_compare", description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of all runs")
    parameters.add_flags(parser, pipeline)
    given = parser.parse_args(arguments)
    try:
        values = read_values(pipeline, given)
        runs = given.runs.resolve()
        with (
            only_run_in(given.runs),
            RunConsole(sys.stdout, key_figures) as console,
        ):
            run = run_pipeline(
                pipeline,
                values,
                runs,
                console,
                name=compare_backbones.NAME,
                steps=compare_backbones.STEPS,
                run=Comparison(runs, dict(values)),
            )
    except (ValueError, OSError, run_index.RunError) as error:
        return fail(str(error))
    if run.status == "interrupted":
        fail(f"interrupted; finished features are kept in the cache, and the log in {run.folder}")
        return 130
    if run.status == "failed":
        console.console.print(f"\nLog      {run.folder / 'run.log'}", soft_wrap=True)
        step = next((n for n, s in run.steps.items() if s.status == "failed"), "the pipeline")
        return fail(f"{step}: {run.error}")
    comparison = json.loads((run.folder / "comparison.json").read_text(encoding="utf-8"))
    print_comparison(comparison, console.console)
    console.console.print(f"\nPicture  {run.folder / PAGE}", soft_wrap=True)
    backbone, _, weights = comparison["best"].partition("=")
    following = f"make run BACKBONE={backbone}{f' WEIGHTS={weights}' if weights else ''}"
    console.console.print(f"Next     {following}", soft_wrap=True)
    console.console.print(f"[dim]{time.monotonic() - started:.0f} s in all[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
