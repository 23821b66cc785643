"""Runs the whole pipeline on this machine: ``python -m pipelines.run_local``.

The steps are processes here, without Docker, or, with ``--runner docker``, each has a container of its own.
"""

import argparse
import contextlib
import fcntl
import hashlib
import io
import logging
import os
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from kfp import local

from pipelines import docker_runner, parameters, run_index, run_origins
from pipelines.cached_steps import checked_cache
from pipelines.console import RunConsole, fail, in_a_line
from pipelines.loops import end_children, interruptible_loops
from pipelines.run_index import Run, Step
from pipelines.settings import STEPS
from pipelines.step_processes import forked_steps
from pipelines.transfer_learning import NAME

ROOT = Path(__file__).resolve().parents[1]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXECUTING = re.compile(r"Executing task '([\w-]+)'")
_FINISHED = re.compile(r"Task '([\w-]+)' finished with status (\w+)")
_CACHED = re.compile(r"Task ([\w-]+) cache hit \(key=(\w+)\)")
_WRAPPED = "Exception encountered when calling"  # Keras' first words; what happened is told below them
_THREW = re.compile(r"^Task [\w-]+ failed with exception: (.*)")
_BEGINNING = "Streamed logs:"  # kfp's own last line before a step's first
_ERROR = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt))(?:: (.*))?$")


class LineWriter(io.TextIOBase):
    """A text stream that hands complete lines to a function."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take, self._rest = take, ""

    def write(self, text: str) -> int:
        """Take text; lines are passed on once they are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line)
        return len(text)


class Observer:
    """Follows kfp's output line by line: keeps the log, tells the console, fills in the run.

    Args:
        run: filled in step by step.
        locate: sets the run's folder, once kfp has made it.
        cache: folder of kfp's cache.
        log: every line is written to it.
        console: where to draw.
        steps: the steps of the graph; of one that runs again (in a loop), the later ones are numbered.
    """

    def __init__(
        self,
        run: Run,
        *,
        locate: Callable[[], None],
        cache: Path,
        log: TextIO,
        console: RunConsole,
        steps: Sequence[str] = STEPS,
    ) -> None:
        self._run, self._locate, self._cache, self._steps = run, locate, cache, steps
        self._log, self._console = log, console
        self._started = 0.0
        self._last = ""  # line that the current step printed
        self._wrapped = ""  # class of an error whose message is yet to come
        self.current = ""
        self.key = ""  # what the run calls the current step
        self.error = ""
        self.failure = ""  # of the step that failed first

    def line(self, raw: str) -> None:
        """Take one line of output."""
        text = _COLOUR.sub("", raw)
        self._log.write(text + "\n")
        if match := _EXECUTING.search(text):
            self.current, self.error, self._started = _step(match[1]), "", time.monotonic()
            self.key = self._key(self.current)
            self._console.started(self.current)
        elif match := _FINISHED.search(text):
            status = "done" if match[2] == "SUCCESS" else "failed"
            self._finish(_step(match[1]), self.key, Step(status, self.elapsed()))
        elif match := _CACHED.search(text):
            artifacts, outputs = run_index.read_cache_entry(self._cache, match[2])
            name = _step(match[1])
            self._finish(name, self._key(name), Step("cached", 0.0, artifacts, outputs))
        elif match := _THREW.match(text):  # kfp itself, around a step
            self.failure = self.failure or in_a_line("RuntimeError", match[1])
        else:
            self._console.line(text)
            if text.strip():
                self._last = "" if text.endswith(_BEGINNING) else text.strip()
                if self._wrapped:
                    self.error, self._wrapped = in_a_line(self._wrapped, self._last), ""
            if match := _ERROR.match(text):
                self.error = in_a_line(match[1], match[2] or "")
                self._wrapped = match[1] if (match[2] or "").startswith(_WRAPPED) else ""

    def elapsed(self) -> float:
        """Return the seconds since the current step began."""
        return round(time.monotonic() - self._started, 2)

    def _key(self, name: str) -> str:
        return run_index.key_of(name, sum(run_index.step_of(key) == name for key in self._run.steps))

    def _finish(self, name: str, key: str, step: Step) -> None:
        if name not in self._steps:
            return
        if step.status == "done":
            self._locate()
            folder = _newest(self._run.folder, name.replace("_", "-"))
            step.artifacts, step.outputs = run_index.read_executor_output(folder)
        self._run.steps[key] = step
        if step.status == "failed":
            # Where a library ends the process by itself, its last words.
            self.failure = self.failure or self.error or self._last
        else:
            self.current = ""
        self._console.finished(name, step, self._run)


def _step(task: str) -> str:
    return task.replace("-", "_")


def _newest(run: Path, task: str) -> Path:
    """Return the folder of the task that has just ended: kfp puts those of a loop into a folder an iteration."""
    looped = [path for path in run.glob(f"*-iteration-*/{task}") if path.is_dir()]
    # One after the other, from 0; times of files would lie where the clock was set back.
    return max(looped, key=lambda path: int(path.parent.name.rpartition("-")[2]), default=run / task)


def source_image() -> str:
    """Return the image name of a local run: it changes with the library, so that KFP's cache notices."""
    digest = hashlib.sha256()
    for path in [*sorted((ROOT / "src").rglob("*")), ROOT / "requirements.lock"]:
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path):
            digest.update(path.name.encode() + path.read_bytes())
    return f"graftflow-python-cpu:source-{digest.hexdigest()[:12]}"


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold a lock on the runs' folder.

    Raises:
        RunError: where another run is going on in it.
        InputError: where its disk is full, or only reads.
    """
    from graftflow.storage import writing

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise run_index.RunError(
                    f"Only one run at a time can work in a runs' folder. Received: '{folder}', "
                    "where another run is going on (wait for it, or pass another --runs)"
                ) from error
            yield


def remove_partial(folder: Path) -> None:
    """Remove what killed steps wrote aside."""
    for path in list(folder.rglob(".*.partial*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_of_killed(runs: Path, name: str) -> None:
    """Remove what runs of a pipeline's name, which were killed before they were saved, wrote aside."""
    for folder in runs.glob(f"{name}-*"):
        if not (folder / run_index.FILE).exists():
            remove_partial(folder)


def run_pipeline(
    pipeline: Any,
    values: dict[str, Any],
    runs: Path,
    console: RunConsole,
    *,
    name: str = NAME,
    steps: Sequence[str] = STEPS,
    run: Run | None = None,
    runner: Any = None,
) -> Run:
    """Run the pipeline; nothing is raised for a failed or interrupted step, which the result tells.

    Args:
        pipeline: the pipeline for this machine.
        values: its parameters.
        runs: folder of all runs, locked by the caller.
        console: where to draw.
        name: of the pipeline; its runs' folders begin with it.
        steps: of the pipeline.
        run: the run to fill in, where it is of a kind of its own.
        runner: kfp's, where the steps are to be something else than processes here.

    Returns:
        The run, saved in its own folder, with ``run.log`` beside it.
    """
    run = run or Run(runs, dict(values))
    before = set(runs.glob(f"{name}-*"))
    remove_of_killed(runs, name)

    def locate() -> None:
        # kfp makes the run's folder itself, named after the moment; the lock makes the new one ours.
        new = sorted(set(runs.glob(f"{name}-*")) - before)
        run.folder = new[-1] if new else runs / f"{name}-{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"

    cache, log_path = runs / ".kfp_cache", runs / ".run.log"
    local.init(
        runner or local.SubprocessRunner(use_venv=False),
        pipeline_root=str(runs),
        enable_caching=True,
        cache_root=str(cache),
    )
    with open(log_path, "w", encoding="utf-8") as log:
        observer = Observer(run, locate=locate, cache=cache, log=log, console=console, steps=steps)
        stream = LineWriter(observer.line)
        checked = checked_cache(str(cache), console.say)
        with _observed(stream), interruptible_loops(), docker_runner.truthful(), checked, forked_steps():
            try:
                pipeline(**values)
            except KeyboardInterrupt:
                run.status = "interrupted"
                end_children()
            except Exception as error:
                run.status = "failed"
                run.error = observer.failure or observer.error or _COLOUR.sub("", str(error))
                log.write(traceback.format_exc())
    locate()
    if run.status == "interrupted" and observer.current:
        run.steps[observer.key] = Step("interrupted", observer.elapsed())
    if run.status == "succeeded" and "deploy_model" in steps and "deploy_model" not in run.steps:
        run.steps["deploy_model"] = Step("skipped")
        console.finished("deploy_model", run.steps["deploy_model"], run)
    run.folder.mkdir(exist_ok=True)
    remove_partial(run.folder)
    os.replace(log_path, run.folder / "run.log")
    run.save()
    return run


@contextlib.contextmanager
def _observed(stream: LineWriter) -> Iterator[None]:
    """Send what kfp prints and logs to ``stream``."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [logging.StreamHandler(stream)]
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(stream), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def read_values(pipeline: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Return the pipeline's parameters of a command line, checked.

    Raises:
        ValueError: for the first value that breaks its rule (InputError), before any work is done.
    """
    from graftflow import checks

    values = parameters.defaults(pipeline)
    values["store"] = str(ROOT / "models")
    for name in values:
        if getattr(given, name, None) is not None:
            values[name] = getattr(given, name)
    if "://" not in values["store"]:
        values["store"] = str(Path(values["store"]).resolve())
    parameters.refuse_rewritten({**values, "the folder of the runs": str(given.runs.resolve())})
    checks.check_run(values)
    values["cache"] = str(Path(values["cache"] or given.runs / ".cache").expanduser().resolve())
    values["fingerprint"] = checks.fingerprint(values["dataset"], values["weights"])
    return values


def interrupt_on_sigterm() -> None:
    """Treat SIGTERM as Ctrl-C, so that it ends the children as well."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error, 130 for an interrupted run."""
    started = time.monotonic()
    interrupt_on_sigterm()
    # Said once by every step otherwise: TensorFlow's notes on this CPU.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    pipeline, runner = parameters.local_pipeline(source_image()), None
    parser = argparse.ArgumentParser(prog="python -m pipelines.run_local", description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of all runs")
    docker_runner.add_flags(parser)
    parameters.add_flags(parser, pipeline)
    given = parser.parse_args(arguments)
    try:
        values, runs = read_values(pipeline, given), given.runs.resolve()
        with run_origins.new_run(NAME, source_image()):
            if given.runner == "docker":
                image = docker_runner.identify(given.image or docker_runner.image_of_commit())
                pipeline = parameters.local_pipeline(image)
                runner = docker_runner.make_runner(docker_runner.read_place(values, runs), given.user)
            with only_run_in(given.runs), RunConsole(sys.stdout) as console:
                run = run_pipeline(pipeline, values, runs, console, runner=runner)
    except (ValueError, OSError, run_index.RunError) as error:
        return fail(str(error))
    console.table(run, time.monotonic() - started)
    if run.status == "interrupted":
        fail(f"interrupted; finished steps are kept in {run.folder} and are taken from the cache")
        return 130
    if run.status == "failed":
        console.console.print(f"\nLog      {run.folder / 'run.log'}", soft_wrap=True)
        step = next((n for n, s in run.steps.items() if s.status == "failed"), "the pipeline")
        return fail(f"{step}: {run.error}")
    console.next_commands(run, store=given.store or "models", model_name=values["model_name"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
