"""Runs one step alone, on the artifacts of a run: ``python -m pipelines.run_step train_head --run runs/latest``."""

import argparse
import contextlib
import importlib
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl.types import type_utils

from pipelines import parameters, run_index, run_origins
from pipelines.console import RunConsole, fail, in_a_line
from pipelines.run_index import Run, Step
from pipelines.run_local import (
    ROOT,
    LineWriter,
    interrupt_on_sigterm,
    only_run_in,
    read_values,
    remove_of_killed,
    source_image,
)
from pipelines.settings import STEPS

# A step that the graph runs once for each item of a list: the component's parameter, and the pipeline's that counts.
LOOPS = {"extract_features": ("shard", "shards")}
# Run together with it, so that what follows finds its artifact.
_ENDED_BY = {"extract_features": "merge_features"}


def component(step: str) -> Any:
    """Return a step's component: the object of the step's name in the file of the step's name."""
    return getattr(importlib.import_module(f"components.{step}"), step)


def depends_on(step: str) -> set[str]:
    """Return the steps whose artifacts a step reads, directly or through others."""
    producers = {
        artifact: other for other in STEPS for artifact in component(other).component_spec.outputs or {}
    }
    inputs = component(step).component_spec.inputs or {}
    names = {_written_as(name, spec) for name, spec in inputs.items()}
    direct = {producers[name] for name in names if name in producers}
    return direct.union(*(depends_on(other) for other in direct))


def take_inputs(step: str, parent: Run) -> dict[str, Any]:
    """Return a step's input artifacts from a run.

    Raises:
        RunError: where the run lacks one, or it is damaged; names the step that writes it.
    """
    taken = {}
    for name, spec in (component(step).component_spec.inputs or {}).items():
        if type_utils.is_parameter_type(spec.type):
            continue
        written = _written_as(name, spec)
        found = parent.artifacts(written)
        producer = next(s for s in STEPS if written in (component(s).component_spec.outputs or {}))
        producer = next((step for step, end in _ENDED_BY.items() if end == producer), producer)
        if not found or not all(Path(each["uri"]).exists() for each in found):
            raise run_index.RunError(
                f"needs the artifact '{written}' of {producer}, which the run "
                f"'{parent.folder.name}' lacks. Run: make {producer.replace('_', '-')}"
            )
        from graftflow.seals import find_damage

        folders = [each["uri"] for each in found if Path(each["uri"]).is_dir()]
        if damage := find_damage(*folders):
            raise run_index.RunError(
                f"needs the artifact '{written}' as {producer} wrote it. Received: {damage[1]}. "
                f"Run: make {producer.replace('_', '-')} RUN={parent.folder}"
            )
        artifacts = [_artifact(spec.type, written, each["uri"], each["metadata"]) for each in found]
        taken[name] = artifacts if spec.is_artifact_list else artifacts[0]
    return taken


def _written_as(name: str, spec: Any) -> str:
    """Return the name that a step's input has as an output: of a list, the singular."""
    return name.removesuffix("s") if spec.is_artifact_list else name


def _artifact(schema: str, name: str, uri: str, metadata: dict[str, Any] | None = None) -> Any:
    title = schema.split("@")[0].removeprefix("system.")
    return getattr(dsl, title)(name=name, uri=uri, metadata=dict(metadata or {}))


def run_step(step: str, parent: Run, arguments: dict[str, Any], folder: Path) -> Step:
    """Run a step in this process.

    Args:
        step: name of the step.
        parent: the run whose artifacts it reads.
        arguments: the component's parameters.
        folder: where the step's own artifacts go.

    Returns:
        The finished step; what the component raises is raised.
    """
    started = time.monotonic()
    inputs = take_inputs(step, parent)
    outputs = {}
    for name, spec in (component(step).component_spec.outputs or {}).items():
        if not type_utils.is_parameter_type(spec.type):
            outputs[name] = _artifact(spec.type, name, str(folder / name))
    folder.mkdir(parents=True)
    returned = component(step).python_func(**inputs, **arguments, **outputs)
    return Step(
        "done",
        round(time.monotonic() - started, 2),
        {name: {"uri": a.uri, "metadata": a.metadata} for name, a in outputs.items()},
        {} if returned is None else {"Output": returned},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error, 130 when interrupted."""
    interrupt_on_sigterm()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    pipeline = parameters.local_pipeline(source_image())
    parser = argparse.ArgumentParser(prog="python -m pipelines.run_step", description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--run", type=Path, help="folder of a run (default: latest of --runs)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of all runs")
    parameters.add_flags(parser, pipeline)
    given = parser.parse_args(arguments)
    try:
        with only_run_in(given.runs):
            return _run_and_save(given, pipeline)
    except (ValueError, OSError, run_index.RunError) as error:
        return fail(f"{given.step}: {error}")
    except KeyboardInterrupt:
        fail("interrupted; the run before is untouched")
        return 130
    except Exception as error:
        traceback.print_exc()
        return fail(f"{given.step}: {in_a_line(type(error).__name__, str(error))}")


def _run_and_save(given: argparse.Namespace, pipeline: Any) -> int:
    step = given.step
    parent = Run(given.runs, {})
    if depends_on(step) or given.run:
        parent = run_index.load(given.run or given.runs / "latest")
    # Parameters of the run before stay as they were, unless a flag says otherwise.
    for name, value in parent.parameters.items():
        if getattr(given, name, None) is None:
            setattr(given, name, value)
    values = read_values(pipeline, given)
    remove_of_killed(given.runs, step.replace("_", "-"))
    moment = f"{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
    folder = given.runs.resolve() / f"{step.replace('_', '-')}-{moment}"
    run = Run(folder, values, parent=parent.folder.name if parent.steps else "")
    before = depends_on(step)
    ran = {key: name for name in STEPS for key in parent.steps if run_index.step_of(key) == name}
    run.steps = {
        key: parent.steps[key]
        for key, name in ran.items()
        if name in before or (name != step and step not in depends_on(name))
    }
    with RunConsole(sys.stdout) as console, run_origins.told(folder.name, source_image()):
        try:
            for key, name, arguments in _tasks(step, pipeline, values):
                console.started(name)
                with contextlib.redirect_stdout(LineWriter(console.line)):
                    source = parent if name == step else run
                    done = run_step(name, source, arguments, folder / re.sub("[_ ]", "-", key))
                run.steps[key] = done
                console.finished(name, done, run)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        run.save()
    for name, artifact in done.artifacts.items():
        console.console.print(f"  {name:<19}{artifact['uri']}", soft_wrap=True)
    return 0


def _tasks(step: str, pipeline: Any, values: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what running a step means: what the run calls it, the step's name, its component's parameters."""
    arguments = parameters.component_arguments(pipeline, step, values)
    if step in LOOPS:
        item, count = LOOPS[step]
        for number in range(values[count]):
            yield run_index.key_of(step, number), step, {**arguments, item: number}
    else:
        yield step, step, arguments
    if step in _ENDED_BY:
        yield from _tasks(_ENDED_BY[step], pipeline, values)


if __name__ == "__main__":
    sys.exit(main())
