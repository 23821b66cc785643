"""A version and its lineage in a Model Registry: once, with all that is known, and refused in one line."""

from pathlib import Path

import pytest

from graftflow import stored_lineages
from graftflow.errors import InputError
from graftflow.lineage_commands import main
from graftflow.model_registry import ModelRegistry, properties_of, read_token
from tests.unit.registry_server import Registry, running_registry
from tests.unit.test_lineages import METRICS, put_in_store, write_export


@pytest.fixture
def store(tmp_path) -> str:
    put_in_store(str(tmp_path / "store"), write_export(tmp_path / "saved_model"))
    return str(tmp_path / "store")


@pytest.fixture(params=["v1alpha3", "v1"])
def either_registry(request):
    with running_registry(request.param) as server:
        yield server


@pytest.fixture
def registry():
    with running_registry() as server:
        yield server


def register(registry: Registry, store: str, *options: str, model: str = "pets") -> int:
    return main(["register", model, "--store", store, "--registry", registry.url, *options])


def test_a_version_is_registered_with_its_lineage(either_registry, store, capsys):
    registry = either_registry
    assert register(registry, store) == 0
    assert "pets version 3: registered" in capsys.readouterr().out
    (model,), (version,), (artifact,) = registry.models, registry.versions, registry.artifacts
    assert model["name"] == "pets"
    assert (version["name"], version["registeredModelId"]) == ("3", model["id"])
    told = {
        name: next(v for k, v in value.items() if k != "metadataType")
        for name, value in version["customProperties"].items()
    }
    found = stored_lineages.find("pets", store=store)
    assert (
        told
        | {
            "run_id": "run-7",
            "commit": "c0ffee-dirty",
            "image": "graftflow:1",
            "dataset_digest": "d" * 64,
            "backbone_weights_sha256": "b" * 64,
            "sha256": found.sha256,
            "seed": "5",
            "parameters.recipe.learning_rate": "0.0001",
            "validation_fine_tuned_accuracy": 0.875,
            "test_accuracy": METRICS["accuracy"]["value"],
        }
        == told
    )
    assert artifact["uri"] == f"file://{store}/pets/3"
    assert artifact["modelFormatName"] == "saved_model"
    assert (artifact["modelSourceKind"], artifact["modelSourceId"]) == ("pipelines", "run-7")
    assert artifact["parent"] == version["id"]


def test_registered_again_nothing_changes(either_registry, store, capsys):
    assert register(either_registry, store) == 0
    before = len(either_registry.changes())
    assert register(either_registry, store) == 0
    assert "pets version 3: already there" in capsys.readouterr().out
    assert len(either_registry.changes()) == before == 3


def test_another_address_updates_the_artifact_and_keeps_what_others_noted(registry, store, capsys):
    assert register(registry, store) == 0
    theirs = {"metadataType": "MetadataStringValue", "string_value": "by hand"}
    registry.artifacts[0]["customProperties"]["approved"] = theirs
    registry.versions[0]["customProperties"]["approved"] = theirs
    assert register(registry, store, "--uri", "gs://bucket/models/pets/3") == 0
    assert "pets version 3: updated" in capsys.readouterr().out
    assert registry.artifacts[0]["uri"] == "gs://bucket/models/pets/3"
    assert registry.artifacts[0]["customProperties"]["approved"] == theirs
    assert registry.versions[0]["customProperties"]["approved"] == theirs


def test_what_was_cut_off_is_completed(registry, store):
    assert register(registry, store) == 0
    registry.artifacts.clear()
    assert register(registry, store) == 0
    assert len(registry.artifacts) == len(registry.versions) == len(registry.models) == 1


def test_another_content_under_a_registered_number_is_refused(registry, store, tmp_path, capsys):
    assert register(registry, store) == 0
    other = write_export(tmp_path / "other")
    (other / "3" / "saved_model.pb").write_bytes(b"another graph")
    (other / "export.json").unlink()
    before = len(registry.changes())
    assert register(registry, store, "--name", "pets", model=str(other / "3")) == 1
    assert "A registered version is never overwritten" in capsys.readouterr().err
    assert len(registry.changes()) == before


def test_changed_files_are_not_registered(registry, store, capsys):
    (Path(store) / "pets" / "3" / "saved_model.pb").write_bytes(b"grapf")
    assert register(registry, store) == 1
    assert "Only a version as it was exported can be registered" in capsys.readouterr().err
    assert registry.requests == []


def test_an_artifact_needs_a_name(registry, tmp_path, capsys):
    artifact = str(write_export(tmp_path / "saved"))
    assert register(registry, "models", model=artifact) == 1
    assert "name must be given" in capsys.readouterr().err
    assert register(registry, "models", "--name", "pets", model=artifact) == 0
    assert registry.models[0]["name"] == "pets"


def test_a_token_comes_from_a_file_or_the_environment(registry, store, tmp_path, monkeypatch, capsys):
    for name in ("GRAFTFLOW_REGISTRY_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    registry.token = "s3cret"
    assert register(registry, store) == 1
    assert "Received: 401" in capsys.readouterr().err
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    assert register(registry, store, "--token-file", str(file)) == 0
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    assert register(registry, store) == 0
    monkeypatch.setenv("GRAFTFLOW_REGISTRY_TOKEN", "wrong")
    assert register(registry, store) == 1
    said = capsys.readouterr()
    assert "s3cret" not in said.out + said.err


def test_a_token_file_that_is_none_is_one_line(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for name, expected in (("missing", "must be readable"), ("empty", "must hold one token")):
        with pytest.raises(InputError, match=expected):
            read_token(str(tmp_path / name))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((302, "text/html", b""), "must let this user in. Received: 302"),
        ((200, "text/html", b"<html>log in</html>"), "must answer with JSON. Received: 200 and text/html"),
        ((200, "application/json", b"[]"), "must answer with an object"),
        ((404, "text/plain", b"no"), "speaks v1alpha3 or v1"),
        ((500, "application/json", b'{"message": "the database\\nis gone"}'), "500 .*: the database is gone"),
    ],
)
def test_what_is_no_registry_is_one_line(registry, store, capsys, answer, expected):
    registry.answer = answer
    with pytest.raises(InputError, match=expected):
        ModelRegistry(registry.url).register(stored_lineages.find("pets", store=store))
    assert register(registry, store) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert registry.changes() == []


@pytest.mark.parametrize("url", ["localhost:8080", "http://", "file:///etc"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InputError, match=r"registry must be http\(s\)://host"):
        ModelRegistry(url)


def test_an_unreachable_registry_is_one_line(store):
    with running_registry() as server:
        url = server.url
    with pytest.raises(InputError, match="must be reachable. Received: ConnectionError"):
        ModelRegistry(url).register(stored_lineages.find("pets", store=store))


def test_a_version_without_lineage_still_has_its_hash(tmp_path):
    folder = tmp_path / "3"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    assert set(properties_of(stored_lineages.find(str(folder)))) == {"sha256"}
