"""The embedded model server: TensorFlow Serving's flags, REST API and gRPC services in one process.

``python -m graftflow.serving --model_name=graftflow --model_base_path=models/graftflow``
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import h11
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

_EVERY_IPV4 = "0.0.0.0"  # noqa: S104  # nosec B104 # binds nothing: what the log shows
_DRAIN_SECONDS = 30
_END_SECONDS = 5  # for graphs that still run after that
_HEADER_SECONDS = 20  # a client may take for a request's line and headers
_READ_SECONDS = 30  # a client may read nothing of its answer


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
        closing = asyncio.create_task(asyncio.to_thread(inference.close))
        if not (await asyncio.wait((closing,), timeout=_END_SECONDS))[0]:
            # A graph cannot be interrupted, and Python waits for its threads: a process that is told to end ends.
            log.warning("ending within a request that had no deadline")
            os._exit(0)


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
    """Ends connections that keep a request or an answer waiting, and refuses what is no HTTP in JSON."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_request()
        self._watch(0)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._be_patient()  # from here on the keep-alive's and the body's own limits hold
        elif self._patience is None:
            self._expect_request()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that has sent its whole request and says that nothing follows."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return None
        self.cycle.keep_alive = False
        return True

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as every other error; where an answer has begun there is none."""
        body = json.dumps({"error": msg}).encode()
        headers = [("Content-Type", "application/json"), ("Connection", "close")]
        headers.append(("Content-Length", str(len(body))))
        answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        with suppress(h11.LocalProtocolError):
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._be_patient()
        self._watching.cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        self._patience = self.loop.call_later(_HEADER_SECONDS, self.transport.close)

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _watch(self, before: int) -> None:
        """Give up a client that has not read a byte of its answer for a while."""
        left = self.transport.get_write_buffer_size()
        if before and left >= before:
            self.transport.abort()
            return
        self._watching = self.loop.call_later(_READ_SECONDS, self._watch, left)


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


def somebody_listened(record: logging.LogRecord) -> bool:
    """Leave out of the log the traceback of gRPC's core where a caller is gone before its answer could be sent."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError"


def _in_url(host: str) -> str:
    if host in (_EVERY_IPV4, "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server; returns 0 after a drain, 2 for wrong flags or port (one line on stderr)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_quietly)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    log.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # no line for every request that is no HTTP
    logging.getLogger("grpc._cython.cygrpc").addFilter(somebody_listened)
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
