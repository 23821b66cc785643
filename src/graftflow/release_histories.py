"""``releases.json``: who had which label when, and what follows from it. Importing this module loads no TensorFlow.

``models.config`` says what is served; this is its history, written just before it. So a change took effect where
``models.config`` agrees with the last event; where it still agrees with the one before, the change was cut off and did
not; and where it agrees with neither, somebody changed it by hand, which becomes an event of its own.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from graftflow.errors import InputError

FILE = "releases.json"
ACTIONS = ("deploy", "canary", "promote", "rollback", "withdraw", "found")
Event = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """How a model stands after its events.

    Attributes:
        labels: ``stable`` and ``canary``, each to its version, where there is one.
        line: versions that were stable, oldest first, without those that were rolled back; the last is stable now.
        rolled_back: versions that were rolled back and not made stable since.
        leaving: the canary that the last event replaced: its label moves once its successor is loaded.
    """

    labels: Mapping[str, int]
    line: tuple[int, ...] = ()
    rolled_back: frozenset[int] = frozenset()
    leaving: int | None = None

    @property
    def stable(self) -> int | None:
        """The stable version, or ``None``."""
        return self.labels.get("stable")

    @property
    def canary(self) -> int | None:
        """The canary, or ``None``."""
        return self.labels.get("canary")

    @property
    def previous(self) -> int | None:
        """The version that a rollback makes stable, or ``None``."""
        return self.line[-2] if len(self.line) > 1 else None

    def loaded(self) -> set[int]:
        """Return the versions that a server loads: those with a label, and where a label may come from or go.

        A previous version with a higher number than the stable one is not loaded: requests without version or
        label, which get the newest, would get that one.
        """
        previous = self.previous
        if previous is not None and self.stable is not None and previous > self.stable:
            previous = None
        return {*self.labels.values(), *(v for v in (previous, self.leaving) if v is not None)}


def replay(events: Sequence[Event]) -> Standing:
    """Return how a model stands after ``events``."""
    line: list[int] = []
    rolled_back: set[int] = set()
    for event in events:
        stable = event["labels"].get("stable")
        if stable is None or (line and line[-1] == stable):
            continue
        if event["action"] in ("rollback", "found") and stable in line:
            while line[-1] != stable:
                rolled_back.add(line.pop())
        else:
            line.append(stable)
        rolled_back.discard(stable)
    if not events:
        return Standing({})
    last = events[-1]
    leaving = last.get("replaced") if last["action"] == "canary" else None
    return Standing(dict(last["labels"]), tuple(line), frozenset(rolled_back), leaving)


def event(
    action: str,
    version: int,
    *,
    replaced: int | None,
    labels: Mapping[str, int | None],
    facts: Mapping[str, Any] | None = None,
) -> Event:
    """Return a new event, of this moment.

    Args:
        action: one of ``ACTIONS``.
        version: that got the label, or lost it (withdraw).
        replaced: the version that had the label before.
        labels: of the model from now on; ``None`` for a label that nothing has.
        facts: more to remember, such as the accuracy.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    return {
        "time": now.isoformat().replace("+00:00", "Z"),
        "action": action,
        "version": version,
        "replaced": replaced,
        "labels": {label: number for label, number in labels.items() if number is not None},
        **(facts or {}),
    }


def in_effect(events: Sequence[Event], labels: Mapping[str, int] | None) -> list[Event]:
    """Return the events that the labels of ``models.config`` confirm.

    Args:
        events: of ``releases.json``.
        labels: of ``models.config``; ``None`` where the model has no entry in it.
    """
    kept = list(events)
    if labels is None:
        # Only the first event of all can have been cut off before there was an entry; a lost one is written anew.
        return kept if len(kept) > 1 else []
    if dict(replay(kept).labels) == dict(labels):
        return kept
    if kept and dict(replay(kept[:-1]).labels) == dict(labels):
        return kept[:-1]
    before = replay(kept)
    changed = next((n for n in ("stable", "canary") if labels.get(n) != before.labels.get(n)), "stable")
    version = labels.get(changed, before.labels.get(changed, 0))
    return [*kept, event("found", version, replaced=before.labels.get(changed), labels=dict(labels))]


def noted_sha256(events: Sequence[Event], version: int) -> str:
    """Return what was noted last of the bytes of a version's folder, or ``""``."""
    noted = [str(e["sha256"]) for e in events if e["version"] == version and e.get("sha256")]
    return noted[-1] if noted else ""


class Histories:
    """The events of every model of a store; their own SHA-256 stands beside them in the file.

    Args:
        text: of the file; ``None`` where there is none.
        place: of the file, for messages.

    Raises:
        InputError: where it is not what this module writes.
    """

    def __init__(self, text: str | None, place: str) -> None:
        try:
            self._content = json.loads(text) if text is not None else {"models": {}}
            for name, events in self._content["models"].items():
                _check(name, events)
            if self._content.get("sha256", _digest(self._content["models"])) != _digest(
                self._content["models"]
            ):
                raise ValueError("its events are not those that its sha256 is of")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{place} must be the history of releases, in JSON. Received: {type(error).__name__}: {reason}. "
                "Nothing was changed: put it right (its line sha256 may go), or move it away to begin a new one from "
                "models.config"
            ) from error

    def events(self, model_name: str) -> list[Event]:
        """Return a model's events, oldest first."""
        return list(self._content["models"].get(model_name, []))

    def names(self) -> list[str]:
        """Return the names of the models."""
        return sorted(self._content["models"])

    def with_events(self, model_name: str, events: Sequence[Event]) -> str:
        """Return the file's text with a model's events replaced; what else stands in it stays."""
        models = {**self._content["models"], model_name: list(events)}
        content = {**self._content, "models": models, "sha256": _digest(models)}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _digest(models: Any) -> str:
    return hashlib.sha256(json.dumps(models, sort_keys=True).encode()).hexdigest()


def _check(name: str, events: Any) -> None:
    for number, one in enumerate(events, 1):
        labels = one["labels"]
        if one["action"] not in ACTIONS or not isinstance(one["time"], str):
            raise ValueError(f"event {number} of {name} has no known action or no time")
        numbers = [one["version"], *labels.values()] + [r for r in [one["replaced"]] if r is not None]
        if any(type(n) is not int for n in numbers) or not set(labels) <= {"stable", "canary"}:
            raise ValueError(f"event {number} of {name} has versions or labels that are none")
