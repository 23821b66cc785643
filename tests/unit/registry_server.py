"""A Kubeflow Model Registry on the loopback interface, as far as graftflow speaks to it.

It takes the fields of the registry's OpenAPI document and no others. Fields and paths are those of PyPI's
``model-registry`` 0.3.10 (v1alpha3) and 0.3.18 (v1): ``mr_openapi/models/*_create.py``, ``*_update.py`` and ``api/``.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

_RESOURCE = {"customProperties", "description", "externalId"}
_ARTIFACT = {
    "artifactType",
    "modelFormatName",
    "modelFormatVersion",
    "storageKey",
    "storagePath",
    "serviceAccountName",
    "modelSourceKind",
    "modelSourceClass",
    "modelSourceGroup",
    "modelSourceId",
    "modelSourceName",
    "uri",
    "state",
}
CREATE = {
    "registered_models": _RESOURCE | {"name", "readme", "maturity", "language", "tasks", "provider", "owner"},
    "model_versions": _RESOURCE | {"name", "state", "author", "registeredModelId"},
    "artifacts": _RESOURCE | _ARTIFACT | {"name"},
}
UPDATE = {
    "model_versions": _RESOURCE | {"state", "author"},
    "model_artifacts": _RESOURCE | _ARTIFACT,
}
_VALUES = {"MetadataStringValue": ("string_value", str), "MetadataDoubleValue": ("double_value", float)}


class Registry(ThreadingHTTPServer):
    """The server and what it holds.

    Attributes:
        api: the version of the API that it speaks.
        token: that a client must send, or ``""``.
        answer: sent instead of any other: status, content type and body.
        requests: method, path and body of each one.
        models, versions, artifacts: what was registered.
    """

    daemon_threads = True

    def __init__(self, api: str = "v1alpha3") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api, self.token = api, ""
        self.answer: tuple[int, str, bytes] | None = None
        self.requests: list[tuple[str, str, Any]] = []
        self.models: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def changes(self) -> list[tuple[str, str]]:
        """Method and path of what was not only read."""
        return [(method, path) for method, path, _ in self.requests if method != "GET"]


@contextmanager
def running_registry(api: str = "v1alpha3") -> Iterator[Registry]:
    with Registry(api) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _RefusedError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def do_PATCH(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: Any) -> None:
        self.server.requests.append((self.command, urlsplit(self.path).path, body))
        if self.server.answer is not None:
            self._send(*self.server.answer)
            return
        try:
            code, content = self._content(body)
        except _RefusedError as error:
            code, content = error.code, {"code": str(error.code), "message": str(error)}
        self._send(code, "application/json", json.dumps(content).encode())

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if code == 302:
            self.send_header("location", "http://127.0.0.1:9/login")
        self.end_headers()
        self.wfile.write(body)

    def _content(self, body: Any) -> tuple[int, Any]:
        server, parts = self.server, urlsplit(self.path)
        if server.token and self.headers.get("authorization") != f"Bearer {server.token}":
            raise _RefusedError(401, "unauthenticated")
        prefix = f"/api/model_registry/{server.api}/"
        if not parts.path.startswith(prefix):
            raise _RefusedError(404, "404 page not found")
        resource = parts.path.removeprefix(prefix)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if self.command == "GET":
            return 200, self._found(resource, asked)
        if self.command == "POST":
            return 201, self._created(resource, body)
        name, _, number = resource.partition("/")
        there = [each for each in (*server.versions, *server.artifacts) if each["id"] == number]
        if name not in UPDATE or not there:
            raise _RefusedError(404, f"no {resource}")
        _check(body, UPDATE[name])
        there[0].update(body)
        return 200, _public(there[0])

    def _found(self, resource: str, asked: dict[str, str]) -> Any:
        server = self.server
        if resource == "registered_models":
            return {"items": server.models, "size": len(server.models), "pageSize": 1, "nextPageToken": ""}
        held = {
            "registered_model": server.models,
            "model_version": server.versions,
            "model_artifact": server.artifacts,
        }.get(resource)
        if held is None:
            raise _RefusedError(404, "404 page not found")
        parent = asked.get("parentResourceId")
        found = [e for e in held if e["name"] == asked["name"] and e.get("parent") == parent]
        if not found:
            raise _RefusedError(404, f"no {resource} named {asked['name']}")
        return _public(found[0])

    def _created(self, resource: str, body: Any) -> Any:
        server, parent = self.server, None
        match = re.fullmatch(r"model_versions/([^/]+)/artifacts", resource)
        kind = "artifacts" if match else resource
        if kind not in CREATE:
            raise _RefusedError(404, "404 page not found")
        _check(body, CREATE[kind])
        if match:
            parent = match[1]
            if body.get("artifactType") != "model-artifact":
                raise _RefusedError(400, "artifactType must be one of model-artifact, doc-artifact")
        elif kind == "model_versions":
            parent = body["registeredModelId"]
        held = {
            "registered_models": server.models,
            "model_versions": server.versions,
            "artifacts": server.artifacts,
        }[kind]
        if any(e["name"] == body["name"] and e.get("parent") == parent for e in held):
            raise _RefusedError(409, f"{kind} has {body['name']} already")
        number = str(1 + len(server.models) + len(server.versions) + len(server.artifacts))
        held.append({**body, "id": number, "parent": parent})
        return _public(held[-1])


def _public(held: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if name != "parent"}


def _check(body: Any, fields: set[str]) -> None:
    if unknown := set(body) - fields:
        raise _RefusedError(400, f"json: unknown field {sorted(unknown)}")
    for name, value in body.get("customProperties", {}).items():
        field, kind = _VALUES.get(value.get("metadataType"), ("", str))
        if set(value) != {"metadataType", field} or not isinstance(value[field], kind):
            raise _RefusedError(400, f"customProperties.{name} is no MetadataValue")
