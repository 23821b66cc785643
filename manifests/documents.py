"""YAML documents as Kubernetes takes them: read, named, and put in the order in which they are applied."""

import re
from pathlib import Path
from typing import Any

import yaml

from graftflow.errors import InputError

Document = dict[str, Any]

# The order in which Kustomize writes kinds (its "legacy" order); what is not named comes after, by group and kind.
ORDER = (
    "Namespace",
    "ResourceQuota",
    "StorageClass",
    "CustomResourceDefinition",
    "ServiceAccount",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "ConfigMap",
    "Secret",
    "Endpoints",
    "Service",
    "LimitRange",
    "PriorityClass",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Deployment",
    "StatefulSet",
    "CronJob",
    "PodDisruptionBudget",
)
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse(text: str, source: str) -> list[Any]:
    """Return the YAML documents of a text, empty ones left out.

    Args:
        text: YAML.
        source: what it was read from, for messages.

    Raises:
        InputError: where it is no YAML, or a mapping holds a key twice.
    """
    try:
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{source} must be YAML. Received: {reason}") from error


def read(path: Path) -> list[Any]:
    """Return the YAML documents of a file; raises InputError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"A manifest must be a readable file. Received: '{path}' ({reason})") from error
    return parse(text, f"'{path}'")


def checked(document: Any, source: str) -> Document:
    """Return a document that has what each Kubernetes object has: apiVersion, kind and a name.

    Raises:
        InputError: where one of them is missing or of the wrong form.
    """
    if not isinstance(document, dict):
        raise InputError(f"{source} must hold mappings. Received: {document!r}")
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    for field, value in (
        ("apiVersion", document.get("apiVersion")),
        ("kind", document.get("kind")),
        ("metadata.name", name),
    ):
        if not isinstance(value, str) or not value:
            raise InputError(f"Each document of {source} must have {field}. Received: {value!r}")
    if not _NAME.fullmatch(str(name)) or len(str(name)) > 253:
        raise InputError(
            f"metadata.name in {source} must be lower-case letters, digits, '-' and '.'. Received: '{name}'"
        )
    return document


def title(document: Document) -> str:
    """Return ``"Kind name"``, as messages call a document."""
    return f"{document['kind']} {document['metadata']['name']}"


def ordered(documents: list[Document]) -> list[Document]:
    """Return documents in the order in which Kustomize writes them: what others need comes first."""

    def key(document: Document) -> tuple[int, str, str, str]:
        kind = document["kind"]
        rank = ORDER.index(kind) if kind in ORDER else len(ORDER)
        return rank, document["apiVersion"], kind, document["metadata"]["name"]

    return sorted(documents, key=key)


def dump(documents: list[Document]) -> str:
    """Return documents as one YAML text; the same documents give the same text."""
    return yaml.safe_dump_all(documents, sort_keys=True, allow_unicode=True, width=10_000)
