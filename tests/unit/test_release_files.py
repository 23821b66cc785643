"""The files of releases: what others wrote stays, and a kill, a hand or a rival at any moment loses nothing."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from graftflow import releases
from graftflow.errors import InputError
from graftflow.store_files import StoreFiles
from tests.unit.labelled_stores import KINDS, Store, open_store
from tests.unit.serving_model import ROOT


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> Iterator[Store]:
    with open_store(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


OTHERS = """
model_config_list {
  config {
    name: "dogs"  base_path: "/elsewhere/dogs"  model_platform: "tensorflow"
    model_version_policy { all {} }
    logging_config { sampling_config { sampling_rate: 0.25 } }
    version_labels { key: "stable" value: 77 }
  }
  config {
    name: "pets"  base_path: "BASE/pets"
    logging_config { log_collector_config { type: "fluent" filename_prefix: "p" } }
    version_labels { key: "blue" value: 1 }
  }
}
"""


def test_what_others_wrote_into_the_configuration_stays(store):
    store.add(1, 2)
    store.put("models.config", OTHERS.replace("BASE", StoreFiles(store.uri).uri))
    store.deploy(3)
    theirs = text_format.Parse(OTHERS, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert store.entry("dogs") == theirs[0]
    assert store.entry().logging_config == theirs[1].logging_config
    assert store.served() == ([1, 2, 3], {"blue": 1, "stable": 3})


def test_a_label_that_was_moved_by_hand_is_noted_and_kept(store):
    for version in (1, 2, 3):
        store.deploy(version)
    store.put("models.config", store.text("models.config").replace("value: 3", "value: 1"))
    store.deploy(4, "canary")
    assert store.served() == ([1, 4], {"stable": 1, "canary": 4})
    assert store.actions()[-2:] == [("found", 1, 3), ("canary", 4, None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("models.config", "model_config_list { config { nome: 'x' } }", "ModelServerConfig in text form"),
        ("models.config", "custom_model_config { }", "must hold a model_config_list"),
        ("models.config", "model_config_list { config {name: 'a'} config {name: 'a'} }", "a more than once"),
        ("releases.json", "{", "must be the history of releases"),
        ("releases.json", "[]", "must be the history of releases"),
        ("releases.json", '{"models": {"pets": [{"action": "deploy"}]}}', "must be the history of releases"),
        ("releases.json", '{"models": {"pets": {}, "x": 3}}', "must be the history of releases"),
    ],
)
def test_files_that_are_not_in_order_are_refused_and_left_alone(store, name, text, message):
    store.deploy(1)
    store.add(2)
    store.put(name, text)
    other = "releases.json" if name == "models.config" else "models.config"
    before = store.text(other)
    for act in (
        lambda: releases.release(**store.where, version=2),
        lambda: releases.check_release(**store.where, version=2, label="stable"),
        lambda: releases.rollback(**store.where),
        lambda: releases.list_versions(**store.where),
    ):
        with pytest.raises(InputError, match=message) as caught:
            act()
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (store.text(name), store.text(other)) == (text, before)


def test_a_base_path_elsewhere_is_refused(store):
    store.deploy(1)
    text = store.text("models.config").replace("/pets", "/old/pets")
    store.put("models.config", text)
    with pytest.raises(InputError, match="where its versions are"):
        store.deploy(2)
    assert store.text("models.config") == text


def test_a_store_may_be_reached_by_a_link(folder, tmp_path):
    folder.deploy(1)
    (tmp_path / "link").symlink_to(tmp_path / "store")
    through = Store(str(tmp_path / "link"))
    through.deploy(2)
    assert folder.served() == ([1, 2], {"stable": 2})


def test_a_lost_file_is_made_from_the_other(store):
    for version in (1, 2, 3):
        store.deploy(version)
    kept = store.text("models.config")
    store.filesystem.rm_file(f"{store.base}/models.config")
    assert not store.deploy(3).changed
    assert store.text("models.config") == kept
    store.filesystem.rm_file(f"{store.base}/releases.json")
    store.deploy(4)
    assert store.served() == ([3, 4], {"stable": 4})


@pytest.mark.parametrize("written", ["nothing", "the history"])
def test_a_change_that_was_cut_off_did_not_happen(store, monkeypatch, written):
    for version in (1, 2, 3):
        store.deploy(version)
    write = StoreFiles.write

    def cut_off(self, name, text):
        if written == "the history" and name == "releases.json":
            return write(self, name, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreFiles, "write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        releases.rollback(**store.where)
    assert store.served() == ([2, 3], {"stable": 3})
    monkeypatch.undo()
    assert releases.list_versions(**store.where)[0].label == "stable"
    # One rollback after all, not two.
    assert releases.rollback(**store.where).version == 2
    assert store.served() == ([1, 2], {"stable": 2})
    assert store.actions()[-1] == ("rollback", 2, 3)
    assert len(store.actions()) == 4


def test_a_first_release_that_was_cut_off_is_done_again(store, monkeypatch):
    write = StoreFiles.write

    def cut_off(self, name, text):
        if name == "models.config":
            raise KeyboardInterrupt
        write(self, name, text)

    monkeypatch.setattr(StoreFiles, "write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        store.deploy(1)
    monkeypatch.undo()
    assert store.deploy(1).changed
    assert store.served() == ([1], {"stable": 1})
    assert store.actions() == [("deploy", 1, None)]


def test_a_store_that_refuses_says_that_no_label_moved(folder, monkeypatch):
    folder.deploy(1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graftflow.store_files.os.fsync", full)
    with pytest.raises(InputError, match=r"The model store is full.*No label was changed"):
        folder.deploy(2)
    assert folder.served() == ([1], {"stable": 1})


def test_a_rival_in_an_object_store_is_noticed(tmp_path, monkeypatch):
    """No locks there: what another process wrote from older contents is found, and the change made again."""
    with open_store("object store", tmp_path) as store:
        store.deploy(1)
        store.add(2, 3)
        before = {name: store.text(name) for name in ("releases.json", "models.config")}
        write, rivals = StoreFiles.write, ["one"]

        def overtaken(self, name, text):
            write(self, name, text)
            if name == "models.config" and rivals:
                rivals.clear()
                for other, old in before.items():
                    store.put(other, old)
                releases.release(**store.where, version=3, label="canary")

        monkeypatch.setattr(StoreFiles, "write", overtaken)
        assert releases.release(**store.where, version=2).changed
        assert store.served() == ([1, 2, 3], {"stable": 2, "canary": 3})
        assert store.actions() == [("deploy", 1, None), ("canary", 3, None), ("deploy", 2, 1)]


def started(code: str, *arguments: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, stderr=subprocess.PIPE
    )


RELEASE = """
import sys
from graftflow import releases
store, model, *versions = sys.argv[1:]
for version in versions:
    releases.release(store=store, model_name=model, version=int(version))
"""


def test_deployments_at_once_lose_nothing(folder):
    versions = {"pets": range(1, 6), "dogs": range(11, 16), "cats": range(21, 26)}
    for model, numbers in versions.items():
        folder.add(*numbers, model=model)
    # Without labels so far, the newest of each is taken for the stable one.
    processes = [
        started(RELEASE, folder.uri, model, *numbers)
        for model, numbers in versions.items()
        for numbers in (numbers[:3], numbers[2:])
    ]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, b"")
    histories = json.loads(folder.text("releases.json"))["models"]
    for model, numbers in versions.items():
        assert {e["version"] for e in histories[model]} == set(numbers)
        assert folder.entry(model).version_labels["stable"] == histories[model][-1]["labels"]["stable"]
        for before, after in zip(histories[model], histories[model][1:], strict=False):
            assert after["replaced"] == before["labels"]["stable"]


BACK_AND_FORTH = """
import sys
from graftflow import releases
print("ready", file=sys.stderr, flush=True)
while True:
    releases.promote(store=sys.argv[1], model_name="pets", version=2)
    releases.rollback(store=sys.argv[1], model_name="pets")
"""


def test_files_survive_a_kill_at_any_moment(folder):
    chance = random.Random(0)
    for version in (1, 2):
        folder.deploy(version)
    releases.rollback(**folder.where)
    for _ in range(8):
        process = started(BACK_AND_FORTH, folder.uri)
        process.stderr.readline()
        time.sleep(chance.uniform(0.01, 0.15))
        process.kill()
        process.communicate(timeout=20)
        loaded, labels = folder.served()
        assert set(labels) == {"stable"}
        assert labels["stable"] in loaded
        rows = releases.list_versions(**folder.where)
        assert {r.version: r.label for r in rows}[labels["stable"]] == "stable"
    assert "found" not in {action for action, _, _ in folder.actions()}
    releases.promote(**folder.where, version=2)
    releases.rollback(**folder.where)
    assert folder.served() == ([1], {"stable": 1})
    assert sorted(os.listdir(folder.uri)) == ["models.config", "pets", "releases.json"]
