"""Steps of one small run, each in a process of its own that a test may kill, and what compares their artifacts."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
# How long something took, what came from a cache, where the store is, whether a killed step had published already, and
# digests of what holds a date; all other values of a JSON file are the same, run for run.
_OF_THE_MOMENT = {"seconds", "computed", "cached", "time", "uri", "status", "sha256"}
# How far a server's answers were from the evaluation's: below 1e-5, which the step itself sees to.
_OF_THE_MOMENT |= {"largest_difference", "rest", "grpc"}
_DATES = re.compile(rb"\d{4}-\d\d-\d\d[ T@]\d\d:\d\d(:\d\d)?( UTC|Z)?")
# Sums are of bytes that may hold a date.
_NEVER_THE_SAME = {"SHA256SUMS"}


@dataclass
class Ended:
    """How a step's process ended.

    Attributes:
        code: exit code; minus a signal's number where one killed it.
        seconds: from its start to its end.
        log: what it printed, both streams.
        told: ``returned``, ``metadata`` of its artifacts and how many ``changes`` of names it made; empty where it did
            not come to its end.
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

    def run(self, step: str, folder: Path, *, kill_after: float | None = None, **more: Any) -> Ended:
        """Run a step, killed after some seconds where these are given; returns how it ended.

        Args:
            step: the step.
            folder: of its artifacts.
            kill_after: seconds from the start of its work.
            **more: of :meth:`request`.
        """
        request = self.request(step, folder, **more)
        return self.start_and_wait(request, kill_after)

    def start_and_wait(self, request: dict[str, Any], kill_after: float | None = None) -> Ended:
        """As :meth:`run`, of a request."""
        log, result = Path(request["log"]), Path(request["result"])
        result.unlink(missing_ok=True)
        before = log.stat().st_size if log.exists() else 0
        started = time.monotonic()
        self.pid = self._server.start({**request, "kill_after": kill_after})
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


def differences(expected: Path, found: Path) -> list[str]:
    """Return in what two artifacts differ, apart from dates and durations; nothing where they are the same.

    Bytes are compared, but JSON by its values, arrays by theirs, and texts without their dates.
    """
    if expected.is_file():
        return [] if found.is_file() and _same(expected, found) else [expected.name]
    names = {p.relative_to(expected).as_posix() for p in expected.rglob("*") if p.is_file()}
    others = {p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file()}
    return sorted(names ^ others) + [n for n in sorted(names & others) if not _same(expected / n, found / n)]


def _same(one: Path, other: Path) -> bool:
    return one.name in _NEVER_THE_SAME or _content(one) == _content(other)


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json" or data[:1] == b"{":
        return _timeless(json.loads(data))
    if path.suffix == ".keras":
        return data
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (arrays[name].dtype.str, arrays[name].tobytes()) for name in arrays}
    return _DATES.sub(b"", data)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(v) for name, v in value.items() if name not in _OF_THE_MOMENT}
    return [_timeless(v) for v in value] if isinstance(value, list) else value
