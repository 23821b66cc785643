"""The versions of one model under its base path: watched, loaded and unloaded as its policy says."""

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftflow.serving.config_texts import ModelSettings
from graftflow.serving.published_bytes import refuse_damaged
from graftflow.serving.status import Code, ServingError

if TYPE_CHECKING:  # TensorFlow is loaded by `saved_models`, not by importing this module
    from graftflow.serving.saved_models import LoadedVersion

log = logging.getLogger("graftflow.serving")

_VERSION = re.compile(r"[0-9]{1,18}")
Fingerprint = tuple[tuple[str, int, int], ...]
Load = Callable[[int, Path], "LoadedVersion"]


@dataclass(frozen=True)
class VersionStatus:
    """Where a version stands: ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END`` (retired or failed)."""

    number: int
    state: str
    code: Code = Code.OK
    message: str = ""


@dataclass(frozen=True)
class Retries:
    """How often a version that does not load is tried again, and after how many seconds."""

    count: int = 5
    seconds: float = 60.0


@dataclass(frozen=True)
class _Failure:
    fingerprint: Fingerprint
    tries: int
    again_at: float


class ModelStore:
    """Serves the versions under a base path that its policy wants and that load.

    A version is a folder with a number for a name. A new one is loaded and warmed while the old one
    answers; then it takes over in one assignment, and requests that still run keep the old one in
    memory until they end. A version that does not load, or whose files are not those that its store
    notes, is reported in the status and tried again a few times, and whenever its files change; until
    then, under the policy of the latest, the next older one serves. A missing or empty base path
    unloads nothing.

    Args:
        settings: the model's name, base path and policy.
        load: makes a version of its number and folder, or raises ``ServingError``.
        retries: of a version that does not load.
    """

    def __init__(self, settings: ModelSettings, load: Load, retries: Retries = Retries()) -> None:
        self.settings, self._load, self._retries = settings, load, retries
        self._serving: dict[int, LoadedVersion] = {}
        self._statuses: dict[int, VersionStatus] = {}
        self._failures: dict[int, _Failure] = {}
        self._said = ""
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.settings.name

    def get(self, number: int | None = None) -> "LoadedVersion":
        """Return a serving version.

        Args:
            number: the version wanted; ``None`` for the newest.

        Raises:
            ServingError: NOT_FOUND where that version is not being served.
        """
        serving = self._serving
        if number is None and serving:
            return serving[max(serving)]
        if number is None or number not in serving:
            raise not_served(self.name, number)
        return serving[number]

    def available(self) -> set[int]:
        """Return the numbers of the versions being served."""
        return set(self._serving)

    def statuses(self, number: int | None = None) -> list[VersionStatus]:
        """Return the status of every version seen, newest first, or of one.

        Raises:
            ServingError: NOT_FOUND where there is none.
        """
        known = self._statuses
        if number is not None:
            if number not in known:
                raise ServingError(Code.NOT_FOUND, f"Could not find version {number} of model {self.name}")
            return [known[number]]
        if not known:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {self.name}")
        return [known[n] for n in sorted(known, reverse=True)]

    def poll(self, *, unload: bool = True) -> None:
        """Look at the base path once, load what should serve and, with ``unload``, unload what should not.

        Thread-safe.
        """
        with self._lock:
            folders = self._folders()
            if not folders:
                if not self._serving:
                    self._say(
                        f"waiting for a version of {self.name}: {self.settings.base_path} holds no "
                        f"numbered folder, e.g. {self.settings.base_path / '1'}"
                    )
                return
            policy = self.settings.policy
            if policy.kind == "specific":
                if missing := [n for n in policy.versions if n not in folders]:
                    self._say(
                        f"waiting for {', '.join(map(str, missing))} of {self.name}: not in {self.settings.base_path}"
                    )
                wanted = [n for n in policy.versions if n in folders]
            else:
                wanted = sorted(folders)
            # The newest that load, as many as the policy wants.
            limit = policy.count if policy.kind == "latest" else len(wanted)
            kept: set[int] = set()
            for number in sorted(wanted, reverse=True):
                if len(kept) == limit:
                    break
                if number in self._serving or self._try(number, folders[number]):
                    kept.add(number)
            # Where nothing that is wanted loads, what serves stays.
            if kept and unload:
                self._unload(set(self._serving) - kept)

    def unload_all(self) -> None:
        """Stop serving every version: the model is no longer among those configured."""
        with self._lock:
            self._unload(set(self._serving))

    def _try(self, number: int, path: Path) -> bool:
        """Load one version; returns whether it serves now."""
        fingerprint = _fingerprint(path)
        failed = self._failures.get(number)
        same = failed is not None and failed.fingerprint == fingerprint
        if (
            failed is not None
            and same
            and (failed.tries > self._retries.count or time.monotonic() < failed.again_at)
        ):
            return False
        self._set(VersionStatus(number, "LOADING"))
        log.info("loading version %d of %s", number, self.name)
        try:
            refuse_damaged(path)
            loaded = self._load(number, path)
        except Exception as error:  # a version can be broken in any way; the others must serve on
            if not isinstance(error, ServingError):
                error = ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")
            tries = failed.tries + 1 if failed is not None and same else 1
            self._failures[number] = _Failure(fingerprint, tries, time.monotonic() + self._retries.seconds)
            self._set(VersionStatus(number, "END", error.code, error.message))
            serving = ", ".join(map(str, sorted(self._serving)))
            kept = f"version {serving} stays" if serving else "nothing serves yet"
            reason = " ".join(error.message.split())
            log.error("version %d of %s does not load, %s: %s", number, self.name, kept, reason)
            return False
        self._failures.pop(number, None)
        # A new dict each time: readers on other threads never see one that changes under them.
        self._serving = {**self._serving, number: loaded}
        self._set(VersionStatus(number, "AVAILABLE"))
        log.info("version %d of %s is available", number, self.name)
        return True

    def _unload(self, numbers: set[int]) -> None:
        for number in sorted(numbers):
            self._set(VersionStatus(number, "UNLOADING"))
            self._serving = {n: v for n, v in self._serving.items() if n != number}
            # Its memory goes with the last request that still holds it.
            self._set(VersionStatus(number, "END"))
            log.info("version %d of %s is unloaded", number, self.name)

    def _set(self, status: VersionStatus) -> None:
        self._statuses = {**self._statuses, status.number: status}

    def _say(self, text: str) -> None:
        """Log a reason to wait, once."""
        if text != self._said:
            log.warning(text)
        self._said = text

    def _folders(self) -> dict[int, Path]:
        try:
            children = [p for p in self.settings.base_path.iterdir() if _VERSION.fullmatch(p.name)]
            return {int(p.name): p for p in sorted(children) if p.is_dir()}
        except OSError:
            return {}


def not_served(name: str, number: int | None) -> ServingError:
    """Return the error for a model or version that is not being served."""
    asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
    return ServingError(Code.NOT_FOUND, f"Servable not found for request: {asked}")


def status_json(statuses: list[VersionStatus]) -> dict[str, Any]:
    """Return statuses in the form of TensorFlow Serving's ``GetModelStatusResponse``."""
    return {
        "model_version_status": [
            {
                "version": str(s.number),
                "state": s.state,
                "status": {"error_code": s.code.name, "error_message": s.message},
            }
            for s in statuses
        ]
    }


def _fingerprint(path: Path) -> Fingerprint:
    """Names, sizes and times of a version's files: they change while it is being copied."""
    found = []
    for file in sorted(path.rglob("*")):
        try:
            facts = file.stat()
        except OSError:
            continue
        found.append((file.relative_to(path).as_posix(), facts.st_size, facts.st_mtime_ns))
    return tuple(found)
