"""TensorFlow Serving's REST API over a model store, as an ASGI application."""

import asyncio
import contextlib
import json
import logging
import os
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis import get_model_metadata_pb2

from graftflow.serving import json_inputs, json_outputs
from graftflow.serving.model_store import ModelStore, status_json
from graftflow.serving.status import HTTP_STATUS, Code, ServingError, invalid

log = logging.getLogger("graftflow.serving")

BODY_LIMIT = 64 * 2**20  # bytes of a request

_TARGET = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(_TARGET + r":(?P<method>predict|classify|regress)", re.IGNORECASE)
_GET = re.compile(_TARGET + r"(?:/(?P<resource>metadata))?", re.IGNORECASE)
_NO_NAME = re.compile(r"/v1/models", re.IGNORECASE)


class RestApi:
    """Answers in TensorFlow Serving's form; a model's work runs on threads: status never waits.

    Args:
        store: the model to serve.
        poll_wait_seconds: pause between two looks for a new version; 0 looks once, at the start.
    """

    def __init__(self, store: ModelStore, poll_wait_seconds: float) -> None:
        self._store, self._poll_wait_seconds = store, poll_wait_seconds
        self._workers = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="predict")

    def application(self) -> Starlette:
        """Return the ASGI application; its start-up ends once the newest version is loaded."""
        # One route for everything: TensorFlow Serving's own patterns judge paths and methods.
        return Starlette(routes=[Route("/{path:path}", _AnyMethod(self))], lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._workers, self._store.poll)
        if self._poll_wait_seconds > 0:
            self._store.watch(self._poll_wait_seconds)
        try:
            yield
        finally:
            await loop.run_in_executor(None, self._store.close)
            self._workers.shutdown(wait=True, cancel_futures=True)

    async def answer(self, request: Request) -> Response:
        """Answer one request; every error becomes ``{"error": "…"}``."""
        try:
            return _json(await self._dispatch(request))
        except ServingError as error:
            return _json(_error(error.message), HTTP_STATUS[error.code])
        except _TooLargeError as error:
            return _json(_error(str(error)), 413)
        except ClientDisconnect:
            return Response(status_code=HTTP_STATUS[Code.CANCELLED])
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            return _json(_error("Internal error; the server's log says more"), 500)

    async def _dispatch(self, request: Request) -> str:
        # The path as sent: it is matched before it is decoded, so "%2F" is never a separator.
        path = request.scope.get("raw_path", request.url.path.encode()).decode("ascii", "replace")
        if not path.lower().startswith("/v1/"):
            raise ServingError(Code.NOT_FOUND, f"Not Found: {path}")
        match = (
            {"POST": _POST, "GET": _GET}[request.method].fullmatch(path)
            if (request.method in ("POST", "GET"))
            else None
        )
        if match is None:
            if request.method == "GET" and _NO_NAME.fullmatch(path):
                raise invalid("Missing model name in request.")
            raise invalid(f"Malformed request: {request.method} {path}")
        name, version = unquote(match["name"]), _version(match["version"])
        if match["label"]:
            raise invalid(f"Unrecognized servable version label: {unquote(match['label'])}")
        if request.method == "GET":
            if match["resource"]:
                return self._metadata(name, version)
            return json.dumps(status_json(self._store.statuses(name, version)), indent=1) + "\n"
        body = await _read(request)
        method = match["method"].lower()
        if method != "predict":
            raise ServingError(Code.UNIMPLEMENTED, f"This server answers predict only. Received: {method}")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._predict, name, version, body)

    def _predict(self, name: str, version: int | None, body: bytes) -> str:
        document = json_inputs.parse_object(body)
        signature = json_inputs.signature_name(document)
        model = self._store.get(name, version)
        inputs, form = json_inputs.read_inputs(document, model.signature(signature).inputs)
        if json_inputs.has_infinity(inputs):
            json_inputs.refuse_overflow(body)
        return json_outputs.write_outputs(model.predict(signature, inputs), form)

    def _metadata(self, name: str, version: int | None) -> str:
        model = self._store.get(name, version)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in model.signature_defs.items():
            signatures.signature_def[key].CopyFrom(definition)
        described = MessageToDict(
            signatures, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return (
            json.dumps(
                {
                    "model_spec": {
                        "name": name,
                        "signature_name": "",
                        "version": str(model.number),
                    },
                    "metadata": {"signature_def": described},
                },
                indent=1,
            )
            + "\n"
        )


class _AnyMethod:
    """Makes an endpoint an ASGI application: Starlette then leaves the methods to it."""

    def __init__(self, api: RestApi) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._api.answer(Request(scope, receive, send))
        await response(scope, receive, send)


class _TooLargeError(Exception):
    """A request body beyond the limit."""


async def _read(request: Request) -> bytes:
    """Return the body; one beyond the limit is read unseen: who still writes reads no answer."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= BODY_LIMIT:
            chunks.append(chunk)
        else:
            chunks.clear()
            if size > 4 * BODY_LIMIT:
                break
    if size > BODY_LIMIT:
        raise _TooLargeError(
            f"A request must be at most {BODY_LIMIT} bytes ({BODY_LIMIT // 2**20} MiB). "
            f"Received: {size} bytes or more. Send fewer instances."
        )
    return b"".join(chunks)


def _version(text: str | None) -> int | None:
    if text is None:
        return None
    if len(text) > 19 or int(text) >= 2**63:
        raise invalid(f"Failed to convert version: {text} to numeric.")
    return int(text)


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


def _error(message: str) -> str:
    return json.dumps({"error": message}, indent=1, ensure_ascii=False) + "\n"
