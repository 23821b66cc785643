"""Loaded by every interpreter of a measured run: notes of each step how long it worked, and how long it imported.

``benchmarks/orchestration.py`` puts this folder on ``PYTHONPATH``. A step's function is timed inside kfp's executor, in
a new interpreter as well as in a fork; its imports are those of its main thread.
"""

import builtins
import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

NOTES = os.environ.get("GRAFTFLOW_STEP_CLOCK", "")
_imported = {"seconds": 0.0, "cpu": 0.0}
_importing: list[str] = []


def timed(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return an import function that adds its time to the total; one within another counts once."""

    @functools.wraps(load)
    def loaded(name: str, *given: Any, **named: Any) -> Any:
        if _importing or threading.current_thread() is not threading.main_thread():
            return load(name, *given, **named)
        _importing.append(name)
        started, cpu = time.perf_counter(), time.process_time()
        try:
            return load(name, *given, **named)
        finally:
            _importing.clear()
            _imported["seconds"] += time.perf_counter() - started
            _imported["cpu"] += time.process_time() - cpu
            executor = sys.modules.get("kfp.dsl.executor")
            if hasattr(executor, "Executor") and not hasattr(executor, "timed_by"):
                executor.timed_by = __name__  # type: ignore[union-attr]
                executor.Executor.execute = noted(executor.Executor.execute)  # type: ignore[union-attr]

    return loaded


def noted(execute: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the executor's method that also appends a line about the step to the file."""

    @functools.wraps(execute)
    def executed(executor: Any) -> Any:
        before = dict(_imported)
        started, cpu = time.perf_counter(), time.process_time()
        try:
            return execute(executor)
        finally:
            note = {
                "step": executor.func.__name__,
                "seconds": time.perf_counter() - started,
                "cpu": time.process_time() - cpu,
                "import_seconds": _imported["seconds"] - before["seconds"],
                "import_cpu": _imported["cpu"] - before["cpu"],
            }
            with open(NOTES, "a", encoding="utf-8") as file:
                file.write(json.dumps(note) + "\n")

    return executed


if NOTES:
    builtins.__import__ = timed(builtins.__import__)
    importlib.import_module = timed(importlib.import_module)
