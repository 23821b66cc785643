"""The embedded model server: TensorFlow Serving's flags, REST API and gRPC services in one process.

``python -m graftflow.serving --model_name=graftflow --model_base_path=models/graftflow``
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from graftflow.errors import InputError
from graftflow.serving.flags import Options, parse_flags
from graftflow.serving.model_store import Retries
from graftflow.serving.status import ServingError

if TYPE_CHECKING:
    from graftflow.serving.inference import Inference
    from graftflow.serving.model_sets import ModelSet

log = logging.getLogger("graftflow.serving")

_DRAIN_SECONDS = 30
_HEADER_SECONDS = 20  # a client may take for a request's line and headers


def listen(host: str, port: int, flag: str = "--rest_api_port") -> socket.socket:
    """Return a socket bound to ``host`` and ``port``.

    Raises:
        InputError: where the port is in use, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The protocol in so many words: only then asyncio sends at once (TCP_NODELAY); an answer's head and
        # body would else be 40 ms apart.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise _cannot_listen(host, port, flag, error) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _cannot_listen(host, port, flag, error) from error
    return bound


def _cannot_listen(host: str, port: int, flag: str, error: OSError) -> InputError:
    return InputError(
        f"Cannot listen on {host}:{port}: {error.strerror}. Choose another {flag}, "
        "or stop the server that has this one."
    )


async def serve(options: Options, bound: socket.socket | None) -> None:
    """Serve until SIGINT or SIGTERM; requests that still run then are answered first.

    Args:
        options: what to serve.
        bound: the socket of the REST API; it listens once the models are loaded. ``None`` for no REST.

    Raises:
        InputError: where the gRPC port cannot be had.
        ServingError: where a label of the configuration names a version that is not available.
    """
    # Imported here: TensorFlow takes seconds, and flags and ports are judged before.
    from graftflow.serving.inference import Inference
    from graftflow.serving.model_sets import ModelSet
    from graftflow.serving.rest import RestApi
    from graftflow.serving.saved_models import LoadedVersion

    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    models = ModelSet(
        LoadedVersion,
        Retries(options.load_retries, options.retry_seconds),
        labels_before_load=options.labels_before_load,
    )
    inference = Inference(models, options.threads, options.batching)
    try:
        loading = asyncio.create_task(asyncio.to_thread(_load, models, options))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            api = RestApi(
                inference, options.rest_timeout, options.monitoring_path, cors=options.cors
            ).application()
            await _serve_ports(options, bound, inference, _RestServer(_uvicorn(api)), stopped)
        stopped.cancel()
    finally:
        await asyncio.to_thread(models.close)
        await asyncio.to_thread(inference.close)


def _load(models: "ModelSet", options: Options) -> None:
    """Load what is configured, and look again for changes as often as the flags say."""
    if options.model is not None:
        models.configure([options.model])
    elif options.config_file is not None and options.config_poll_seconds:
        models.follow(options.config_file, options.config_poll_seconds)
    elif options.config_file is not None:
        from graftflow.serving.config_texts import read_models

        models.configure(read_models(options.config_file))
    if options.poll_seconds:
        models.watch(options.poll_seconds)


async def _serve_ports(
    options: Options,
    bound: socket.socket | None,
    inference: "Inference",
    rest: "_RestServer",
    stopped: "asyncio.Task[Any]",
) -> None:
    from graftflow.serving.grpc_api import GrpcServer

    places = []
    host = _in_url(options.host)
    grpc_server = None
    if options.grpc_port:
        grpc_server = GrpcServer(inference, options.host, options.grpc_port, options.tls)
        await grpc_server.start()
        places.append(f"grpc{'s' if options.tls else ''}://{host}:{options.grpc_port}")
    running = None
    if bound is not None:
        running = asyncio.create_task(rest.serve(sockets=[bound]))
        await rest.ready.wait()
        places.insert(0, f"http://{host}:{options.rest_port}")
    names = ", ".join(inference.models.names()) or "no model yet"
    log.info("serving %s at %s (stop with Ctrl-C)", names, " and ".join(places))
    await asyncio.wait((stopped, *([running] if running else [])), return_when=asyncio.FIRST_COMPLETED)
    rest.should_exit = True
    await asyncio.gather(
        *([grpc_server.stop(_DRAIN_SECONDS)] if grpc_server else []), *([running] if running else [])
    )


class _Protocol(H11Protocol):
    """Closes connections that do not bring a request's line and headers in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._patience = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None:
            self._patience.cancel()  # from here on the keep-alive's and the body's own limits hold

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _uvicorn(application: Any) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=512,
        limit_concurrency=512,  # more get 503, which clients retry
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        h11_max_incomplete_event_size=64 * 2**10,  # of a request's line and headers
    )


class _RestServer(uvicorn.Server):
    """Tells when it accepts connections, and leaves the signals to us."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _exit_quietly(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _in_url(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server; returns 0 after a drain, 2 for wrong flags or port (one line on stderr)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_quietly)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    log.setLevel(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        options = parse_flags(arguments)
        if not options.rest_port:
            asyncio.run(serve(options, None))
        else:
            with listen(options.host, options.rest_port) as bound:
                asyncio.run(serve(options, bound))
    except (InputError, ServingError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
