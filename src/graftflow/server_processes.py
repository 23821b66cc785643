"""A model server in a process of its own, on free ports of the loopback, that ends with the block that asked for it.

``python -m graftflow.server_processes PARENT FLAGS`` is that process: ``graftflow.serving``, which the system kills
when its parent dies, so that not even a killed step leaves a server behind.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from graftflow.errors import InputError

_READY = re.compile(r"^serving .+ at http", re.MULTILINE)
_PORT_TAKEN = "Cannot listen on"
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)
_TRIES = 3
_PATIENCE = 5.0  # seconds to end when asked to


class ServerProcess:
    """A model server that runs.

    Attributes:
        rest: the address of its REST API, ``http://127.0.0.1:…``.
        grpc: the address of its gRPC services, ``grpc://127.0.0.1:…``.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", rest_port: int, grpc_port: int, log: Path) -> None:
        self.rest, self.grpc = f"http://127.0.0.1:{rest_port}", f"grpc://127.0.0.1:{grpc_port}"
        self._process, self._log = process, log

    def log(self) -> str:
        """Return what it has printed so far, both streams."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def said(self, words: str = "") -> str:
        """Return the last line of its log that holds ``words``, or ``""``."""
        lines = [" ".join(line.split()) for line in self.log().splitlines() if words in line]
        return next((line for line in reversed(lines) if line), "")

    def ended(self) -> int | None:
        """Return its exit code, or ``None`` while it runs."""
        return self._process.poll()

    def wait_until_ready(self, deadline: float) -> None:
        """Return once it serves.

        Args:
            deadline: moment of ``time.monotonic`` to give up at.

        Raises:
            InputError: where it ends, or time does; the message is the last line of its log.
        """
        started = time.monotonic()
        while not _READY.search(self.log()):
            if (code := self.ended()) is not None:
                raise InputError(
                    f"The model server ended with code {code}: {self.said() or 'it said nothing'}"
                )
            if time.monotonic() > deadline:
                raise InputError(
                    f"The model server must be ready within {max(deadline - started, 0):.0f} seconds. "
                    f"Received: {self.said() or 'nothing yet'}"
                )
            time.sleep(0.05)


@contextmanager
def running_server(base_path: Path, model_name: str, *, deadline: float) -> Iterator[ServerProcess]:
    """Yield a server of the versions under a folder, once it has loaded or refused them; end it afterwards.

    Args:
        base_path: the folder of the numbered versions; only read.
        model_name: as requests give it.
        deadline: moment of ``time.monotonic`` at which it must be ready.

    Raises:
        InputError: where it does not come up; the message is the last line of its log.
    """
    flags = [
        f"--model_name={model_name}",
        f"--model_base_path={base_path.absolute()}",
        "--file_system_poll_wait_seconds=0",
        "--max_num_load_retries=0",
    ]
    with tempfile.TemporaryDirectory(prefix="graftflow-server-") as folder:
        for attempt in range(1, _TRIES + 1):
            with _started(flags, Path(folder) / f"{attempt}.log") as server:
                try:
                    server.wait_until_ready(deadline)
                except InputError:
                    # Somebody was faster: the port was free a moment ago.
                    if attempt < _TRIES and _PORT_TAKEN in server.said():
                        continue
                    raise
                yield server
                return


@contextmanager
def _started(flags: Sequence[str], log: Path) -> Iterator[ServerProcess]:
    rest_port, grpc_port = _free_ports(2)
    source = str(Path(__file__).resolve().parents[1])
    python_path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "graftflow.server_processes",
                str(os.getpid()),
                f"--rest_api_port={rest_port}",
                f"--port={grpc_port}",
                *flags,
            ],
            env={**os.environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        yield ServerProcess(process, rest_port, grpc_port, log)
    finally:
        process.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
        finally:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [int(bound.getsockname()[1]) for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()


def main(arguments: Sequence[str]) -> int:
    """Serve until the parent process ends; returns the server's exit code.

    Args:
        arguments: the parent's process id, then flags of ``graftflow.serving``.
    """
    parent, *flags = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1  # it died before it could be watched
    from graftflow.serving.server import main as serve

    return serve(flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
