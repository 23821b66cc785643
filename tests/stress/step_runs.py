"""Steps of one small run, each in a process of its own that a test may kill, and what compares their artifacts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from graftflow import seals

ROOT = Path(__file__).resolve().parents[2]
# A run of seconds: three classes of 16 tiles, one block, few pictures and few steps.
VALUES = {
    "seed": 0,
    "validation_fraction": 0.25,
    "test_fraction": 0.25,
    "fine_tune_blocks": 1,
    "fine_tune_epochs": 3,
    "fine_tune_views": 2,
    "min_accuracy": 0.3,
    "epsilons": "1/255,4/255",
    "attack_steps": 2,
    "attack_pictures": 4,
    "ideal_classes": "zebra",
    "ideal_steps": 2,
    "version": 7,
    "model_name": "tiles",
}
# Where the store is, whether a killed step had published already, and how far a server's answers were from the
# evaluation's: below 1e-5, which the step itself sees to.
_DEPLOYED = {"uri", "status", *(f"validation.{name}" for name in ("largest_difference", "rest", "grpc"))}
# How long something took and what came from a cache; all other values of a JSON file are the same, run for run.
_COMPUTED = {"seconds", "computed", "cached"}
_OF_THE_MOMENT = {
    "deployment.json": {*_DEPLOYED, "validation.seconds"},
    "features.json": _COMPUTED,
    "shard.json": _COMPUTED,
}
_DATES = re.compile(rb"\d{4}-\d\d-\d\d[ T@]\d\d:\d\d(:\d\d)?( UTC|Z)?")


@dataclass
class Ended:
    """How a step's process ended.

    Attributes:
        code: exit code; minus a signal's number where one killed it.
        seconds: from its start to its end.
        log: what it printed, both streams.
        told: ``returned``, ``metadata`` of its artifacts and the ``changes`` of names that it made, each an audit event
            and the name; empty where it did not come to its end.
    """

    code: int
    seconds: float
    log: str
    told: dict[str, Any] = field(default_factory=dict)


class StepServer:
    """The process that forks steps; see :mod:`tests.stress.step_server`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.step_server"],
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def start(self, request: Mapping[str, Any]) -> int:
        """Start a step; returns its process's number."""
        stream = self._process.stdin
        stream.write(json.dumps(request) + "\n")
        stream.flush()
        return int(self._answer()["pid"])

    def wait(self) -> int:
        """Return the exit code of the step once it has ended."""
        return int(self._answer()["code"])

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of steps ended with code {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@contextmanager
def step_server() -> Iterator[StepServer]:
    """Yield a server of steps."""
    server = StepServer()
    try:
        yield server
    finally:
        server.close()


class SmallRun:
    """The steps of one small run, in one folder, each run when first asked for and never again.

    Args:
        folder: where everything goes: ``reference/<step>/<artifact>``, the cache and the store.
        pictures: a folder a class.
        server: that runs the steps.
    """

    def __init__(self, folder: Path, pictures: Path, server: StepServer) -> None:
        from pipelines import parameters

        self.folder, self._server = folder, server
        self._pipeline = parameters.local_pipeline("graftflow-python-cpu:stress")
        self.values = {
            **parameters.defaults(self._pipeline),
            **VALUES,
            "dataset": f"directory:{pictures}",
        }
        self.reference: dict[str, Ended] = {}
        self.pid = 0  # of the step that ran last

    def folder_of(self, step: str) -> Path:
        """Return the folder of an unbroken step's artifacts."""
        return self.folder / "reference" / step

    def unbroken(self, step: str) -> Ended:
        """Run a step, and before it what it depends on, unless that was done; returns how it went."""
        from pipelines import run_step

        for needed in sorted(run_step.depends_on(step), key=list(_steps()).index):
            self.unbroken(needed)
        if step not in self.reference:
            place = self.folder / "reference"
            ended = self.run(step, self.folder_of(step), cache=place / "cache", store=place / "store")
            if ended.code:
                raise RuntimeError(f"{step} failed unbroken:\n{ended.log[-3000:]}")
            self.reference[step] = ended
        return self.reference[step]

    def request(self, step: str, folder: Path, *, cache: Path, store: Path, **more: Any) -> dict[str, Any]:
        """Return what the server is asked for a step; the same request again appends to the same log."""
        from kfp.dsl.types import type_utils

        from pipelines import parameters, run_step

        spec = run_step.component(step).component_spec
        inputs = {}
        for name, each in (spec.inputs or {}).items():
            if not type_utils.is_parameter_type(each.type):
                written = name.removesuffix("s") if each.is_artifact_list else name
                made = {
                    "type": _kind(each.type),
                    "uri": str(self._path(written)),
                    "metadata": self._metadata(written),
                }
                inputs[name] = [made] if each.is_artifact_list else made
        values = {**self.values, "cache": str(cache), "store": str(store), **more.pop("values", {})}
        arguments = parameters.component_arguments(self._pipeline, step, values)
        if step in run_step.LOOPS:
            arguments[run_step.LOOPS[step][0]] = 0
        outputs = {
            name: _kind(each.type)
            for name, each in (spec.outputs or {}).items()
            if not type_utils.is_parameter_type(each.type)
        }
        aside = self.folder / "processes" / f"{folder.parent.name}-{folder.name}"
        aside.mkdir(parents=True, exist_ok=True)
        return {
            "step": step,
            "folder": str(folder),
            "below": str(folder.parent),
            "inputs": inputs,
            "arguments": arguments,
            "outputs": outputs,
            "result": str(aside / "result.json"),
            "log": str(aside / "log.txt"),
            "environment": {"HOME": str(self.folder / "home"), "TF_CPP_MIN_LOG_LEVEL": "2"},
            **more,
        }

    def run(
        self,
        step: str,
        folder: Path,
        *,
        kill_after: float | None = None,
        kill_when: Callable[[int], bool] | None = None,
        **more: Any,
    ) -> Ended:
        """Run a step, killed at a moment where one is given; returns how it ended.

        Args:
            step: the step.
            folder: of its artifacts.
            kill_after: seconds from the start of its work.
            kill_when: is asked again and again, with the number of its process.
            **more: of :meth:`request`.
        """
        request = self.request(step, folder, **more)
        log, result = Path(request["log"]), Path(request["result"])
        result.unlink(missing_ok=True)
        before = log.stat().st_size if log.exists() else 0
        started = time.monotonic()
        self.pid = self._server.start({**request, "kill_after": kill_after})
        while kill_when is not None and psutil.pid_exists(self.pid):
            if kill_when(self.pid):
                os.kill(self.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        code = self._server.wait()
        seconds = time.monotonic() - started
        text = log.read_bytes()[before:].decode(errors="replace")
        told = json.loads(result.read_text()) if code == 0 else {}
        return Ended(code, seconds, text, told)

    def _path(self, artifact: str) -> Path:
        return self.folder_of(_producer(artifact)) / artifact

    def _metadata(self, artifact: str) -> dict[str, Any]:
        return dict(self.reference[_producer(artifact)].told["metadata"].get(artifact, {}))


def _steps() -> tuple[str, ...]:
    from pipelines.settings import STEPS

    return STEPS


def _producer(artifact: str) -> str:
    from pipelines import run_step

    return next(s for s in _steps() if artifact in (run_step.component(s).component_spec.outputs or {}))


def _kind(schema: str) -> str:
    return schema.split("@")[0].removeprefix("system.")


def check_visible(expected: Path, folder: Path, *, asides: bool) -> None:
    """Check that what can be seen of a step's artifacts is whole: each is absent, or as in an unbroken run, and sealed.

    Args:
        expected: the folder of an unbroken run's artifacts.
        folder: of this run's; it may be missing.
        asides: whether what was written aside may still lie there, as a killed process leaves it.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (asides and path.name.startswith(".") and ".partial" in path.name):
            assert not differences(expected / path.name, path), path.name


def differences(expected: Path, found: Path) -> list[str]:
    """Return in what two artifacts differ, apart from dates and durations; nothing where they are the same.

    Bytes are compared, but JSON by its values, arrays by theirs, and texts without their dates. Where the expected one
    is sealed the other must be what its own seal says: sums of bytes that hold a date are not those of another day.
    """
    if not expected.exists():
        return [f"'{found}', which an unbroken run has not"]
    if expected.is_file() or found.is_file():
        return [] if _same(expected, found) else [expected.name]
    names = {p.relative_to(expected).as_posix() for p in expected.rglob("*")}
    others = {p.relative_to(found).as_posix() for p in found.rglob("*")}
    changed = [n for n in sorted(names & others) if n != seals.FILE and not _same(expected / n, found / n)]
    damage = seals.find_damage(found) if seals.FILE in names else None
    return sorted(names ^ others) + changed + ([damage[1]] if damage else [])


def _same(one: Path, other: Path) -> bool:
    if one.is_dir() or other.is_dir():
        return one.is_dir() and other.is_dir()
    return other.is_file() and _content(one) == _content(other)


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json" or data[:1] == b"{":
        return _timeless(json.loads(data), _OF_THE_MOMENT.get(path.name, set()))
    if path.suffix == ".keras":
        return data
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (arrays[name].dtype.str, arrays[name].tobytes()) for name in arrays}
    return _DATES.sub(b"", data)


def _timeless(value: Any, changing: set[str]) -> Any:
    """Return a JSON value without what is named in ``changing``; names of what lies deeper are joined by dots."""
    if not isinstance(value, dict):
        return value
    return {
        name: _timeless(each, {c.removeprefix(f"{name}.") for c in changing if c.startswith(f"{name}.")})
        for name, each in value.items()
        if name not in changing
    }
