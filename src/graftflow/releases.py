"""Labels of a model store: which version is ``stable``, which is the ``canary``, and how to go back.

A server that follows ``models.config`` keeps the version before the stable one loaded, so that a rollback is instant
and a label is never without its version. Importing this module loads no TensorFlow.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graftflow import model_configs, release_histories
from graftflow.deployment import check_model_name
from graftflow.errors import InputError, unknown_name
from graftflow.model_configs import LABELS
from graftflow.release_histories import Event, Histories, Standing, event
from graftflow.store_files import StoreFiles

_TRIES = 5


@dataclass(frozen=True)
class Release:
    """How a label moved.

    Attributes:
        action: ``deploy``, ``canary``, ``promote``, ``rollback`` or ``withdraw``.
        version: that got the label, or lost it (withdraw).
        replaced: the version that had the label before, or ``None``.
        standing: how the model stands now.
        changed: whether this call moved it; otherwise it was there.
    """

    action: str
    version: int
    replaced: int | None
    standing: Standing
    changed: bool


@dataclass(frozen=True)
class Row:
    """A version, as a table tells it.

    Attributes:
        version: its number.
        label: ``stable``, ``canary`` or ``""``.
        since: when it got its label, or lost its last one; ISO 8601 in UTC, or ``""``.
        accuracy: on the test pictures, or ``None`` where nobody noted it.
        note: what else there is to know, or ``""``.
    """

    version: int
    label: str
    since: str
    accuracy: float | None
    note: str


class _Open:
    """A model of a store as it stands in its files."""

    def __init__(self, store: StoreFiles, model_name: str) -> None:
        self.store, self.model_name = store, model_name
        place = store.place(model_configs.FILE)
        self.config = model_configs.read_config(store.read(model_configs.FILE), place)
        self.histories = Histories(store.read(release_histories.FILE), store.place(release_histories.FILE))
        entry = model_configs.find_entry(self.config, model_name)
        if entry is not None and not store.is_base_path(entry.base_path, model_name):
            raise InputError(
                f"base_path of '{model_name}' in {place} must be {store.base_path(model_name)}, where its versions "
                f"are. Received: '{entry.base_path}'. Use the store by that path, or change the line"
            )
        labels = model_configs.labels_of(self.config, model_name)
        self.events = release_histories.in_effect(self.histories.events(model_name), labels)
        self.versions = store.versions(model_name)

    @property
    def standing(self) -> Standing:
        return release_histories.replay(self.events)

    def adopt(self, *, but: int | None) -> None:
        """Note as stable what servers of the newest version serve, where nothing has a label yet."""
        others = [v for v in self.versions if v != but]
        if not self.events and others:
            self.events.append(event("found", others[-1], replaced=None, labels={"stable": others[-1]}))

    def write(self) -> None:
        """Write the history, then what is served: the change takes effect with the second."""
        standing = self.standing
        text = self.histories.with_events(self.model_name, self.events)
        if text != self.store.read(release_histories.FILE):
            self.store.write(release_histories.FILE, text)
        config = model_configs.with_model(
            self.config,
            self.model_name,
            base_path=self.store.base_path(self.model_name),
            labels=standing.labels,
            versions=standing.loaded() & set(self.versions),
        )
        if config != self.store.read(model_configs.FILE):
            self.store.write(model_configs.FILE, config)


def check_label(label: str) -> None:
    """Raise InputError unless ``label`` is ``stable`` or ``canary``."""
    if label not in LABELS:
        raise unknown_name("label", label, LABELS)


def check_release(*, store: str, model_name: str, version: int, label: str) -> None:
    """Check, without changing anything, that :func:`release` could give a version its label.

    Raises:
        InputError: as :func:`release`, but for a version that is not there yet.
    """
    _check_wanted(_open(store, model_name), version, label)


def release(
    *,
    store: str,
    model_name: str,
    version: int,
    label: str = "stable",
    facts: Mapping[str, Any] | None = None,
) -> Release:
    """Give a version of a store a label.

    Args:
        store: a local folder or mounted volume, or an fsspec URI.
        model_name: the model's folder in the store.
        version: that is there.
        label: ``stable``: it is served from now on, and the stable version before stays loaded; ``canary``: it is
            loaded beside the stable one.
        facts: remembered with it, e.g. ``{"accuracy": 0.98}``.

    Raises:
        InputError: where the version is not there, was rolled back, or is stable and shall be the canary; where the
            store's files are not in order; where the store refuses.
    """

    def change(model: _Open) -> Event | None:
        model.adopt(but=version)
        standing = model.standing
        _check_wanted(model, version, label)
        if standing.labels.get(label) == version:
            return None
        labels = {**standing.labels, label: version}
        if label == "stable" and standing.canary == version:
            del labels["canary"]
        _check_there(model, version, sha256=str((facts or {}).get("sha256", "")))
        action = "deploy" if label == "stable" else "canary"
        return event(action, version, replaced=standing.labels.get(label), labels=labels, facts=facts)

    return _change(store, model_name, change, Release("deploy", version, None, Standing({}), False))


def promote(*, store: str, model_name: str, version: int | None = None) -> Release:
    """Make the canary stable, or another version that is in the store.

    Args:
        store: a local folder or mounted volume, or an fsspec URI.
        model_name: the model's folder in the store.
        version: ``None`` for the canary.

    Raises:
        InputError: where there is no canary, the version is not there or damaged, or the store's files are not in
            order.
    """

    def change(model: _Open) -> Event | None:
        model.adopt(but=version)
        standing = model.standing
        wanted = standing.canary if version is None else version
        if wanted is None:
            raise InputError(
                f"promote needs a canary of '{model_name}'. Received: none in {model.store.uri}. Deploy one with the "
                f"label canary, or name one of the versions {_listed(model.versions)}"
            )
        if wanted == standing.stable:
            return None
        _check_there(model, wanted)
        labels = {label: v for label, v in standing.labels.items() if v != wanted}
        return event("promote", wanted, replaced=standing.stable, labels={**labels, "stable": wanted})

    return _change(store, model_name, change, Release("promote", version or 0, None, Standing({}), False))


def rollback(*, store: str, model_name: str) -> Release:
    """Make the stable version before stable again; the one that is stable now is no longer served.

    Called again, it goes to the one before.

    Args:
        store: a local folder or mounted volume, or an fsspec URI.
        model_name: the model's folder in the store.

    Raises:
        InputError: where none was stable before, its folder is gone or damaged, or the store's files are not in order.
    """

    def change(model: _Open) -> Event | None:
        model.adopt(but=None)
        standing = model.standing
        target = standing.previous
        if target is None:
            now = (
                f"version {standing.stable} is the first" if standing.stable is not None else "none is stable"
            )
            raise InputError(
                f"rollback needs a version of '{model_name}' that was stable before. Received: {now} in "
                f"{model.store.uri}. Versions there: {_listed(model.versions)}"
            )
        _check_there(model, target)
        labels = {label: v for label, v in standing.labels.items() if v != target}
        return event("rollback", target, replaced=standing.stable, labels={**labels, "stable": target})

    return _change(store, model_name, change, Release("rollback", 0, None, Standing({}), False))


def withdraw(*, store: str, model_name: str) -> Release:
    """Take the label of the canary away: it is no longer served.

    Args:
        store: a local folder or mounted volume, or an fsspec URI.
        model_name: the model's folder in the store.

    Raises:
        InputError: where there is no canary, no stable version beside it, or the store's files are not in order.
    """

    def change(model: _Open) -> Event | None:
        standing = model.standing
        if standing.canary is None or standing.stable is None:
            lacks = "canary" if standing.canary is None else "stable version beside the canary"
            raise InputError(
                f"withdraw needs a canary and a stable version. Received: no {lacks} of '{model_name}'"
            )
        return event("withdraw", standing.canary, replaced=None, labels={"stable": standing.stable})

    return _change(store, model_name, change, Release("withdraw", 0, None, Standing({}), False))


def list_versions(*, store: str, model_name: str) -> list[Row]:
    """Return a model's versions, newest first: those in the store, and those that its history tells of.

    Raises:
        InputError: where there are none, or the store's files are not in order.
    """
    model = _open(store, model_name)
    known = {e["version"] for e in model.events}
    if not known and not model.versions:
        raise InputError(
            f"model_name must be a model of the store {model.store.uri}. Received: '{model_name}'"
        )
    return [_row(model, version) for version in sorted({*known, *model.versions}, reverse=True)]


def _row(model: _Open, version: int) -> Row:
    standing = model.standing
    about = [e for e in model.events if version in (e["version"], e["replaced"])]
    accuracies = [e["accuracy"] for e in about if e["version"] == version and "accuracy" in e]
    label = next((name for name, number in standing.labels.items() if number == version), "")
    notes = []
    if version in standing.rolled_back:
        notes.append("rolled back")
    if version == standing.previous:
        notes.append("loaded for a rollback")
    if version not in model.versions:
        notes.append("not in the store")
    return Row(
        version,
        label,
        about[-1]["time"] if about else "",
        accuracies[-1] if accuracies else None,
        ", ".join(notes),
    )


def _open(store: str, model_name: str) -> _Open:
    check_model_name(model_name)
    return _Open(StoreFiles(store), model_name)


def _change(
    store: str, model_name: str, change: Callable[[_Open], Event | None], unchanged: Release
) -> Release:
    """Add the event that ``change`` returns, under the store's lock; without one, only put the files right."""
    check_model_name(model_name)
    files = StoreFiles(store)
    for _ in range(_TRIES):
        with files.locked(model_configs.FILE):
            model = _Open(files, model_name)
            added = change(model)
            if added is not None:
                model.events.append(added)
            model.write()
        standing = model.standing
        if added is None:
            version = unchanged.version or standing.stable or 0
            return Release(unchanged.action, version, None, standing, False)
        # An object store has no locks: another process may have written over it what it had read before.
        if files.has_locks or added in _Open(files, model_name).events:
            return Release(added["action"], added["version"], added["replaced"], standing, True)
    raise InputError(
        f"One process at a time must change labels in {files.uri}. Received: the changes of others, {_TRIES} times"
    )


def _check_wanted(model: _Open, version: int, label: str) -> None:
    check_label(label)
    standing = model.standing
    if label == "canary" and standing.stable == version:
        raise InputError(
            f"A canary must be another version than the stable one. Received: version {version} of "
            f"'{model.model_name}', which is stable"
        )
    if label == "stable" and version in standing.rolled_back:
        raise InputError(
            f"A version that was rolled back must not become stable by a deployment. Received: version {version} of "
            f"'{model.model_name}'. Export the model under a higher version, or promote this one by its number"
        )


def _check_there(model: _Open, version: int, *, sha256: str = "") -> None:
    """Check that a version is in the store, and that its bytes are those of ``sha256`` or, without it, as noted."""
    if version not in model.versions:
        raise InputError(
            f"A version must be whole and in the store to get a label. Received: version {version} of "
            f"'{model.model_name}', which {model.store.base_path(model.model_name)} lacks. "
            f"Versions there: {_listed(model.versions)}"
        )
    noted = sha256 or release_histories.noted_sha256(model.events, version)
    if noted and (found := model.store.digest(model.model_name, version)) != noted:
        raise InputError(
            f"A version must have the bytes that were published to get a label. Received: version {version} of "
            f"'{model.model_name}' in {model.store.base_path(model.model_name)} with the sha256 {found}, not {noted}, "
            f"which {release_histories.FILE} notes. Remove its folder and deploy its export again, or name another of "
            f"the versions {_listed(model.versions)}"
        )


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


if __name__ == "__main__":
    from graftflow.release_commands import main

    sys.exit(main())
