"""The versions of one model under its base path: watched, loaded, the newest one serving."""

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftflow.serving.status import Code, ServingError

if TYPE_CHECKING:  # TensorFlow is loaded by `saved_models`, not by importing this module
    from graftflow.serving.saved_models import LoadedVersion

log = logging.getLogger("graftflow.serving")

_VERSION = re.compile(r"[0-9]{1,18}")
Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class VersionStatus:
    """Where a version stands: ``LOADING``, ``AVAILABLE`` or ``END`` (retired or failed)."""

    number: int
    state: str
    code: Code = Code.OK
    message: str = ""


class ModelStore:
    """Serves the newest version under ``base_path`` that loads.

    A version is a folder with a number for a name. A new one is loaded and warmed while the old one
    answers; then it takes over in one assignment, and requests that still run keep the old one in
    memory until they end. A version that does not load is reported in the status and tried again
    when its files change; until then the next older one serves. A missing or empty base path
    unloads nothing.

    Args:
        name: the model's name, as requests give it.
        base_path: the folder that holds the versions; it may not exist yet.
        load: makes a version of its number and folder, or raises ``ServingError``.
    """

    def __init__(self, name: str, base_path: Path, load: "Callable[[int, Path], LoadedVersion]") -> None:
        self.name, self.base_path, self._load = name, base_path, load
        self._serving: LoadedVersion | None = None
        self._statuses: dict[int, VersionStatus] = {}
        self._failures: dict[int, Fingerprint] = {}
        self._waiting = False
        self._polling = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def get(self, name: str, number: int | None = None) -> "LoadedVersion":
        """Return the serving version.

        Args:
            name: the model that a request asks for.
            number: the version that it insists on; ``None`` for the newest.

        Raises:
            ServingError: NOT_FOUND where that model or version is not being served.
        """
        serving = self._serving
        if name != self.name or serving is None or number not in (None, serving.number):
            asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {asked}")
        return serving

    def statuses(self, name: str, number: int | None = None) -> list[VersionStatus]:
        """Return the status of every version seen, newest first, or of one.

        Raises:
            ServingError: NOT_FOUND where there is none.
        """
        known = dict(self._statuses) if name == self.name else {}
        if number is not None:
            if number not in known:
                raise ServingError(Code.NOT_FOUND, f"Could not find version {number} of model {name}")
            return [known[number]]
        if not known:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
        return [known[n] for n in sorted(known, reverse=True)]

    def poll(self) -> None:
        """Look at the base path once and load what should serve. Safe to call from any thread."""
        with self._polling:
            folders = self._folders()
            if not folders:
                if not self._waiting and self._serving is None:
                    log.warning(
                        "waiting for a version of %s: %s holds no numbered folder, e.g. %s",
                        self.name,
                        self.base_path,
                        self.base_path / "1",
                    )
                self._waiting = True
                return
            self._waiting = False
            for number in sorted(folders, reverse=True):
                if self._serving is not None and number == self._serving.number:
                    return
                if self._try(number, folders[number]):
                    return

    def _try(self, number: int, path: Path) -> bool:
        """Load one version and let it take over; returns whether it did."""
        fingerprint = _fingerprint(path)
        if self._failures.get(number) == fingerprint:
            return False
        self._set(VersionStatus(number, "LOADING"))
        log.info("loading version %d of %s", number, self.name)
        try:
            loaded = self._load(number, path)
        except Exception as error:  # a version can be broken in any way; the others must serve on
            if not isinstance(error, ServingError):
                error = ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")
            self._failures[number] = fingerprint
            self._set(VersionStatus(number, "END", error.code, error.message))
            kept = f"version {self._serving.number} stays" if self._serving else "nothing serves yet"
            log.error(
                "version %d of %s does not load, %s: %s",
                number,
                self.name,
                kept,
                " ".join(error.message.split()),
            )
            return False
        self._failures.pop(number, None)
        old, self._serving = self._serving, loaded
        self._set(VersionStatus(number, "AVAILABLE"))
        if old is not None:
            self._set(VersionStatus(old.number, "END"))
        log.info("version %d of %s is available", number, self.name)
        return True

    def _set(self, status: VersionStatus) -> None:
        # A new dict each time: readers on other threads never see one that changes under them.
        self._statuses = {**self._statuses, status.number: status}

    def _folders(self) -> dict[int, Path]:
        try:
            children = [p for p in self.base_path.iterdir() if _VERSION.fullmatch(p.name)]
            return {int(p.name): p for p in sorted(children) if p.is_dir()}
        except OSError:
            return {}

    def watch(self, seconds: float) -> None:
        """Poll every ``seconds`` on a thread of its own, until :meth:`close`."""

        def poll_until_closed() -> None:
            while not self._stop.wait(seconds):
                try:
                    self.poll()
                except Exception:  # whatever it was, the next poll must still come
                    log.exception("polling %s failed", self.base_path)

        self._thread = threading.Thread(target=poll_until_closed, name="model-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop polling; a version that is being loaded is waited for, at most 30 seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)


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
