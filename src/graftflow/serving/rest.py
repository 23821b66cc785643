"""TensorFlow Serving's REST API over a set of models, as an ASGI application."""

import asyncio
import json
import logging
import re
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import unquote

from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis import get_model_metadata_pb2

from graftflow.serving import bodies, classifications, examples, json_inputs, json_outputs, monitoring
from graftflow.serving.inference import Inference, counted, signature_key
from graftflow.serving.json_inputs import Tensor
from graftflow.serving.model_sets import ModelSpec
from graftflow.serving.model_store import status_json
from graftflow.serving.status import HTTP_STATUS, Code, ServingError, invalid

log = logging.getLogger("graftflow.serving")

# A body beyond this many bytes is read and written on a thread: the event loop answers the others.
_LARGE = 32 * 2**10
_SHOWN = 4096  # characters of an error

_TARGET = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(_TARGET + r":(?P<method>predict|classify|regress)", re.IGNORECASE)
_GET = re.compile(_TARGET + r"(?:/(?P<resource>metadata))?", re.IGNORECASE)
_NO_NAME = re.compile(r"/v1/models", re.IGNORECASE)


class RestApi:
    """Answers in TensorFlow Serving's form; a model's work runs on threads: status never waits.

    Args:
        inference: what runs the models.
        timeout: seconds that a request may take, the reading of its body included.
        monitoring_path: where metrics are read; ``None`` for nowhere.
        cors: whether pages of other origins may read the answers.
    """

    def __init__(
        self,
        inference: Inference,
        timeout: float = 30.0,
        monitoring_path: str | None = None,
        *,
        cors: bool = False,
    ) -> None:
        self._inference, self._timeout = inference, timeout
        self._monitoring_path, self._cors = monitoring_path, cors
        self._room = bodies.Room()

    def application(self) -> Starlette:
        """Return the ASGI application."""
        # One route for everything: TensorFlow Serving's own patterns judge paths and methods.
        return Starlette(routes=[Route("/{path:path}", _AnyMethod(self))])

    async def answer(self, request: Request) -> Response:
        """Answer one request; every error becomes ``{"error": "…"}``."""
        response = await self._answer(request)
        if self._cors:
            response.headers["Access-Control-Allow-Origin"] = "*"
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Access-Control-Allow-Headers"] = "Content-Type"
        return response

    async def _answer(self, request: Request) -> Response:
        if self._cors and request.method == "OPTIONS":
            return Response(status_code=200)
        if request.method == "GET" and request.scope["path"] == self._monitoring_path:
            return Response(monitoring.exposition(), headers={"Content-Type": monitoring.CONTENT_TYPE})
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # What a proxy before us takes for the next request may be this one's body.
            refusal = _error("A request must have one of Transfer-Encoding and Content-Length", 400)
            refusal.headers["Connection"] = "close"
            return refusal
        try:
            text = await self._dispatch(request)
            return await bodies.respond(request, text)
        except ServingError as error:
            return _error(error.message, HTTP_STATUS[error.code])
        except bodies.TooLargeError as error:
            return _error(str(error), 413)
        except ClientDisconnect:
            return Response(status_code=HTTP_STATUS[Code.CANCELLED])
        except asyncio.CancelledError:  # the drain is over
            return _error("The server ends", 503)
        except Exception:
            log.exception("%s %s failed", request.method, request.scope["path"])
            return _error("Internal error; the server's log says more", 500)

    async def _dispatch(self, request: Request) -> str:
        # The path as sent: it is matched before it is decoded, so "%2F" is never a separator.
        path = request.scope.get("raw_path", request.scope["path"].encode()).decode("ascii", "replace")
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
        label = unquote(match["label"]) if match["label"] else None
        spec = ModelSpec(unquote(match["name"]), _version(match["version"]), label)
        if request.method == "GET":
            if match["resource"]:
                return self._metadata(spec)
            return json.dumps(status_json(self._inference.models.statuses(spec)), indent=1) + "\n"
        end = asyncio.get_running_loop().time() + self._timeout
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout_at(end):
                    await held.enter_async_context(self._room.taken(bodies.most_bytes(request)))
                    body = await bodies.read(request)
            except TimeoutError:
                raise ServingError(
                    Code.DEADLINE_EXCEEDED, f"The request's body must arrive within {self._timeout:g} s"
                ) from None
            return await self._answer_body(spec, body, match["method"].lower(), end)

    async def _answer_body(self, spec: ModelSpec, body: bytes, method: str, end: float) -> str:
        with counted(self._inference.known(spec.name), method, "REST"):
            run = self._predict if method == "predict" else self._on_examples
            return await run(spec, body, method, end)

    async def _predict(self, named: ModelSpec, body: bytes, method: str, end: float) -> str:
        def read() -> tuple[ModelSpec, Any, dict[str, Tensor], json_inputs.Format]:
            # In one go: the document, many times as large as the tensors, waits for nobody.
            document = json_inputs.parse_object(body)
            spec = _with_signature(named, document)
            version = self._inference.models.get(spec)
            inputs, form = json_inputs.read_inputs(document, version.signature(signature_key(spec)).inputs)
            if json_inputs.has_infinity(inputs):
                json_inputs.refuse_overflow(body)
            return spec, version, inputs, form

        spec, version, inputs, form = await self._read(read, body)
        outputs = await self._inference.predict(spec, version, inputs, timeout=_seconds_to(end))
        if sum(tensor.size for tensor in outputs.values()) > _LARGE:
            return str(await self._inference.elsewhere(json_outputs.write_outputs, outputs, form))
        return json_outputs.write_outputs(outputs, form)

    async def _on_examples(self, named: ModelSpec, body: bytes, method: str, end: float) -> str:
        def read() -> tuple[ModelSpec, Any]:
            document = json_inputs.parse_object(body)
            spec = _with_signature(named, document)
            given = examples.read_examples(document)
            if examples.has_infinity(given):
                json_inputs.refuse_overflow(body)
            return spec, given

        # As TensorFlow Serving: the body is judged before the model is looked for.
        spec, given = await self._read(read, body)
        version, timeout = self._inference.models.get(spec), _seconds_to(end)
        if method == "classify":
            found = await self._inference.classify(spec, version, given, timeout)
            return str(await self._inference.elsewhere(classifications.write_classifications, found))
        found = await self._inference.regress(spec, version, given, timeout)
        return str(await self._inference.elsewhere(classifications.write_regressions, found))

    async def _read(self, work: Any, body: bytes) -> Any:
        return await self._inference.elsewhere(work, size=len(body)) if len(body) > _LARGE else work()

    def _metadata(self, spec: ModelSpec) -> str:
        model = self._inference.models.get(spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in model.signature_defs.items():
            signatures.signature_def[key].CopyFrom(definition)
        described = MessageToDict(
            signatures, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        document = {
            "model_spec": {"name": spec.name, "signature_name": "", "version": str(model.number)},
            "metadata": {"signature_def": described},
        }
        return json.dumps(document, indent=1) + "\n"


class _AnyMethod:
    """Makes an endpoint an ASGI application: Starlette then leaves the methods to it."""

    def __init__(self, api: RestApi) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._api.answer(Request(scope, receive, send))
        await response(scope, receive, send)


def _with_signature(spec: ModelSpec, document: dict[str, Any]) -> ModelSpec:
    return ModelSpec(spec.name, spec.version, spec.label, json_inputs.signature_name(document))


def _version(text: str | None) -> int | None:
    if text is None:
        return None
    if len(text) > 19 or int(text) >= 2**63:
        raise invalid(f"Failed to convert version: {text} to numeric.")
    return int(text)


def _seconds_to(end: float) -> float:
    return max(1e-3, end - asyncio.get_running_loop().time())


def _error(message: str, status: int) -> Response:
    message = message if len(message) <= _SHOWN else message[:_SHOWN] + "…"
    text = json.dumps({"error": message}, indent=1, ensure_ascii=False) + "\n"
    return Response(text.encode("utf-8", "replace"), status, media_type="application/json")
