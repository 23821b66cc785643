"""Runs steps in processes that begin at once: forks of one process that has imported everything they need.

``python -m tests.stress.step_server`` reads a request a line, JSON, and answers twice: with the process's number, and
with its exit code. Without it a kill would mostly hit an import of TensorFlow, and a campaign would consist of them.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# What the steps import in their bodies; the import starts no thread that a fork would miss.
_PRELOADED = (
    "tensorflow",
    "keras",
    "sklearn.linear_model",
    "matplotlib.pyplot",
    "kfp.dsl",
    "pipelines.run_step",
    "graftflow.adversarial",
    "graftflow.backbone_measurements",
    "graftflow.challenges",
    "graftflow.datasets",
    "graftflow.evaluation",
    "graftflow.export",
    "graftflow.pushes",
    "graftflow.report",
    "graftflow.report.challenges",
    "graftflow.visualisation",
)
_PR_SET_PDEATHSIG = 1
# Audit events that change names or lengths of files: between two of them nothing that others see changes.
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")


def run(request: dict[str, Any]) -> None:
    """Run a step's component as kfp does, and note what it returned and said of its artifacts.

    Args:
        request: ``step``, ``folder`` of its artifacts, ``inputs`` (name → ``{"type", "uri", "metadata"}``, or a list
            of them), ``arguments``, ``outputs`` (name → type) and ``result``, the file to write; ``below``, where
            changes of names are counted, and ``die_at``, the one that shall not happen.
    """
    from kfp import dsl

    def made(name: str, told: dict[str, Any]) -> Any:
        return getattr(dsl, told["type"])(name=name, uri=told["uri"], metadata=dict(told.get("metadata", {})))

    step, folder = request["step"], Path(request["folder"])
    inputs = {
        name: [made(name, each) for each in told] if isinstance(told, list) else made(name, told)
        for name, told in request["inputs"].items()
    }
    outputs = {
        name: made(name, {"type": kind, "uri": str(folder / name)})
        for name, kind in request["outputs"].items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    changes = _watch_changes(request["below"], request.get("die_at", 0))
    component = getattr(importlib.import_module(f"components.{step}"), step)
    returned = component.python_func(**inputs, **request["arguments"], **outputs)
    metadata = {name: made.metadata for name, made in outputs.items()}
    told = {"returned": returned, "metadata": metadata, "changes": changes}
    Path(request["result"]).write_text(json.dumps(told, allow_nan=False), encoding="utf-8")


def _watch_changes(below: str, die_at: int) -> list[tuple[str, str]]:
    """Kill this process just before its ``die_at``-th change of a name below a folder, with 0 never.

    Returns:
        A list that grows: of each change the audit event and the name that is changed.
    """
    seen: list[tuple[str, str]] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_CREAT | os.O_TRUNC))
        else:
            changes = event in _CHANGES
        # What shutil.rmtree removes it names by the open folder above and the last part of the path.
        if changes and any(below in str(a) or not str(a).startswith("/") for a in arguments[:1]):
            seen.append((event, str(arguments[0])))
            if len(seen) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return seen


def _child(request: dict[str, Any]) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request.get("environment", {}))
    for name, most in request.get("limits", {}).items():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most += used if name == "RLIMIT_AS" else 0
        resource.setrlimit(getattr(resource, name), (most, most))
    try:
        run(request)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Answer requests until there are no more; what runs then is killed with this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in _PRELOADED:
        importlib.import_module(name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            code = _child(request)
            sys.stdout.flush()
            os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"code": _end(pid, request.get("kill_after"))}), flush=True)


def _end(pid: int, kill_after: float | None) -> int:
    """Wait for a child, killed after some seconds where these are given; returns its exit code.

    Nobody else waits for it, so that its number is its own when it is killed.
    """
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        ended, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = None
        time.sleep(0.002)


if __name__ == "__main__":
    main()
