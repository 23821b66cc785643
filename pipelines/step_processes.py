"""How kfp.local's subprocess runner starts a step: forked from one process that has loaded what the steps need.

As kfp does it, each step is a new interpreter that imports TensorFlow again, which takes 2 to 4 seconds, eight times.
A step stays a process of its own: its memory is returned when it ends, and its death is nobody else's.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kfp.dsl import component_factory
from kfp.local import subprocess_task_handler

from pipelines import fork_server

# Steps that do without TensorFlow, or (deploy_model) mostly do: where nothing else runs, it is not loaded for them.
WITHOUT_TENSORFLOW = frozenset(
    {"check_settings", "check_comparison", "merge_features", "train_head", "write_report", "deploy_model"}
)
# Checked to start no threads when they are imported: tests/pipeline/test_step_processes.py.
_BASE = ("kfp.dsl.executor_main",)
_TENSORFLOW = ("tensorflow", "keras")
_as_kfp_does = subprocess_task_handler.run_local_subprocess
# The kernel's way to end what takes too much memory, and three of libraries that were refused it.
_OF_MEMORY = ("SIGKILL", "SIGABRT", "SIGBUS", "SIGSEGV")
_COMMAND_PARTS = 4  # sh -ec SCRIPT SOURCE, then the executor's own arguments


@contextlib.contextmanager
def forked_steps() -> Iterator[None]:
    """Let kfp.local's subprocess runner fork its steps, for the block; elsewhere than on Linux, nothing changes."""
    processes = StepProcesses()
    if sys.platform == "linux":  # macOS' own libraries do not survive a fork
        subprocess_task_handler.run_local_subprocess = processes.run
    try:
        yield
    finally:
        subprocess_task_handler.run_local_subprocess = _as_kfp_does
        processes.close()


def how_it_ended(exit_code: int) -> str:
    """Return in words how a process ended, of its exit code; minus the signal's number where one ended it."""
    if exit_code >= 0:
        return f"ended with code {exit_code}"
    name = signal.Signals(-exit_code).name
    memory = ", perhaps out of memory" if name in _OF_MEMORY else ""
    return f"was ended by {name}{memory}"


class StepProcesses:
    """Runs steps as forks of one process, which starts with the first of them. One step at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def run(self, full_command: Sequence[str], env_vars: dict[str, str] | None = None) -> int:
        """Run a step, print what it prints, and return its exit code: what kfp's ``run_local_subprocess`` does.

        Args:
            full_command: that of kfp's lightweight component: ``sh -ec SCRIPT SOURCE`` and the executor's arguments.
            env_vars: set for the step, beside this process's own.
        """
        *_, script, source = full_command[:_COMMAND_PARTS]
        arguments = list(full_command[_COMMAND_PARTS:])
        if component_factory.EXECUTOR_MODULE not in script:
            return _as_kfp_does(list(full_command), env_vars)
        step = arguments[arguments.index("--function_to_execute") + 1]
        with self._lock, tempfile.TemporaryDirectory(prefix="graftflow-step-") as folder:
            path = Path(folder) / "ephemeral_component.py"
            path.write_text(source, encoding="utf-8")
            request = {
                "arguments": ["--component_module_path", str(path), *arguments],
                "environment": {**os.environ, **(env_vars or {}), "_KFP_RUNTIME": "true"},
                "modules": [*_BASE, *(() if step in WITHOUT_TENSORFLOW else _TENSORFLOW)],
            }
            exit_code = self._ask(request)
        if exit_code is None:
            return _as_kfp_does(list(full_command), env_vars)
        if exit_code < 0:  # nobody else says why, and the step could not
            print(f"ProcessError: the step {how_it_ended(exit_code)}")
        # Of a process that a signal ended, what a shell says.
        return exit_code if exit_code >= 0 else 128 - exit_code

    def close(self) -> None:
        """End the process that forks; it does so by itself once nobody is left to ask it."""
        if self._channel:
            self._channel.close()
        if self._server:
            self._server.kill()
            self._server.wait()
        self._server = self._channel = None

    def _ask(self, request: dict[str, Any]) -> int | None:
        """Return a step's exit code; None where it was not forked, since TensorFlow was at work already."""
        channel = self._channel or self._start()
        reading, writing = os.pipe()
        with open(reading, encoding="utf-8", errors="replace") as output:
            try:
                fork_server.send(channel, request, (writing,))
            finally:
                os.close(writing)
            for line in output:
                print(line, end="")
        print("\n")  # as kfp does: a step's log ends with an empty line
        answer = fork_server.receive(channel)
        if answer is None:
            if self._server:
                print(f"ProcessError: the process that starts the steps {how_it_ended(self._server.wait())}")
            self.close()
            return 1
        return answer[0]["exit"]

    def _start(self) -> socket.socket:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, fork_server.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "_KFP_RUNTIME": "true"},
            )
        return self._channel
