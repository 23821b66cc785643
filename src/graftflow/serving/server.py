"""The embedded model server: one model, TensorFlow Serving's flags and its REST API.

``python -m graftflow.serving --model_name=graftflow --model_base_path=models/graftflow``
"""

import argparse
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from graftflow.errors import InputError
from graftflow.serving.model_store import ModelStore

log = logging.getLogger("graftflow.serving")

MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DRAIN_SECONDS = 30


@dataclass(frozen=True)
class Options:
    """What the server is told by its flags."""

    host: str
    port: int
    model_name: str
    base_path: Path
    poll_wait_seconds: float


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse_flags(arguments: Sequence[str] | None = None) -> Options:
    """Return the options that the command line gives.

    Args:
        arguments: flags, as ``--flag=value`` or ``--flag value``; ``None`` for the process's own.

    Raises:
        InputError: where a flag is unknown or its value breaks a rule.
    """
    parser = _Parser(
        prog="python -m graftflow.serving",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rest_api_port", type=int, default=8501, help="port of the REST API (8501)")
    add("--model_name", default="graftflow", help="the model's name in URLs (graftflow)")
    add("--model_base_path", required=True, help="the folder that holds the numbered versions")
    add(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        help="seconds between two looks for a new version; 0 looks once (1)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for every one (127.0.0.1)",
    )
    flags = parser.parse_args(arguments)
    if not 1 <= flags.rest_api_port <= 65535:
        raise InputError(f"--rest_api_port must be 1 to 65535. Received: {flags.rest_api_port}")
    if not MODEL_NAME.fullmatch(flags.model_name):
        raise InputError(
            f"--model_name must be letters, digits, '.', '_' or '-'. Received: {flags.model_name!r}"
        )
    if not 0 <= flags.file_system_poll_wait_seconds < float("inf"):
        raise InputError(
            "--file_system_poll_wait_seconds must be 0 or more. "
            f"Received: {flags.file_system_poll_wait_seconds}"
        )
    base_path = Path(flags.model_base_path).expanduser().absolute()
    if base_path.exists() and not base_path.is_dir():
        raise InputError(f"--model_base_path must be a folder. Received: {base_path}")
    return Options(
        flags.host,
        flags.rest_api_port,
        flags.model_name,
        base_path,
        flags.file_system_poll_wait_seconds,
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host`` and ``port``.

    Raises:
        InputError: where the port is in use, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --rest_api_port, "
            "or stop the server that has this one."
        ) from error
    return bound


def serve(options: Options, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests that still run then are answered first.

    Args:
        options: what to serve.
        bound: the socket to accept connections on; it listens once the first version is loaded.
    """
    # Imported here: TensorFlow takes seconds, and flags and port are judged before.
    from graftflow.serving.rest import RestApi
    from graftflow.serving.saved_models import LoadedVersion

    store = ModelStore(options.model_name, options.base_path, LoadedVersion)
    api = RestApi(store, options.poll_wait_seconds)
    config = uvicorn.Config(
        api.application(),
        http="h11",
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=512,
        limit_concurrency=128,  # more get 503, which clients retry
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        h11_max_incomplete_event_size=64 * 2**10,  # of a request's line and headers
    )
    url = f"http://{_in_url(options.host)}:{options.port}/v1/models/{options.model_name}"
    server = _Server(config, f"serving {options.model_name} at {url} (stop with Ctrl-C)")
    _on_signals(server.stop)
    server.run(sockets=[bound])


class _Server(uvicorn.Server):
    """Says when it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            log.info(self._ready)

    def stop(self, *_: Any) -> None:
        """Handle a signal; uvicorn raises those it handled again after its drain: they end here."""
        self.should_exit = True


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _exit_quietly(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _in_url(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server; returns 0 after a drain, 2 for wrong flags or port (one line on stderr)."""
    _on_signals(_exit_quietly)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    log.setLevel(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        options = parse_flags(arguments)
        with listen(options.host, options.port) as bound:
            serve(options, bound)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
