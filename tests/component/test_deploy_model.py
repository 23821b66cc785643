"""The step deploy_model: reads dataset, saved_model and evaluation, writes the artifact deployment."""

import json

import pytest
from kfp import dsl

from components.deploy_model import deploy_model
from graftflow import releases
from graftflow.errors import InputError
from tests.unit.lineage_files import write_example
from tests.unit.pushed_models import copy_export, seal, write_pushed


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    pushed = write_pushed(tmp_path_factory.mktemp("pushed"))
    write_example(pushed.saved_model / "3")
    seal(pushed.saved_model)
    return pushed


def deploy(pushed, tmp_path, store, *, label="stable", **others):
    deployment = dsl.Artifact(uri=str(tmp_path / "deployment"))
    paths = pushed.inputs(**others)
    deploy_model.python_func(
        dataset=dsl.Dataset(uri=str(paths["dataset"])),
        saved_model=dsl.Model(uri=str(paths["saved_model"])),
        evaluation=dsl.Artifact(uri=str(paths["evaluation"])),
        store=str(store),
        model_name="pets",
        label=label,
        deployment=deployment,
    )
    return deployment


def test_the_step_says_where_the_version_is_and_what_a_server_made_of_it(pushed, tmp_path, capsys):
    store = tmp_path / "store"
    deployment = deploy(pushed, tmp_path, store, label="canary")
    facts = json.loads((tmp_path / "deployment" / "deployment.json").read_text())
    validation, lineage = facts.pop("validation"), facts.pop("lineage")
    assert facts == {
        "uri": str(store / "pets" / "3"),
        "version": "3",
        "status": "published",
        "model_name": "pets",
        "label": "canary",
        "previous": None,
    }
    assert set(validation) == {"pictures", "largest_difference", "rest", "grpc", "seconds"}
    evaluated = json.loads((pushed.evaluation / "evaluation.json").read_text())["metrics"]
    assert lineage == {**write_example(tmp_path / "example"), "test": evaluated}
    told = {n: deployment.metadata[n] for n in ("run_id", "commit", "image", "dataset_digest")}
    assert told == {
        "run_id": "run-7",
        "commit": "c0ffee-dirty",
        "image": "graftflow:1",
        "dataset_digest": "d" * 64,
    }
    assert deployment.metadata["backbone_weights_sha256"] == "b" * 64
    assert deployment.metadata["label"] == "canary"
    assert deployment.metadata["largest_difference"] == validation["largest_difference"] <= 1e-5
    assert json.loads(json.dumps(deployment.metadata)) == deployment.metadata
    assert (store / "pets" / "3" / "saved_model.pb").is_file()
    (row,) = releases.list_versions(store=str(store), model_name="pets")
    assert (row.version, row.label) == (3, "canary")
    assert "a server answered 8 pictures as evaluated" in capsys.readouterr().out


def test_the_step_fails_on_a_corrupt_artifact_and_writes_nothing(pushed, tmp_path):
    corrupt = copy_export(pushed, tmp_path / "corrupt")
    (corrupt / "3" / "saved_model.pb").write_bytes(b"gr@ph")
    with pytest.raises(InputError, match="3/saved_model.pb' with the SHA-256"):
        deploy(pushed, tmp_path, tmp_path / "store", saved_model=corrupt)
    assert not (tmp_path / "deployment").exists()
    assert not (tmp_path / "store").exists()
