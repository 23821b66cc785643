"""The models that a server serves: from its flags or its configuration, which may change while it runs."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftflow.errors import InputError
from graftflow.serving import config_texts
from graftflow.serving.config_texts import ModelSettings
from graftflow.serving.model_store import Load, ModelStore, Retries, VersionStatus, not_served
from graftflow.serving.status import Code, ServingError, invalid

if TYPE_CHECKING:
    from graftflow.serving.saved_models import LoadedVersion

log = logging.getLogger("graftflow.serving")


@dataclass(frozen=True)
class ModelSpec:
    """Which model a request asks for: the newest version, one by number, or one by label."""

    name: str
    version: int | None = None
    label: str | None = None
    signature_name: str = ""


class ModelSet:
    """Several models, their labels and their reloads.

    Args:
        load: makes a version of its number and folder, or raises ``ServingError``.
        retries: of versions that do not load.
        labels_before_load: whether a label that is not in use may name a version not loaded yet.
    """

    def __init__(
        self,
        load: Load,
        retries: Retries = Retries(),  # noqa: B008
        *,
        labels_before_load: bool = False,
    ) -> None:
        self._load, self._retries, self._labels_before_load = load, retries, labels_before_load
        self._stores: dict[str, ModelStore] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._configuring = threading.RLock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def get(self, spec: ModelSpec) -> "LoadedVersion":
        """Return the version that a request asks for.

        Raises:
            ServingError: INVALID_ARGUMENT without a name or for an unknown label, NOT_FOUND where
                that version is not being served.
        """
        number = self._number(spec)
        store = self._stores.get(spec.name)
        if store is None:
            raise not_served(spec.name, number)
        return store.get(number)

    def statuses(self, spec: ModelSpec) -> list[VersionStatus]:
        """Return the statuses of a model's versions, newest first, or of one.

        Raises:
            ServingError: as :meth:`get`; NOT_FOUND where no version was seen.
        """
        number = self._number(spec)
        store = self._stores.get(spec.name)
        if store is None:
            what = f"version {number}" if number is not None else "any versions"
            raise ServingError(Code.NOT_FOUND, f"Could not find {what} of model {spec.name}")
        return store.statuses(number)

    def names(self) -> list[str]:
        """Return the names of the models configured."""
        return sorted(self._stores)

    def _number(self, spec: ModelSpec) -> int | None:
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        if spec.label is None:
            return spec.version
        number = self._labels.get(spec.name, {}).get(spec.label)
        if number is None:
            raise invalid(f"Unrecognized servable version label: {spec.label}")
        return number

    def configure(self, models: Sequence[ModelSettings]) -> None:
        """Serve these models and no others; returns when what is new has been loaded or has failed.

        Models that are no longer listed are unloaded, after the others are loaded.

        Args:
            models: their settings; names are unique.

        Raises:
            ServingError: FAILED_PRECONDITION where a label names a version that is not available;
                the models are served all the same, with their labels as they were.
        """
        with self._configuring:
            before = self._stores
            stores: dict[str, ModelStore] = {}
            for settings in models:
                store = before.get(settings.name)
                if store is None or store.settings.base_path != settings.base_path:
                    store = ModelStore(settings, self._load, self._retries)
                store.settings = settings
                stores[settings.name] = store
            # Load, move the labels, unload: in that order no label is ever without its version.
            for store in stores.values():
                store.poll(unload=False)
            self._stores = stores
            try:
                labels = {name: tags for name, tags in self._labels.items() if name in stores}
                for settings in models:
                    self._check_labels(settings, labels.get(settings.name, {}))
                    labels[settings.name] = dict(settings.labels)
                self._labels = labels
            finally:
                for name, store in before.items():
                    if stores.get(name) is not store:
                        store.unload_all()
            for store in stores.values():
                store.poll()

    def reload(self, models: Sequence[ModelSettings]) -> None:
        """As :meth:`configure`, for a caller who waits for the new models to be available.

        Raises:
            ServingError: as :meth:`configure`; UNAVAILABLE where no version of a new model loads.
        """
        with self._configuring:
            new = [settings.name for settings in models if settings.name not in self._stores]
            self.configure(models)
            if failed := [name for name in new if not self._stores[name].available()]:
                raise ServingError(
                    Code.UNAVAILABLE,
                    f"{len(failed)} servable(s) did not become available: {', '.join(failed)}",
                )

    def _check_labels(self, settings: ModelSettings, current: dict[str, int]) -> None:
        available = self._stores[settings.name].available()
        for label, number in settings.labels.items():
            if number in available or current.get(label) == number:
                continue
            if self._labels_before_load and label not in current:
                continue
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"Request to assign label to version {number} of model {settings.name}, "
                "which is not currently available for inference",
            )

    def poll(self) -> None:
        """Look at every base path once; not while the configuration changes."""
        with self._configuring:
            for store in list(self._stores.values()):
                store.poll()

    def watch(self, seconds: float) -> None:
        """Poll every ``seconds`` on a thread of its own, until :meth:`close`."""
        self._repeat(self.poll, seconds, "model-set")

    def follow(self, file: Path, seconds: float) -> None:
        """Read a configuration now and, every ``seconds``, again: each change of it is applied.

        A file that is missing or wrong changes nothing, is reported once and looked at again.

        Args:
            file: a ``ModelServerConfig`` in text form.
            seconds: pause between two looks.
        """
        applied, said = "", ""

        def look() -> None:
            nonlocal applied, said
            try:
                text = file.read_text(encoding="utf-8")
                if text == applied:
                    return
                self.configure(config_texts.read_models(file))
                applied, reason = text, ""
                log.info("serving what %s lists: %s", file, ", ".join(self.names()) or "nothing")
            except FileNotFoundError:
                reason = f"waiting for {file}" if not applied else f"{file} is gone: what it listed stays"
            except (OSError, ValueError, InputError) as error:
                reason = f"{file} changes nothing: {error}"
            except ServingError as error:
                reason = f"labels of {file} are not set yet: {error.message}"
            if reason and reason != said:
                log.warning(reason)
            said = reason

        look()
        self._repeat(look, seconds, "model-config")

    def _repeat(self, work: Callable[[], None], seconds: float, name: str) -> None:
        def until_closed() -> None:
            while not self._stop.wait(seconds):
                try:
                    work()
                except Exception:  # whatever it was, the next look must still come
                    log.exception("%s failed", name)

        thread = threading.Thread(target=until_closed, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Stop polling; a version that is being loaded is waited for, at most 30 seconds."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)
