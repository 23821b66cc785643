"""Checks objects against the schemas of Kubernetes' releases, offline: unknown fields, wrong types, missing fields.

The schemas are those of the package kubernetes-validate, generated from Kubernetes' OpenAPI documents; every field that
they do not name is an error. KServe's InferenceService, which they lack, is put together from the pod and container
schemas and the fields that KServe adds to them (its API reference, v1beta1).
"""

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from graftflow.errors import InputError
from manifests.documents import Document, title

# The oldest release whose fields the manifests keep to, and the newest that the package knows.
RELEASES = ("1.30", "1.37")

# Values of which the schemas say no more than that they are texts.
CHOICES = {
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "whenUnsatisfiable": ("DoNotSchedule", "ScheduleAnyway"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "protocol": ("TCP", "UDP", "SCTP"),
    "fsGroupChangePolicy": ("OnRootMismatch", "Always"),
    "policyTypes": ("Ingress", "Egress"),
    "accessModes": ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"),
    "unhealthyPodEvictionPolicy": ("IfHealthyBudget", "AlwaysAllow"),
}
# Mappings whose keys and values are the user's own.
_FREE = frozenset({"labels", "annotations", "matchLabels", "nodeSelector", "data"})

_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?")
_POD = "io.k8s.api.core.v1.PodSpec"
_CONTAINER = "io.k8s.api.core.v1.Container"
_KSERVE = ("serving.kserve.io/v1beta1", "InferenceService")
_TEXT, _COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}


def problems(document: Document, release: str) -> list[str]:
    """Return what Kubernetes of a release would refuse in an object, one line each; none where all is well.

    Args:
        document: an object with apiVersion, kind and metadata.name.
        release: of Kubernetes, such as ``"1.37"``.

    Raises:
        InputError: for a release of which there are no schemas.
    """
    validator = _validator(document["apiVersion"], document["kind"], release)
    if validator is None:
        return [
            f"{title(document)}: apiVersion and kind must be known to Kubernetes {release}. "
            f"Received: {document['apiVersion']} {document['kind']}"
        ]
    errors = sorted(validator.iter_errors(document), key=lambda error: [str(part) for part in error.path])
    by = "KServe" if document["kind"] == _KSERVE[1] else f"Kubernetes {release}"
    lines = [f"{title(document)}: {line}" for error in errors for line in _explained(error, by)]
    return [*lines, *(f"{title(document)}: {line}" for line in _values(document, ""))]


def _explained(error: Any, by: str) -> Iterator[str]:
    """Yield a schema's error as rule, received value and choices."""
    place = _place(error.absolute_path)
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        for name in sorted(set(error.instance) - set(known)):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f". Did you mean '{near[0]}'?" if near else ""
            yield f"{place} must hold fields known to {by}. Received: '{name}'{hint}"
    elif error.validator == "required":
        for name in sorted(set(error.validator_value) - set(error.instance)):
            yield f"{place} must have '{name}'. Received: {', '.join(error.instance) or 'nothing'}"
    elif error.validator == "type":
        kinds = error.validator_value
        wanted = kinds if isinstance(kinds, str) else " or ".join(kind for kind in kinds if kind != "null")
        yield f"{place} must be of type {wanted}. Received: {error.instance!r}"
    elif error.validator == "enum":
        yield f"{place} must be one of {', '.join(map(str, error.validator_value))}. Received: {error.instance!r}"
    else:
        yield f"{place} must fit its schema. Received: {error.message}"


def _place(path: Any) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "it"


def _values(node: Any, place: str) -> Iterator[str]:
    """Yield what is wrong with quantities, choices and ports: the schemas take any text, and any number, for one."""
    if isinstance(node, list):
        for index, element in enumerate(node):
            yield from _values(element, f"{place}[{index}]")
    elif isinstance(node, dict):
        for name, value in node.items():
            here = f"{place}.{name}".lstrip(".")
            if name in CHOICES:
                for given in value if isinstance(value, list) else [value]:
                    if given not in CHOICES[name]:
                        yield f"{here} must be one of {', '.join(CHOICES[name])}. Received: {given!r}"
            elif name in ("requests", "limits") and isinstance(value, dict):
                for resource, amount in value.items():
                    yield from _quantity(amount, f"{here}.{resource}")
            elif name == "sizeLimit":
                yield from _quantity(value, here)
            elif name in ("port", "containerPort", "targetPort") and isinstance(value, int):
                if not 1 <= value <= 65535:
                    yield f"{here} must be 1 to 65535. Received: {value}"
            elif name not in _FREE:
                yield from _values(value, here)


def _quantity(value: Any, place: str) -> Iterator[str]:
    if not _QUANTITY.fullmatch(str(value)):
        yield f"{place} must be a quantity such as 500m, 2 or 1Gi. Received: {value!r}"


@cache
def _schema(release: str, name: str) -> Any:
    try:
        root = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    except ModuleNotFoundError as error:
        raise _incomplete(error) from error
    folder = root / f"v{release}.0-local-strict"
    if not folder.is_dir():
        found = (re.match(r"v(\d+)\.(\d+)", entry.name) for entry in root.iterdir())
        known = sorted({(int(match[1]), int(match[2])) for match in found if match})
        choices = ", ".join(f"{major}.{minor}" for major, minor in known)
        raise InputError(f"A release of Kubernetes must be one of {choices}. Received: '{release}'")
    file = folder / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _incomplete(error: ImportError) -> InputError:
    return InputError(
        f"The tests' packages must be installed (make manifests does it). Received: no module {error.name}"
    )


@cache
def _validator(api_version: str, kind: str, release: str) -> Any:
    """Return what checks objects of a kind, or None where the release does not know the kind."""
    try:
        from jsonschema import Draft202012Validator
        from referencing import Registry, Resource
    except ImportError as error:
        raise _incomplete(error) from error

    definitions = _schema(release, "_definitions.json")
    if (api_version, kind) == _KSERVE:
        schema = _inference_service(definitions)
    else:
        group, _, version = api_version.rpartition("/")
        prefix = f"{group.partition('.')[0]}-" if group else ""
        schema = _schema(release, f"{kind.lower()}-{prefix}{version}.json")
    if schema is None:
        return None
    registry = Registry().with_resource(definitions["$id"], Resource.from_contents(definitions))
    return Draft202012Validator(schema, registry=registry)


def _inference_service(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of KServe's InferenceService with a predictor, as far as the manifests use it."""
    of_kubernetes = definitions["$defs"]

    def known(name: str) -> dict[str, str]:
        return {"$ref": f"#/$defs/{name}"}

    def strict(properties: dict[str, Any], *required: str) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(required),
            "additionalProperties": False,
        }

    model = {
        **of_kubernetes[_CONTAINER]["properties"],
        "modelFormat": strict({"name": _TEXT, "version": _TEXT}, "name"),
        "runtime": _TEXT,
        "runtimeVersion": _TEXT,
        "protocolVersion": {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]},
        "storageUri": {"type": "string", "pattern": r"^(pvc|gs|s3|https?|hf|oci|file)://.+"},
    }
    predictor = {
        **of_kubernetes[_POD]["properties"],
        "model": strict(model, "modelFormat", "storageUri"),
        "minReplicas": _COUNT,
        "maxReplicas": _COUNT,
        "scaleTarget": _COUNT,
        "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
        "containerConcurrency": _COUNT,
        "timeout": _COUNT,
        "canaryTrafficPercent": {"type": "integer", "minimum": 0, "maximum": 100},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "deploymentStrategy": known("io.k8s.api.apps.v1.DeploymentStrategy"),
    }
    whole = strict(
        {
            "apiVersion": {"enum": [_KSERVE[0]]},
            "kind": {"enum": [_KSERVE[1]]},
            "metadata": known("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
            "spec": strict({"predictor": strict(predictor, "model")}, "predictor"),
        },
        "apiVersion",
        "kind",
        "metadata",
        "spec",
    )
    # With the definitions in it, the references inside Kubernetes' own properties hold here too.
    return {"$defs": of_kubernetes, **whole}
