"""A model store with the model ``pets``, in a folder or an object store, and what its files say."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from graftflow import releases

KINDS = ("folder", "object store")


class Store:
    """A store with versions of the model ``pets``, and what its files say."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.filesystem, self.base = fsspec.core.url_to_fs(uri)
        self.where = {"store": uri, "model_name": "pets"}

    def add(self, *versions: int, model: str = "pets") -> None:
        for version in versions:
            self.filesystem.makedirs(f"{self.base}/{model}/{version}", exist_ok=True)
            self.filesystem.pipe_file(f"{self.base}/{model}/{version}/saved_model.pb", b"graph")

    def remove(self, version: int) -> None:
        self.filesystem.rm(f"{self.base}/pets/{version}", recursive=True)

    def deploy(self, version: int, label: str = "stable", **more):
        self.add(version)
        return releases.release(**self.where, version=version, label=label, **more)

    def text(self, name: str) -> str:
        return self.filesystem.cat_file(f"{self.base}/{name}").decode()

    def put(self, name: str, text: str) -> None:
        self.filesystem.makedirs(self.base, exist_ok=True)
        self.filesystem.pipe_file(f"{self.base}/{name}", text.encode())

    def entry(self, model: str = "pets"):
        config = text_format.Parse(self.text("models.config"), model_server_config_pb2.ModelServerConfig())
        (entry,) = [e for e in config.model_config_list.config if e.name == model]
        return entry

    def served(self) -> tuple[list[int], dict[str, int]]:
        """The versions and the labels that a server reads."""
        entry = self.entry()
        return list(entry.model_version_policy.specific.versions), dict(entry.version_labels)

    def actions(self) -> list[tuple]:
        events = json.loads(self.text("releases.json"))["models"]["pets"]
        return [(e["action"], e["version"], e["replaced"]) for e in events]


@contextmanager
def open_store(kind: str, folder: Path) -> Iterator[Store]:
    """An empty store; what an object store held is forgotten afterwards."""
    if kind == "folder":
        yield Store(str(folder / "store"))
        return
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield Store("memory://models")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
