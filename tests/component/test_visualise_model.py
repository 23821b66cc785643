"""The step that draws, as KFP calls it."""

import json
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.visualise_model import visualise_model
from graftflow.errors import InputError
from tests.conftest import Artifacts
from tests.unit.small_classifier import write_small_dataset, write_small_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("inputs")
    dataset = write_small_dataset(root)
    model = write_small_model(root / "model", dataset)
    return {"dataset": dsl.Dataset(uri=str(dataset)), "model": dsl.Model(uri=str(model))}


def run(path: Path, inputs: dict[str, Any], **settings: Any) -> dsl.Artifact:
    visuals = dsl.Artifact(uri=str(path / "visuals"))
    defaults = {"backbone_weights": "none", "ideal_classes": " zebra, Siamese cat ,", "steps": 2}
    visualise_model.python_func(**inputs, **{**defaults, **settings}, seed=0, visuals=visuals)
    return visuals


def test_the_step_writes_the_artifact(tmp_path: Path, inputs: dict[str, Any]) -> None:
    visuals = run(tmp_path, inputs)
    content = json.loads((Path(visuals.path) / "visuals.json").read_text())
    for row in [*content["ideal"], *content["feature_maps"], content["picture"]]:
        assert (Path(visuals.path) / row["file"]).is_file()
    facts = json.loads(json.dumps(visuals.metadata, allow_nan=False))
    assert facts == {
        "ideal_pictures": 3,
        "explained": 6,
        "maps_depend_on_weights": content["explanations"]["sanity"]["passed"],
        "note": content["note"],
    }
    assert content["map"] is None


def test_the_step_takes_features_and_evaluation(tmp_path: Path, artifacts: Artifacts) -> None:
    inputs = {
        "dataset": dsl.Dataset(uri=str(artifacts.dataset)),
        "features": dsl.Dataset(uri=str(artifacts.features)),
        "model": dsl.Model(uri=str(write_small_model(tmp_path / "model", artifacts.dataset))),
        "evaluation": dsl.Artifact(uri=str(artifacts.evaluation)),
    }
    visuals = run(tmp_path, inputs, ideal_classes="")
    content = json.loads((Path(visuals.path) / "visuals.json").read_text())
    assert len(content["map"]["points"]) == 36
    assert {point["split"] for point in content["map"]["points"]} == {"train", "test"}


def test_the_step_explains_an_unknown_class(tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Near it: 'zebra'"):
        run(tmp_path, inputs, ideal_classes="zebrra")
    assert list(tmp_path.iterdir()) == []


def test_no_ideal_classes_is_allowed(tmp_path: Path, inputs: dict[str, Any]) -> None:
    assert run(tmp_path, inputs, ideal_classes="").metadata["note"] == ""
