"""Strategic merge: what a patch does to a Kubernetes object, list by list.

Source: Kubernetes' API conventions (patchStrategy and patchMergeKey of its types), as Kustomize carries them out.
"""

import copy
from typing import Any

from graftflow.errors import InputError

# Lists whose elements are told apart by a key; a patch's element changes the one with the same key.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
}
# Lists of mappings that a patch replaces as a whole.
REPLACED = frozenset(
    {"tolerations", "metrics", "policies", "ingress", "egress", "items", "matchExpressions", "sources"}
)


def merge(base: Any, patch: Any, *, typed: bool, field: str = "") -> Any:
    """Return ``base`` as a strategic merge patch changes it; neither argument is changed.

    Args:
        base: the value as it is.
        patch: the value in the patch: mappings are merged, ``null`` removes a key, ``$patch: delete`` an element.
        typed: whether Kubernetes itself knows the type. A custom resource's lists are replaced as a whole.
        field: the name of the field, for lists.

    Raises:
        InputError: for a list of which the merge key is not known here.
    """
    if isinstance(base, dict) and isinstance(patch, dict):
        return _merge_mappings(base, patch, typed=typed)
    if isinstance(patch, dict):
        return _merge_mappings({}, patch, typed=typed)
    if typed and isinstance(patch, list) and patch and all(isinstance(e, dict) for e in patch):
        if field in REPLACED:
            return copy.deepcopy(patch)
        if field not in MERGE_KEYS:
            known = ", ".join(sorted({*MERGE_KEYS, *REPLACED}))
            raise InputError(f"A patch may change these lists of mappings: {known}. Received: '{field}'")
        return _merge_lists(base or [], patch, key=MERGE_KEYS[field], field=field)
    return copy.deepcopy(patch)


def _merge_mappings(base: dict[str, Any], patch: dict[str, Any], *, typed: bool) -> dict[str, Any]:
    if "$patch" in patch:
        raise InputError(
            f"'$patch' is supported as 'delete' on elements of lists and whole objects. Received: {patch!r}"
        )
    merged = copy.deepcopy(base)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(base.get(name), value, typed=typed, field=name)
    return merged


def _merge_lists(base: list[Any], patch: list[Any], *, key: str, field: str) -> list[Any]:
    """Elements of the patch come first, in its order; those it does not name follow."""
    by_key = {element.get(key): element for element in base}
    merged, named = [], set()
    for element in patch:
        if key not in element:
            raise InputError(f"An element of '{field}' in a patch must have '{key}'. Received: {element!r}")
        named.add(element[key])
        if element.get("$patch") == "delete":
            continue
        merged.append(_merge_mappings(by_key.get(element[key], {}), element, typed=True))
    return [*merged, *(copy.deepcopy(element) for element in base if element.get(key) not in named)]
