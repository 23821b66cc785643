"""A Kubeflow Pipelines for tests: the v2beta1 API over HTTP on the loopback, as strict as the real one or stricter.

Every request body is read by kfp_server_api's own models; an unknown field, a wrong type or an unknown query argument
is answered with 400, as gRPC's gateway does. Runs advance by one snapshot with every look at them.
"""

import contextlib
import email.policy
import json
import re
import ssl
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

API = "/apis/v2beta1"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
PRIMITIVES = {"str": str, "bool": bool, "int": int, "float": (int, float), "object": object}


class RefusalError(Exception):
    """An answer with an error, as gRPC's gateway writes it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Snapshot:
    """What one look at a run shows: its state, and the states of tasks by display name."""

    state: str
    tasks: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class FakeKfp:
    """State and behaviour of the server; tests set what they need and read what was sent."""

    multi_user: bool = False
    namespaces: tuple[str, ...] = ("team",)
    token: str = ""
    cookie: str = ""
    script: list[Snapshot] = field(default_factory=lambda: [Snapshot("SUCCEEDED")])
    faults: dict[str, list[Any]] = field(default_factory=dict)  # path → answers given first
    artifacts: dict[str, dict[str, Any]] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    looked: threading.Event = field(default_factory=threading.Event)

    def respond(
        self, method: str, path: str, query: str, body: bytes, headers: Any
    ) -> tuple[Any, ...] | None:
        """Return an answer that comes before KFP's own: (status, content type, body, headers), or None."""

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, content_type: str) -> Any:
        """Return the JSON of an answer; raise RefusalError for an error."""
        for (verb, pattern), call in self._routes().items():
            if verb == method and (match := re.fullmatch(API + pattern, path)):
                allowed, function = call
                if unknown := set(query) - set(allowed):
                    raise RefusalError(400, f"parsing field {sorted(unknown)}: no such field")
                return function(*match.groups(), query=query, body=body, content_type=content_type)
        raise RefusalError(404, "Not Found")

    def _routes(self) -> dict[tuple[str, str], tuple[tuple[str, ...], Any]]:
        lists = ("page_token", "page_size", "sort_by", "filter", "namespace")
        return {
            ("GET", "/healthz"): (
                (),
                lambda **_: {"multi_user": self.multi_user, "pipeline_store": "database"},
            ),
            ("GET", "/experiments"): (lists, self._list_experiments),
            ("POST", "/experiments"): ((), self._create_experiment),
            ("GET", "/pipelines"): (lists, self._list_pipelines),
            ("POST", "/pipelines/upload"): (("name", "description", "namespace"), self._upload),
            ("POST", "/pipelines/upload_version"): (
                ("name", "pipelineid", "description"),
                self._upload_version,
            ),
            ("GET", "/pipelines/([^/]+)/versions"): (lists, self._list_versions),
            ("POST", "/runs"): (("experiment_id",), self._create_run),
            ("GET", "/runs/([^/:]+)"): (("experiment_id",), self._get_run),
            ("POST", "/runs/([^/:]+):terminate"): (("experiment_id",), self._terminate),
            ("POST", "/recurringruns"): ((), self._create_recurring),
            ("GET", "/artifacts/([^/]+)"): (("view",), self._get_artifact),
        }

    def _list_experiments(self, *, query: dict[str, str], **_: Any) -> Any:
        self._check_namespace(query.get("namespace", ""))
        found = _filtered(self.experiments, query)
        return {"experiments": found, "total_size": len(found)} if found else {}

    def _create_experiment(self, *, body: bytes, **_: Any) -> Any:
        given = read(body, "V2beta1Experiment")
        self._check_namespace(given.namespace or "")
        made = {
            "experiment_id": str(uuid.uuid4()),
            "display_name": given.display_name,
            "namespace": given.namespace or "",
            "storage_state": "AVAILABLE",
            "created_at": BEGAN.isoformat(),
        }
        self.experiments[made["experiment_id"]] = made
        return made

    def _list_pipelines(self, *, query: dict[str, str], **_: Any) -> Any:
        if query.get("namespace"):
            self._check_namespace(query["namespace"])
        found = _filtered(self.pipelines, query)
        return {"pipelines": found, "total_size": len(found)} if found else {}

    def _upload(self, *, query: dict[str, str], body: bytes, content_type: str) -> Any:
        if query.get("namespace"):
            self._check_namespace(query["namespace"])
        name = query["name"]
        if any(found["display_name"] == name for found in self.pipelines.values()):
            raise RefusalError(409, f"The pipeline name {name} already exists")
        spec = _package(body, content_type)
        made = {
            "pipeline_id": str(uuid.uuid4()),
            "display_name": name,
            "namespace": query.get("namespace", ""),
        }
        self.pipelines[made["pipeline_id"]] = made
        self._add_version(made["pipeline_id"], name, "", spec)
        return made

    def _upload_version(self, *, query: dict[str, str], body: bytes, content_type: str) -> Any:
        if query["pipelineid"] not in self.pipelines:
            raise RefusalError(404, f"Pipeline {query['pipelineid']} not found")
        there = [v["display_name"] for v in self.versions.values() if v["pipeline_id"] == query["pipelineid"]]
        if query["name"] in there:
            raise RefusalError(409, f"The name {query['name']} already exists")
        spec = _package(body, content_type)
        return self._add_version(query["pipelineid"], query["name"], query.get("description", ""), spec)

    def _add_version(self, pipeline_id: str, name: str, description: str, spec: Any) -> Any:
        made = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": str(uuid.uuid4()),
            "display_name": name,
            "description": description,
            "pipeline_spec": spec,
        }
        self.versions[made["pipeline_version_id"]] = made
        return made

    def _list_versions(self, pipeline_id: str, *, query: dict[str, str], **_: Any) -> Any:
        of_it = {key: v for key, v in self.versions.items() if v["pipeline_id"] == pipeline_id}
        found = _filtered(of_it, query)
        return {"pipeline_versions": found, "total_size": len(found)} if found else {}

    def _create_run(self, *, body: bytes, **_: Any) -> Any:
        self._check_run(read(body, "V2beta1Run"))
        made = {**json.loads(body), "run_id": str(uuid.uuid4()), "state": "PENDING"}
        self.runs[made["run_id"]] = made
        return made

    def _create_recurring(self, *, body: bytes, **_: Any) -> Any:
        given = read(body, "V2beta1RecurringRun")
        self._check_run(given)
        cron = given.trigger.cron_schedule.cron
        if not cron.startswith("@") and len(cron.split()) != 6:
            raise RefusalError(400, f"Invalid cron: {cron}")
        if given.mode != "ENABLE" or int(given.max_concurrency) < 1:
            raise RefusalError(400, "mode and max_concurrency are required")
        made = {**json.loads(body), "recurring_run_id": str(uuid.uuid4())}
        self.recurring[made["recurring_run_id"]] = made
        return made

    def _check_run(self, given: Any) -> None:
        if given.experiment_id not in self.experiments:
            raise RefusalError(404, f"Experiment {given.experiment_id} not found")
        reference = given.pipeline_version_reference
        version = self.versions.get(reference.pipeline_version_id)
        if not version or version["pipeline_id"] != reference.pipeline_id:
            raise RefusalError(404, f"PipelineVersion {reference.pipeline_version_id} not found")
        known = version["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        kinds = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float)}
        for name, value in (given.runtime_config.parameters or {}).items():
            if name not in known:
                raise RefusalError(400, f"parameter {name} is not in the pipeline")
            if not isinstance(value, kinds[known[name]["parameterType"]]):
                raise RefusalError(400, f"parameter {name} has the wrong type")

    def _get_run(self, run_id: str, **_: Any) -> Any:
        if run_id not in self.runs:
            raise RefusalError(404, f"Run {run_id} not found")
        look = self.looks[run_id] = self.looks.get(run_id, -1) + 1
        self.looked.set()
        shown = self.script[min(look, len(self.script) - 1)]
        state = self.runs[run_id].get("cancelled") or shown.state
        details = [
            {
                "run_id": run_id,
                "task_id": f"id-of-{name}",
                "display_name": name,
                "state": state_of_task,
                "start_time": BEGAN.isoformat(),
                "end_time": (BEGAN + timedelta(seconds=75)).isoformat(),
                "child_tasks": [{"pod_name": f"pod-of-{name.replace(' ', '-').lower()}"}],
                **({"error": {"code": 13, "message": shown.errors[name]}} if name in shown.errors else {}),
                "outputs": {
                    key: {"artifact_ids": [artifact]} for key, artifact in shown.outputs.get(name, {}).items()
                },
            }
            for name, state_of_task in shown.tasks.items()
        ]
        return {**self.runs[run_id], "state": state, "run_details": {"task_details": details}}

    def _terminate(self, run_id: str, **_: Any) -> Any:
        if run_id not in self.runs:
            raise RefusalError(404, f"Run {run_id} not found")
        self.runs[run_id]["cancelled"] = "CANCELED"
        return {}

    def _get_artifact(self, artifact_id: str, **_: Any) -> Any:
        if self.artifacts is None:
            raise RefusalError(404, "Not Found")
        if artifact_id not in self.artifacts:
            raise RefusalError(404, f"Artifact {artifact_id} not found")
        return self.artifacts[artifact_id]

    def _check_namespace(self, namespace: str) -> None:
        if not self.multi_user and namespace:
            raise RefusalError(400, "In single-user mode, a namespace must not be given")
        if self.multi_user and not namespace:
            raise RefusalError(400, "Namespace should not be empty")
        if self.multi_user and namespace not in self.namespaces:
            raise RefusalError(403, f"User 'me' is not authorized with reason: (namespace {namespace})")


def read(body: bytes, model: str) -> Any:
    """Return a body as a model of kfp's client; raise RefusalError for a field or a type that it does not have."""
    try:
        content = json.loads(body)
    except ValueError:
        raise RefusalError(400, "invalid JSON") from None
    _check(content, model, model)
    return kfp_server_api.ApiClient().deserialize(SimpleNamespace(data=body), model)


def _check(value: Any, kind: str, where: str) -> None:
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            raise RefusalError(400, f"{where} must be a list")
        for item in value:
            _check(item, match[1], where)
    elif match := re.fullmatch(r"dict\(([^,]*), (.*)\)", kind):
        if not isinstance(value, dict):
            raise RefusalError(400, f"{where} must be an object")
        for key, item in value.items():
            _check(item, match[2], f"{where}.{key}")
    elif kind in PRIMITIVES:
        if not isinstance(value, PRIMITIVES[kind]):  # type: ignore[arg-type]
            raise RefusalError(400, f"{where} must be {kind}")
    elif kind == "datetime":
        datetime.fromisoformat(value)
    else:
        model = getattr(kfp_server_api, kind)
        if not model.openapi_types:  # an enumeration
            if value not in model.allowable_values:
                raise RefusalError(400, f"{where}: unknown value {value}")
            return
        kinds = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
        for key, item in value.items():
            if key not in kinds:
                raise RefusalError(400, f"unknown field {where}.{key}")
            _check(item, kinds[key], f"{where}.{key}")


def _filtered(found: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    shown = list(found.values())
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        if set(predicate) != {"operation", "key", "stringValue"} or predicate["operation"] not in (
            "EQUALS",
            1,
        ):
            raise RefusalError(400, f"invalid filter: {predicate}")
        shown = [item for item in shown if item.get(predicate["key"]) == predicate["stringValue"]]
    return shown


def _package(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the pipeline spec of an uploaded file, read by KFP's own protobuf."""
    message = BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
    )
    parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    if set(parts) != {"uploadfile"} or not (parts["uploadfile"].get_filename() or "").endswith(".yaml"):
        raise RefusalError(400, "no YAML file")
    spec = next(yaml.load_all(parts["uploadfile"].get_payload(decode=True), yaml.CSafeLoader))
    json_format.ParseDict(spec, PipelineSpec())
    return spec


class _Handler(BaseHTTPRequestHandler):
    kfp: FakeKfp
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.kfp.requests.append((method, self.path))
        fault = next(iter(self.kfp.faults.get(parts.path) or self.kfp.faults.get("*") or []), None)
        if self.kfp.faults.get(parts.path):
            self.kfp.faults[parts.path].pop(0)
        if fault == "drop":
            self.close_connection = True
            return
        if fault is not None:
            self._send(*fault)
        elif answer := self.kfp.respond(method, parts.path, parts.query, body, self.headers):
            self._send(*answer)
        elif parts.path in self.kfp.files:
            self._send(200, "application/octet-stream", self.kfp.files[parts.path])
        elif self.kfp.token and self.headers.get("Authorization") != f"Bearer {self.kfp.token}":
            self._error(RefusalError(401, "Request header error: there is no valid user identity"))
        elif self.kfp.cookie and self.headers.get("Cookie") != self.kfp.cookie:
            self._send(302, "text/html", b"", {"Location": f"{self.kfp.url}/dex/auth?client_id=kubeflow"})
        else:
            try:
                answer = self.kfp.answer(
                    method,
                    parts.path,
                    dict(parse_qsl(parts.query)),
                    body,
                    self.headers.get("Content-Type", ""),
                )
                self._send(200, "application/json", json.dumps(answer).encode())
            except RefusalError as refusal:
                self._error(refusal)

    def _error(self, refusal: RefusalError) -> None:
        content = {"error": str(refusal), "code": 3, "message": str(refusal), "details": []}
        self._send(refusal.status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving(kfp: FakeKfp, *, certificate: Path | None = None) -> Iterator[FakeKfp]:
    """Serve on a free port of the loopback while the block runs; over TLS with a PEM of key and certificate."""
    handler = type("Handler", (_Handler,), {"kfp": kfp})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    kfp.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}"
    try:
        yield kfp
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
