"""A version and its lineage in Kubeflow's Model Registry, over its REST API. Importing this module loads no TensorFlow.

Paths and fields as in the clients generated from the registry's OpenAPI document: PyPI's ``model-registry`` speaks
``v1alpha3`` up to 0.3.10 and ``v1`` in 0.3.18; what is sent is the same.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import requests

from graftflow import lineages
from graftflow.addresses import shown
from graftflow.errors import InputError
from graftflow.stored_lineages import StoredLineage

_PATH = "/api/model_registry"
APIS = ("v1alpha3", "v1")
_SECONDS = 30.0
# As Kubeflow's own clients look for it: the file of a token that a pod is given.
_TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105  # nosec B105 # a variable's name


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: of the registered model.
        version_id: the registry's own id of the version.
        artifact_id: its id of the version's artifact.
        status: ``registered``, ``updated`` or ``already there``.
    """

    name: str
    version_id: str
    artifact_id: str
    status: Literal["registered", "updated", "already there"]


def read_token(file: str = "") -> str:
    """Return the bearer token of a file, of ``GRAFTFLOW_REGISTRY_TOKEN`` or, in a pod, of its own file; or ``""``.

    Raises:
        InputError: where the file cannot be read or is empty.
    """
    if not file and (token := os.environ.get("GRAFTFLOW_REGISTRY_TOKEN", "").strip()):
        return token
    file = file or os.environ.get(_TOKEN_PATH, "")
    if not file:
        return ""
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The token's file must be readable. Received: '{file}' ({type(error).__name__})"
        ) from error
    if not token or not token.isprintable() or " " in token:
        raise InputError(f"The token's file must hold one token. Received: '{file}', which does not")
    return token


def properties_of(found: StoredLineage) -> dict[str, dict[str, Any]]:
    """Return a version's lineage as the registry's ``customProperties``: texts, and figures as doubles."""
    texts: dict[str, Any] = {"sha256": found.sha256}
    figures = {f"test_{name}": figure["value"] for name, figure in found.metrics.items()}
    lineage = found.lineage
    if lineage is not None:
        dataset, backbone = lineage["dataset"], lineage["backbone"]
        texts |= lineages.metadata_of(lineage)
        texts |= {"dataset_source": dataset.get("source"), "seed": dataset.get("seed")}
        texts |= {"backbone": backbone.get("name"), "backbone_weights": backbone.get("weights")}
        texts |= {f"parameters.{name}": value for name, value in lineages.flat(lineage["parameters"])}
        texts |= {f"packages.{name}": value for name, value in lineage.get("packages", {}).items()}
        figures |= {f"validation_{name}": value for name, value in lineage["validation"].items()}
    return {
        name: {"metadataType": "MetadataStringValue", "string_value": str(value)}
        for name, value in texts.items()
        if value not in (None, "")
    } | {
        name: {"metadataType": "MetadataDoubleValue", "double_value": float(value)}
        for name, value in figures.items()
    }


class ModelRegistry:
    """Kubeflow's Model Registry.

    Args:
        url: its address, such as ``http://model-registry-service.kubeflow:8080``.
        token: sent as a bearer token, where one is given.

    Raises:
        InputError: for an address that is none.
    """

    def __init__(self, url: str, *, token: str = "") -> None:
        if not url.startswith(("http://", "https://")) or len(url.partition("://")[2].strip("/")) == 0:
            raise InputError(f"registry must be http(s)://host[:port]. Received: '{url}'")
        self.url = url.rstrip("/")
        self._session = requests.Session()
        # A proxy for the world, or credentials of a .netrc, are not for this server.
        self._session.trust_env = False
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        self._api = ""

    def register(self, found: StoredLineage, *, name: str = "", uri: str = "") -> Registered:
        """Write a registered model, its version and the version's artifact, as far as they are not there.

        Called again it changes nothing, or only properties that differ: figures come after the export.

        Args:
            found: the version; its number is the name in the registry.
            name: of the registered model; ``""`` takes the model's name in its store.
            uri: where servers find the version; ``""`` takes the address it was read from.

        Raises:
            InputError: where the version's files do not agree with what was noted of them, the registry has another
                content under this number, or it cannot be reached or refuses.
        """
        name = name or found.model_name
        if not name:
            raise InputError("name must be given for a version that is in no store. Received: ''")
        if found.warnings:
            raise InputError(
                f"Only a version as it was exported can be registered. Received: {found.warnings[0]}"
            )
        uri = uri or (f"file://{found.uri}" if found.uri.startswith("/") else found.uri)
        properties = properties_of(found)
        model = self._find("registered_model", name=name)
        if model is None:
            model = self._create("registered_models", {"name": name})
        number = str(found.version)
        version = self._find("model_version", name=number, parentResourceId=model["id"])
        if version is not None:
            _check_same(version, found, name)
        told = {"customProperties": properties}
        states = []
        if version is None:
            version = self._create(
                "model_versions", {"name": number, "registeredModelId": model["id"], **told}
            )
            states.append("registered")
        else:
            states.append(self._update(f"model_versions/{version['id']}", version, told))
        artifact = self._find("model_artifact", name=f"{name}-{number}", parentResourceId=version["id"])
        about: dict[str, Any] = {
            "uri": uri,
            "modelFormatName": "saved_model",
            "customProperties": {"sha256": properties["sha256"]},
        }
        if artifact is None:
            body = {"artifactType": "model-artifact", "name": f"{name}-{number}", **about, **_source(found)}
            artifact = self._create(f"model_versions/{version['id']}/artifacts", body)
            states.append("registered")
        else:
            body = {"artifactType": "model-artifact", **about}
            states.append(self._update(f"model_artifacts/{artifact['id']}", artifact, body))
        status: Any = next((s for s in ("registered", "updated") if s in states), "already there")
        return Registered(name, str(version["id"]), str(artifact["id"]), status)

    def _find(self, resource: str, **parameters: str) -> dict[str, Any] | None:
        answer = self._request("GET", resource, parameters=parameters, missing=True)
        return None if answer is None else _with_id(answer, resource)

    def _create(self, resource: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return _with_id(self._request("POST", resource, body=body) or {}, resource)

    def _update(self, resource: str, there: Mapping[str, Any], body: Mapping[str, Any]) -> str:
        """Change what differs; what others noted beside our properties stays."""
        properties = {**(there.get("customProperties") or {}), **body["customProperties"]}
        wanted = {**body, "customProperties": properties}
        if all(there.get(field) == value for field, value in wanted.items()):
            return "already there"
        self._request("PATCH", resource, body=wanted)
        return "updated"

    def _request(
        self,
        method: str,
        resource: str,
        *,
        parameters: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        missing: bool = False,
    ) -> dict[str, Any] | None:
        """Return the JSON of an answer; ``None`` for a 404 where something may be missing."""
        if not self._api:
            self._api = self._find_api()
        response = self._send(method, f"{_PATH}/{self._api}/{resource}", parameters, body)
        if missing and response.status_code == 404:
            return None
        return self._content(response)

    def _find_api(self) -> str:
        """The API's version that the registry speaks: a missing resource and a missing path are both 404."""
        for api in APIS:
            response = self._send("GET", f"{_PATH}/{api}/registered_models", {"pageSize": "1"}, None)
            if response.status_code != 404:
                self._content(response)
                return api
        raise InputError(
            f"registry must be a Kubeflow Model Registry that speaks {' or '.join(APIS)}. Received: "
            f"{shown(self.url)}, which answers 404 below {_PATH}"
        )

    def _send(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: Mapping[str, Any] | None
    ) -> requests.Response:
        try:
            # A redirection leads to a page to log in on, and would be followed without the token.
            return self._session.request(
                method, self.url + path, params=parameters, json=body, timeout=_SECONDS, allow_redirects=False
            )
        except requests.RequestException as error:
            raise InputError(
                f"The Model Registry must be reachable. Received: {type(error).__name__} from {shown(self.url)}"
            ) from error

    def _content(self, response: requests.Response) -> dict[str, Any]:
        where, code = shown(self.url), response.status_code
        if code in (401, 403) or 300 <= code < 400:
            raise InputError(
                f"The Model Registry must let this user in. Received: {code} from {where}: give a token by "
                "--token-file or GRAFTFLOW_REGISTRY_TOKEN"
            )
        try:
            content = response.json()
        except ValueError as error:
            kind = response.headers.get("content-type", "no content type")
            raise InputError(
                f"The Model Registry must answer with JSON. Received: {code} and {kind} from {where}"
            ) from error
        if not isinstance(content, dict):
            raise InputError(f"The Model Registry must answer with an object. Received: {code} from {where}")
        if code >= 400:
            said = " ".join(str(content.get("message", "")).split())[:300]
            raise InputError(
                f"The Model Registry must take what it is sent. Received: {code} from {where}: {said or 'no reason'}"
            )
        return content


def _source(found: StoredLineage) -> dict[str, str]:
    """The run, in the registry's words for where a model comes from."""
    run_id = str((found.lineage or {}).get("run_id", ""))
    if not run_id:
        return {}
    return {"modelSourceKind": "pipelines", "modelSourceClass": "pipelinerun", "modelSourceId": run_id}


def _with_id(answer: dict[str, Any], resource: str) -> dict[str, Any]:
    if not answer.get("id"):
        raise InputError(f"The Model Registry must answer with an id. Received: none, of {resource}")
    return answer


def _check_same(version: Mapping[str, Any], found: StoredLineage, name: str) -> None:
    """Refuse a version whose number has another content in the registry."""
    noted = (version.get("customProperties") or {}).get("sha256", {}).get("string_value", found.sha256)
    if noted != found.sha256:
        raise InputError(
            f"A registered version is never overwritten. Received: version {found.version} of '{name}', which the "
            f"registry has with the sha256 {noted}, not {found.sha256}. Export the model under a higher version"
        )
