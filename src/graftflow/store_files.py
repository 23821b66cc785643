"""The small files at the top of a model store, and the versions that it holds."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from graftflow.deployment import (
    ENTRY,
    VERSION,
    check_store,
    local_store,
    store_errors,
    stored_digest,
    stored_files,
)
from graftflow.files import atomic_file, sha256_directory, sync
from graftflow.locks import locked

# What TensorFlow Serving calls the schemes that fsspec has other names for.
_SCHEMES = {"gcs": "gs", "s3a": "s3"}
_UNCHANGED = "No label was changed."


class StoreFiles:
    """A model store, as far as labels and their history need it.

    Args:
        store: a local folder or mounted volume, or an fsspec URI.

    Raises:
        InputError: where it cannot be used from here.
    """

    def __init__(self, store: str) -> None:
        check_store(store)
        self._folder = local_store(store)
        self._base, self._filesystem = "", None
        if self._folder is not None:
            self._folder = self._folder.absolute()
            self.uri = str(self._folder)
            return
        scheme, _, rest = store.rstrip("/").partition("://")
        self.uri = f"{_SCHEMES.get(scheme, scheme)}://{rest}"
        with self._errors(self.uri):
            import fsspec

            self._filesystem, self._base = fsspec.core.url_to_fs(store.rstrip("/"))

    @property
    def has_locks(self) -> bool:
        """Whether :meth:`locked` keeps other processes out: not so in an object store."""
        return self._folder is not None

    def base_path(self, model_name: str) -> str:
        """Return where a model's versions are, as a model server is told: an absolute path or a URI."""
        return f"{self.uri}/{model_name}"

    def is_base_path(self, text: str, model_name: str) -> bool:
        """Return whether a base path means this store's folder of the model, by whichever links."""
        if self._folder is None:
            return text.rstrip("/") == self.base_path(model_name)
        return Path(text.removeprefix("file://")).resolve() == (self._folder / model_name).resolve()

    def place(self, name: str) -> str:
        """Return where a file is, for messages."""
        return f"{self.uri}/{name}"

    def read(self, name: str) -> str | None:
        """Return a file's text, or ``None`` where there is no such file.

        Raises:
            InputError: where the store refuses or the file is not UTF-8.
        """
        with self._errors(self.place(name)):
            try:
                return self._bytes(name).decode()
            except FileNotFoundError:
                return None

    def _bytes(self, name: str) -> bytes:
        if self._folder is not None:
            return (self._folder / name).read_bytes()
        filesystem: Any = self._filesystem
        filesystem.invalidate_cache()
        return bytes(filesystem.cat_file(f"{self._base}/{name}"))

    def write(self, name: str, text: str) -> None:
        """Replace a file at once: whoever reads it sees the old text or the new one.

        Raises:
            InputError: where the store refuses.
        """
        with self._errors(self.place(name)):
            if self._folder is None:
                filesystem: Any = self._filesystem
                filesystem.pipe_file(f"{self._base}/{name}", text.encode())
                filesystem.invalidate_cache()
                return
            with atomic_file(self._folder / name) as aside, aside.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            sync(self._folder)

    def versions(self, model_name: str) -> list[int]:
        """Return the numbers of the whole versions of a model, ascending.

        Raises:
            InputError: where the store refuses.
        """
        with self._errors(self.base_path(model_name)):
            return sorted(int(name) for name in self._entries(model_name) if VERSION.fullmatch(name))

    def digest(self, model_name: str, version: int) -> str:
        """Return what :func:`graftflow.files.sha256_directory` says of a version's folder.

        Raises:
            InputError: where the store refuses.
        """
        with self._errors(self.base_path(model_name)):
            if self._folder is not None:
                return sha256_directory(self._folder / model_name / str(version))
            filesystem: Any = self._filesystem
            filesystem.invalidate_cache()
            return stored_digest(filesystem, stored_files(filesystem, f"{self._base}/{model_name}/{version}"))

    def _entries(self, model_name: str) -> list[str]:
        if self._folder is not None:
            model = self._folder / model_name
            return [p.name for p in model.iterdir() if (p / ENTRY).is_file()] if model.is_dir() else []
        filesystem: Any = self._filesystem
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(f"{self._base}/{model_name}", detail=False)
        except FileNotFoundError:
            return []
        names = [str(path).rstrip("/").rpartition("/")[2] for path in found]
        return [n for n in names if filesystem.exists(f"{self._base}/{model_name}/{n}/{ENTRY}")]

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep other processes of graftflow from changing a file while the block runs; an object store has no locks.

        What a killed process wrote aside is removed.

        Raises:
            InputError: where the store refuses.
        """
        with ExitStack() as stack:
            if self._folder is not None:
                with self._errors(self.uri):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(self._folder / name))
                    for aside in self._folder.glob(".*.partial*"):
                        if aside.is_file():
                            aside.unlink(missing_ok=True)
            yield

    def _errors(self, place: str) -> AbstractContextManager[None]:
        return store_errors(place, _UNCHANGED)
