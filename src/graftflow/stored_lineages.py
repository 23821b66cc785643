"""A model's lineage wherever the model is: its own, what its store tells of it, and whether its bytes are still so.

Nothing is written. Importing this module loads no TensorFlow.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftflow import lineages, model_configs, release_histories
from graftflow.deployment import ENTRY, VERSION, local_store, store_errors, stored_digest, stored_files
from graftflow.errors import InputError

_EXPORT = "export.json"


@dataclass(frozen=True)
class StoredLineage:
    """A version of a model and where it comes from.

    Attributes:
        uri: of the version folder: an absolute path or an address.
        version: its number.
        model_name: of the model in its store, or ``""`` for an artifact.
        label: ``stable``, ``canary`` or ``""``.
        lineage: what ``lineage.json`` says; ``None`` where the version has none.
        released: when it was deployed, in ISO 8601, or ``""``.
        metrics: figures on the test pictures, ``{name: {"value", "low", "high"}}``, as its store noted them.
        sha256: of the version folder, computed now.
        recorded: the sha256 that was noted of it, or ``""``.
        recorded_in: the name of the file that notes it, or ``""``.
        warnings: what does not agree, a line each.
    """

    uri: str
    version: int
    model_name: str
    label: str
    lineage: dict[str, Any] | None
    released: str
    metrics: dict[str, Any]
    sha256: str
    recorded: str
    recorded_in: str
    warnings: list[str] = field(default_factory=list)

    @property
    def verified(self) -> bool | None:
        """Whether the bytes are those noted; ``None`` where nobody noted them."""
        return self.sha256 == self.recorded if self.recorded else None


@dataclass(frozen=True)
class _Noted:
    """What stands beside a version folder: in an artifact's ``export.json`` or in a store's files."""

    model_name: str = ""
    label: str = ""
    released: str = ""
    sha256: str = ""
    file: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)


class _Place:
    """A folder on this machine or in an object store, to be read.

    Args:
        address: a path, ``file://…``, ``gs://…`` or ``s3://…``.
    """

    def __init__(self, address: str) -> None:
        import fsspec

        local = local_store(address)
        self.is_local = local is not None
        address = str(local.absolute()) if local is not None else address.rstrip("/")
        self._scheme = "" if self.is_local else f"{address.partition('://')[0]}://"
        self.files, base = fsspec.core.url_to_fs(address)
        self.base = str(base).rstrip("/")

    def uri(self, path: str) -> str:
        """Return the address of a path of :attr:`files`."""
        return self._scheme + path.removeprefix("/") if self._scheme else path

    def read(self, path: str) -> str | None:
        """Return a file's text, or ``None`` where there is no such file."""
        try:
            return bytes(self.files.cat_file(path)).decode()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise InputError(f"{self.uri(path)} must be UTF-8. Received: {error.reason}") from error

    def versions(self, path: str) -> list[int]:
        """Return the numbers of a folder's whole versions, ascending."""
        try:
            names = [str(p).rstrip("/").rpartition("/")[2] for p in self.files.ls(path, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        numbers = [n for n in names if VERSION.fullmatch(n) and self.files.exists(f"{path}/{n}/{ENTRY}")]
        return sorted(map(int, numbers))


def find(model: str, *, store: str = "models", version: int | None = None) -> StoredLineage:
    """Return the lineage of a model, its store's figures beside it, its bytes checked.

    Args:
        model: a version folder, a ``saved_model`` artifact or a model's folder in a store, on this machine or in an
            object store; or a model's name in ``store``.
        store: where a name is looked for.
        version: of the model; ``None`` takes the artifact's only one, the stable one, or the newest.

    Raises:
        InputError: where there is no such model or version, its files are not in order, or the store refuses.
    """
    address = model if _is_address(model, store) else f"{store.rstrip('/')}/{model}"
    with store_errors(address, "Nothing was read."):
        place = _Place(address)
        place.files.invalidate_cache()
        folder = place.base
        if not place.files.exists(f"{folder}/{ENTRY}"):
            folder = f"{folder}/{_chosen(place, model, version)}"
        elif version is not None and folder.rpartition("/")[2] != str(version):
            raise InputError(
                f"version must be that of the folder. Received: {version}, and {place.uri(folder)}"
            )
        return _read(place, folder)


def _is_address(model: str, store: str) -> bool:
    """Whether ``model`` is a path or URI rather than the name of a model in the store."""
    if not model.strip():
        raise InputError("model must be a folder, an address or a name in the store. Received: ''")
    if "/" in model or model in (".", ".."):
        return True
    local = local_store(store)
    return local is not None and not (local / model).exists() and Path(model).exists()


def _chosen(place: _Place, model: str, version: int | None) -> int:
    """The version that is meant, of an artifact or a model's folder."""
    versions = place.versions(place.base)
    if not versions:
        raise InputError(
            "model must be a version's folder, a saved_model artifact, a model's folder in a store or a model's name "
            f"in it. Received: '{model}', and no <version>/{ENTRY} in {place.uri(place.base)}"
        )
    if version is None:
        labels = _noted_by_store(place, f"{place.base}/{versions[-1]}")[1]
        version = labels.get("stable", versions[-1])
    if version not in versions:
        raise InputError(
            f"version must be one of {', '.join(map(str, versions))}. Received: {version} of {place.uri(place.base)}"
        )
    return version


def _read(place: _Place, folder: str) -> StoredLineage:
    file = f"{folder}/{lineages.FILE}"
    text = place.read(file)
    lineage = None if text is None else lineages.parse_lineage(text, place.uri(file))
    name = folder.rpartition("/")[2]
    if VERSION.fullmatch(name):
        version = int(name)
    elif lineage is not None:
        version = int(lineage["version"])
    else:
        raise InputError(f"A version's folder must be named by its number. Received: {place.uri(folder)}")
    noted = _noted_by_export(place, folder, version) or _noted_by_store(place, folder)[0]
    found = StoredLineage(
        uri=place.uri(folder),
        version=version,
        model_name=noted.model_name,
        label=noted.label,
        lineage=lineage,
        released=noted.released,
        metrics=dict(noted.metrics),
        sha256=stored_digest(place.files, stored_files(place.files, folder)),
        recorded=noted.sha256,
        recorded_in=noted.file if noted.sha256 else "",
    )
    found.warnings.extend(_disagreements(found, noted))
    return found


def _noted_by_export(place: _Place, folder: str, version: int) -> _Noted | None:
    """What the ``saved_model`` artifact around the folder says, if it is one."""
    path = f"{folder.rpartition('/')[0]}/{_EXPORT}"
    text = place.read(path)
    if text is None:
        return None
    try:
        export = json.loads(text)
        if int(export["version"]) != version:
            return None
        return _Noted(sha256=str(export["sha256"]), file=_EXPORT, backbone=dict(export.get("backbone") or {}))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{place.uri(path)} must hold version and sha256, in JSON. Received: {type(error).__name__}: {error}"
        ) from error


def _noted_by_store(place: _Place, folder: str) -> tuple[_Noted, Mapping[str, int]]:
    """What the store around the folder says of the version, and the model's labels."""
    model, _, name = folder.rpartition("/")
    store, _, model_name = model.rpartition("/")
    path = f"{store}/{release_histories.FILE}"
    text = place.read(path)
    if text is None:
        return _Noted(), {}
    histories = release_histories.Histories(text, place.uri(path))
    path = f"{store}/{model_configs.FILE}"
    config = model_configs.read_config(place.read(path), place.uri(path))
    labels_now = model_configs.labels_of(config, model_name)
    events = release_histories.in_effect(histories.events(model_name), labels_now)
    labels = release_histories.replay(events).labels
    about = [event for event in events if str(event["version"]) == name]
    deployed = [event for event in about if event["action"] in ("deploy", "canary")]
    known: dict[str, Any] = {}
    for event in about:
        known |= {fact: event[fact] for fact in ("sha256", "metrics", "accuracy") if fact in event}
    metrics = known.get("metrics") or (
        {"accuracy": {"value": known["accuracy"]}} if "accuracy" in known else {}
    )
    noted = _Noted(
        model_name=model_name if events else "",
        label=next((label for label, number in labels.items() if str(number) == name), ""),
        released=str(deployed[0]["time"]) if deployed else "",
        sha256=str(known.get("sha256", "")),
        file=release_histories.FILE,
        metrics=metrics,
    )
    return noted, labels


def _disagreements(found: StoredLineage, noted: _Noted) -> list[str]:
    """What of a version contradicts what was noted of it, a line each."""
    told = []
    if found.verified is False:
        told.append(
            f"the version's files have the sha256 {found.sha256}, not {found.recorded}, which "
            f"{found.recorded_in} notes: they were changed or damaged"
        )
    lineage = found.lineage
    if lineage is None:
        return told
    if int(lineage["version"]) != found.version:
        told.append(f"the lineage is of version {lineage['version']}, the folder of version {found.version}")
    ours, theirs = lineage["backbone"].get("weights_sha256"), noted.backbone.get("weights_sha256")
    if theirs and ours != theirs:
        told.append(f"the lineage tells of backbone weights {ours}, {noted.file} of {theirs}")
    return told


def as_json(found: StoredLineage) -> dict[str, Any]:
    """Return a stored lineage as plain JSON: the store's facts, then ``lineage``, with ``test`` in it where known."""
    lineage = found.lineage
    if lineage is not None and found.metrics:
        lineage = lineages.with_test_figures(lineage, found.metrics)
    return {
        "uri": found.uri,
        "model_name": found.model_name,
        "version": found.version,
        "label": found.label,
        "released": found.released,
        "sha256": found.sha256,
        "recorded_sha256": found.recorded,
        "recorded_in": found.recorded_in,
        "verified": found.verified,
        "warnings": found.warnings,
        "metrics": found.metrics,
        "lineage": lineage,
    }
