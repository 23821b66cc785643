"""Renders kustomizations: the part of Kustomize that the manifests use, for machines without kubectl.

A kustomization here may hold `resources`, `components`, `configMapGenerator` (files, literals), `patches`
(strategic merge), `namespace`, `labels`, `replicas` and `images`. Anything else is refused by name.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftflow.errors import InputError, unknown_name
from manifests.documents import Document, checked, ordered, parse, read, title
from manifests.merging import merge

FIELDS = {
    "apiVersion": str,
    "kind": str,
    "resources": list,
    "components": list,
    "configMapGenerator": list,
    "patches": list,
    "namespace": str,
    "labels": list,
    "replicas": list,
    "images": list,
}
KINDS = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}
FILE = "kustomization.yaml"
_WITH_TEMPLATE = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")


@dataclass
class _Objects:
    """What a kustomization has gathered: objects, and which of them were generated (their names end in a hash)."""

    documents: list[Document] = field(default_factory=list)
    generated: set[str] = field(default_factory=set)

    def find(self, like: Document) -> int | None:
        """Return where the object of this group, kind and name stands."""
        for index, document in enumerate(self.documents):
            if _identity(document) == _identity(like):
                return index
        return None

    def add(self, document: Document, source: str) -> None:
        if self.find(document) is not None:
            raise InputError(f"{source} must not name an object twice. Received: {title(document)}")
        self.documents.append(document)


def render(folder: Path) -> list[Document]:
    """Return the objects of a kustomization, as `kustomize build` would write them.

    Args:
        folder: the folder of a ``kustomization.yaml``.

    Raises:
        InputError: for a field outside the supported part, a missing file, or a patch of an object that is not there.
    """
    objects = _Objects()
    _gather(folder, objects, "Kustomization")
    renamed = {}
    for document in objects.documents:
        if title(document) in objects.generated:
            name = document["metadata"]["name"]
            renamed[name] = document["metadata"]["name"] = f"{name}-{_hash(document)}"
    if renamed:
        for document in objects.documents:
            if document["kind"] in _WITH_TEMPLATE:
                _rename_config_maps(document["spec"], renamed)
    return ordered(objects.documents)


def _gather(folder: Path, objects: _Objects, kind: str) -> None:
    """Add a kustomization's own objects, then change all that are there; a component changes its user's too."""
    content = _read_kustomization(folder, kind)
    here = f"'{folder / FILE}'"
    mine = objects if kind == "Component" else _Objects()
    for entry in content.get("resources", []):
        path = folder / str(entry)
        if path.is_dir():
            _gather(path, mine, "Kustomization")
        elif not path.exists():
            raise InputError(
                f"A resource in {here} must be a file or folder that exists. Received: '{entry}'"
            )
        else:
            for document in read(_inside(path, folder)):
                mine.add(checked(document, f"'{path}'"), here)
    for entry in content.get("components", []):
        _gather(folder / str(entry), mine, "Component")
    for generator in content.get("configMapGenerator", []):
        _generate(generator, folder, mine)
    for patch in content.get("patches", []):
        _patch(patch, folder, mine)
    for document in mine.documents:
        _transform(document, content)
    if mine is not objects:
        for document in mine.documents:
            objects.add(document, here)
        objects.generated |= mine.generated


def _read_kustomization(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"A kustomization must be a folder with a {FILE}. Received: '{folder}'")
    found = read(path)
    content = found[0] if len(found) == 1 else None
    if not isinstance(content, dict):
        raise InputError(f"'{path}' must hold one mapping. Received: {content!r}")
    for name, value in content.items():
        if name not in FIELDS:
            raise unknown_name(f"A field of '{path}'", str(name), FIELDS)
        if not isinstance(value, FIELDS[name]):
            raise InputError(f"{name} in '{path}' must be a {FIELDS[name].__name__}. Received: {value!r}")
    stated = (content.get("kind"), content.get("apiVersion"))
    if stated != (kind, KINDS[kind]):
        raise InputError(f"'{path}' must be a {kind} of {KINDS[kind]}. Received: {stated[0]} of {stated[1]}")
    return content


def _inside(path: Path, folder: Path) -> Path:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"A file of a kustomization must lie in its folder '{folder}'. Received: '{path}'")
    return path


def _only(entry: Any, allowed: set[str], what: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise InputError(f"{what} must be a mapping. Received: {entry!r}")
    for name in entry:
        if name not in allowed:
            raise unknown_name(f"A field of {what}", str(name), allowed)
    return entry


def _generate(entry: Any, folder: Path, objects: _Objects) -> None:
    allowed = {"name", "behavior", "files", "literals"}
    generator = _only(entry, allowed, f"a configMapGenerator in '{folder}'")
    data = {}
    for file in generator.get("files", []):
        key, _, name = str(file).rpartition("=")
        path = _inside(folder / name, folder)
        try:
            data[key or path.name] = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"A file of a ConfigMap must exist. Received: '{path}' ({error.strerror})"
            ) from error
    for literal in generator.get("literals", []):
        key, _, data[key] = str(literal).partition("=")
    name, behavior = str(generator.get("name")), generator.get("behavior", "create")
    made: Document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
    if behavior not in ("create", "merge", "replace"):
        raise InputError(
            f"behavior of ConfigMap {name} must be create, merge or replace. Received: '{behavior}'"
        )
    if behavior == "create":
        objects.add(checked(made, f"'{folder / FILE}'"), f"'{folder / FILE}'")
        objects.generated.add(title(made))
        return
    index = objects.find(made)
    if index is None:
        raise InputError(
            f"A ConfigMap with behavior: {behavior} must exist. Received: '{name}' in '{folder}'"
        )
    before = objects.documents[index]
    before["data"] = {**before["data"], **data} if behavior == "merge" else data


def _patch(entry: Any, folder: Path, objects: _Objects) -> None:
    allowed = {"path", "patch"}
    given = _only(entry, allowed, f"a patch in '{folder}' (its object is named inside it)")
    if len(given) != 1:
        raise InputError(f"A patch must have path or patch. Received: {given!r} in '{folder}'")
    source = f"'{folder / str(given.get('path', FILE))}'"
    inline = given.get("patch")
    found = parse(inline, source) if inline else read(_inside(folder / str(given["path"]), folder))
    for item in found:
        patch = dict(checked(item, source))
        index = objects.find(patch)
        if index is None:
            there = ", ".join(title(document) for document in objects.documents)
            raise InputError(f"A patch must change one of {there}. Received: {title(patch)} in {source}")
        if patch.get("$patch") == "delete":
            del objects.documents[index]
            continue
        typed = "." not in patch["apiVersion"].partition("/")[0] or ".k8s.io/" in patch["apiVersion"]
        objects.documents[index] = merge(objects.documents[index], patch, typed=typed)


def _transform(document: Document, content: dict[str, Any]) -> None:
    """Apply namespace, labels, replicas and images to one object."""
    if "namespace" in content:
        document["metadata"]["namespace"] = content["namespace"]
    for entry in content.get("labels", []):
        labels = _only(entry, {"pairs", "includeTemplates"}, "labels")
        _label(document["metadata"], labels["pairs"])
        if labels.get("includeTemplates") and document["kind"] in _WITH_TEMPLATE:
            _label(document["spec"]["template"].setdefault("metadata", {}), labels["pairs"])
    for entry in content.get("replicas", []):
        replicas = _only(entry, {"name", "count"}, "replicas")
        if document["kind"] in _WITH_TEMPLATE and document["metadata"]["name"] == replicas["name"]:
            document["spec"]["replicas"] = replicas["count"]
    for entry in content.get("images", []):
        _set_image(document, _only(entry, {"name", "newName", "newTag", "digest"}, "images"))


def _label(metadata: dict[str, Any], pairs: dict[str, str]) -> None:
    metadata["labels"] = {**metadata.get("labels", {}), **pairs}


def _set_image(node: Any, image: dict[str, Any]) -> None:
    if isinstance(node, list):
        for element in node:
            _set_image(element, image)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in ("containers", "initContainers") and isinstance(value, list):
                for container in value:
                    _rename_image(container, image)
            else:
                _set_image(value, image)


def _rename_image(container: dict[str, Any], image: dict[str, Any]) -> None:
    name, _, _ = str(container.get("image", "")).partition("@")
    base, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        base, tag = name, ""
    if base != image["name"]:
        return
    after = image.get("newName", base)
    if "digest" in image:
        container["image"] = f"{after}@{image['digest']}"
    else:
        tag = image.get("newTag", tag)
        container["image"] = f"{after}:{tag}" if tag else after


def _rename_config_maps(node: Any, renamed: dict[str, str]) -> None:
    """Point references to generated ConfigMaps at their names with the hash."""
    if isinstance(node, list):
        for element in node:
            _rename_config_maps(element, renamed)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in ("configMap", "configMapRef", "configMapKeyRef") and isinstance(value, dict):
                value["name"] = renamed.get(value.get("name", ""), value.get("name"))
            else:
                _rename_config_maps(value, renamed)


def _identity(document: Document) -> tuple[str, str, str]:
    group = document["apiVersion"].rpartition("/")[0]
    return group, document["kind"], document["metadata"]["name"]


def _hash(config_map: Document) -> str:
    """Return Kustomize's ten characters for a ConfigMap: SHA-256 of its JSON, some digits and letters replaced."""
    # Kustomize looks for a field called "metadata/name", finds none, and so hashes an empty name.
    content = {"kind": config_map["kind"], "name": "", "data": config_map["data"]}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":  # as Go's encoder writes them
        text = text.replace(character, f"\\u{ord(character):04x}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return digest.translate(str.maketrans("013ae", "ghkmt"))
