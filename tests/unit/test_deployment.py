"""Publishing in a model store: whole versions, never overwritten, nothing left after a failure."""

import errno
import os
from pathlib import Path

import fsspec
import pytest

from graftflow import deployment
from graftflow.deployment import Deployment, check_model_name, check_store, deploy
from graftflow.errors import InputError
from graftflow.files import sha256_directory, write_json


def artifact(path: Path, content: str = "graph", version: str = "3") -> Path:
    """An exported model, as far as publishing looks at it."""
    folder = path / version
    for name, text in {
        "saved_model.pb": content,
        "variables/variables.index": "index",
        "variables/variables.data-00000-of-00001": "data",
        "assets/classes.txt": "cat\ndog\n",
        "assets.extra/tf_serving_warmup_requests": "warm",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_json(path / "export.json", {"version": version, "sha256": sha256_directory(folder)})
    return path


@pytest.fixture
def model(tmp_path):
    return artifact(tmp_path / "export")


@pytest.fixture
def memory():
    """An empty object store that forgets everything afterwards."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def everything(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_version_is_published_whole_and_readable(tmp_path, model):
    store = tmp_path / "store"
    published = deploy(model, store=str(store), model_name="pets")
    assert published == Deployment(str(store / "pets" / "3"), "3", "published")
    assert sha256_directory(store / "pets" / "3") == sha256_directory(model / "3")
    assert os.listdir(store / "pets") == ["3"]
    assert (store / "pets/3/saved_model.pb").stat().st_mode & 0o777 == 0o644
    assert (store / "pets/3").stat().st_mode & 0o777 == 0o755


def test_a_version_number_written_as_a_number_is_the_same(tmp_path, model):
    write_json(model / "export.json", {"version": 3, "sha256": sha256_directory(model / "3")})
    assert deploy(model, store=str(tmp_path / "store"), model_name="pets").version == "3"


@pytest.mark.parametrize("remote", [False, True])
def test_the_same_content_again_is_already_there(tmp_path, model, memory, remote):
    store = "memory://models" if remote else f"file://{tmp_path}/store"
    first = deploy(model, store=store, model_name="pets")
    second = deploy(model, store=store, model_name="pets")
    assert (first.status, second.status) == ("published", "already there")
    assert first.uri == second.uri


@pytest.mark.parametrize("remote", [False, True])
def test_another_content_under_the_same_version_is_refused(tmp_path, model, memory, remote):
    store = "memory://models" if remote else str(tmp_path / "store")
    uri = deploy(model, store=store, model_name="pets").uri
    other = artifact(tmp_path / "other", content="another graph")
    with pytest.raises(InputError, match=r"never overwritten\. Received: version 3") as caught:
        deploy(other, store=store, model_name="pets")
    assert uri in str(caught.value)
    assert "higher version, as VERSION=4" in str(caught.value)
    assert deploy(model, store=store, model_name="pets").status == "already there"


def test_an_object_store_gets_the_entry_last(model, memory, monkeypatch):
    order = []
    put_file = type(memory).put_file

    def recorded(self, source, target, **more):
        order.append(target)
        return put_file(self, source, target, **more)

    monkeypatch.setattr(type(memory), "put_file", recorded)
    published = deploy(model, store="memory://models/", model_name="pets")
    assert published == Deployment("memory://models/pets/3", "3", "published")
    assert len(order) == 5
    assert order[-1] == "/models/pets/3/saved_model.pb"
    assert memory.cat("/models/pets/3/saved_model.pb") == b"graph"


def test_an_upload_that_was_cut_off_is_done_again(model, memory):
    memory.pipe_file("/models/pets/3/variables/variables.data-00000-of-00009", b"half")
    assert deploy(model, store="memory://models", model_name="pets").status == "published"
    assert deploy(model, store="memory://models", model_name="pets").status == "already there"


def test_a_failed_upload_leaves_nothing(model, memory, monkeypatch):
    put_file = type(memory).put_file

    def failing(self, source, target, **more):
        if target.endswith("saved_model.pb"):
            raise OSError(errno.EIO, "the network is gone")
        return put_file(self, source, target, **more)

    monkeypatch.setattr(type(memory), "put_file", failing)
    with pytest.raises(InputError, match=r"the network is gone\. Nothing was published\."):
        deploy(model, store="memory://models", model_name="pets")
    assert memory.find("/models") == []


def test_a_truncated_upload_is_noticed(model, memory, monkeypatch):
    monkeypatch.setattr(
        type(memory), "put_file", lambda self, source, target, **_: self.pipe_file(target, b"x")
    )
    with pytest.raises(InputError, match="bytes and has 1"):
        deploy(model, store="memory://models", model_name="pets")
    assert memory.find("/models") == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, model, monkeypatch, code):
    def full(reader, writer, length):
        writer.write(b"some")
        raise OSError(code, "No space left on device")

    monkeypatch.setattr(deployment.shutil, "copyfileobj", full)
    with pytest.raises(InputError, match="The model store is full") as caught:
        deploy(model, store=str(tmp_path / "store"), model_name="pets")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_an_interruption_leaves_the_other_versions_alone(tmp_path, model, monkeypatch):
    store = tmp_path / "store"
    deploy(artifact(tmp_path / "old", version="2"), store=str(store), model_name="pets")
    before = everything(store)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment.shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy(model, store=str(store), model_name="pets")
    assert everything(store) == before


def test_a_faster_deployment_of_the_same_version_wins(tmp_path, model, monkeypatch):
    store = tmp_path / "store"
    copy = deployment._copy

    def overtaken(source, target):
        copy(source, target)
        copy_of = store / "pets" / "3"
        copy_of.mkdir()
        copy(source, copy_of)

    monkeypatch.setattr(deployment, "_copy", overtaken)
    assert deploy(model, store=str(store), model_name="pets").status == "already there"
    assert os.listdir(store / "pets") == ["3"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "3/variables/variables.index").write_text("!"), "corrupt or was changed"),
        (lambda m: (m / "3/saved_model.pb").unlink(), "must hold 3/saved_model.pb"),
        (lambda m: (m / "export.json").unlink(), "must hold an export.json"),
        (lambda m: (m / "export.json").write_text("{"), "must hold an export.json"),
        (lambda m: (m / "export.json").write_text("[]"), "must hold an export.json"),
        (
            lambda m: write_json(m / "export.json", {"version": "../3", "sha256": "0"}),
            "version must be a whole number. Received: '../3'",
        ),
        (lambda m: (m / "3/link").symlink_to("/etc/passwd"), "must hold no links"),
    ],
)
def test_a_damaged_artifact_is_refused(tmp_path, model, damage, message):
    damage(model)
    with pytest.raises(InputError) as caught:
        deploy(model, store=str(tmp_path / "store"), model_name="pets")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "7", "a\n", "é", "%2e"])
def test_a_model_name_cannot_leave_its_folder(tmp_path, model, name):
    with pytest.raises(InputError, match="model_name must be"):
        deploy(model, store=str(tmp_path / "store"), model_name=name)


@pytest.mark.parametrize("name", ["graftflow", "pets-37", "a.b_C", "v2"])
def test_usual_model_names_are_accepted(name):
    check_model_name(name)


def test_stores_are_checked_without_being_contacted(tmp_path):
    check_store(str(tmp_path / "not" / "yet"))
    check_store(f"file://{tmp_path}")
    check_store("memory://models")


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("", "store must be a folder"),
        ("  ", "store must be a folder"),
        ("https://example.com/models", "which can be written"),
        ("nonsense://x", "store must be a folder, gs://… or s3://…"),
        (f"{__file__}/models", "is a file"),
    ],
)
def test_an_unusable_store_is_refused(store, message):
    with pytest.raises(InputError, match=message):
        check_store(store)


@pytest.mark.parametrize(("store", "package"), [("gs://b/m", "gcsfs"), ("s3://b/m", "s3fs")])
def test_a_missing_driver_is_named(store, package, monkeypatch):
    def missing(scheme):
        raise ImportError(f"Please install {package}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(InputError, match=f"needs the package {package}"):
        check_store(store)
