"""The step deploy_model: reads the artifact saved_model, writes the artifact deployment."""

import json

import pytest
from kfp import dsl

from components.deploy_model import deploy_model
from graftflow.errors import InputError
from graftflow.files import sha256_directory, write_json


@pytest.fixture
def saved_model(tmp_path):
    folder = tmp_path / "saved_model"
    (folder / "5" / "variables").mkdir(parents=True)
    (folder / "5" / "saved_model.pb").write_bytes(b"graph")
    (folder / "5" / "variables" / "variables.index").write_bytes(b"index")
    write_json(folder / "export.json", {"version": "5", "sha256": sha256_directory(folder / "5")})
    return dsl.Model(uri=str(folder))


def deploy(tmp_path, saved_model, store):
    deployment = dsl.Artifact(uri=str(tmp_path / "deployment"))
    deploy_model.python_func(
        saved_model=saved_model, store=str(store), model_name="pets", deployment=deployment
    )
    return deployment


def test_the_step_says_where_the_version_is(tmp_path, saved_model):
    store = tmp_path / "store"
    for status in ("published", "already there"):
        deployment = deploy(tmp_path, saved_model, store)
        facts = json.loads((tmp_path / "deployment" / "deployment.json").read_text())
        assert facts == {
            "uri": str(store / "pets" / "5"),
            "version": "5",
            "status": status,
            "model_name": "pets",
        }
        assert deployment.metadata == facts
    assert (store / "pets" / "5" / "saved_model.pb").read_bytes() == b"graph"


def test_the_step_fails_on_a_corrupt_artifact_and_writes_nothing(tmp_path, saved_model):
    (tmp_path / "saved_model" / "5" / "saved_model.pb").write_bytes(b"gr@ph")
    with pytest.raises(InputError, match="corrupt"):
        deploy(tmp_path, saved_model, tmp_path / "store")
    assert not (tmp_path / "deployment").exists()
    assert not (tmp_path / "store").exists()
