"""The visuals artifact holds what it names, and its parts fit the other artifacts."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from graftflow import backbones, datasets, preprocessing
from graftflow.errors import InputError
from graftflow.feature_maps import first_layers
from graftflow.visualisation import write_visuals
from tests.conftest import Artifacts
from tests.unit.small_classifier import (
    SIDE,
    build_small_classifier,
    write_small_dataset,
    write_small_model,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model") / "model", dataset)


def write(folder: Path, model: Path, dataset: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    defaults = {"backbone_weights": "none", "ideal_classes": ["zebra"], "steps": 4, "seed": 0}
    return write_visuals(folder, model_path=model, dataset_path=dataset, **{**defaults, **settings})


def write_evaluation(folder: Path, dataset: Path, *, wrong: int) -> Path:
    """Write what an evaluation says of its first test pictures when it takes them for the next class."""
    folder.mkdir()
    classes = datasets.load_info(dataset).classes
    rows = []
    for record in datasets.read_split(dataset, "test").take(wrong).as_numpy_iterator():
        label, predicted = classes[record["label"]], classes[(record["label"] + 1) % len(classes)]
        rows.append(
            {"path": record["path"].decode(), "label": label, "predicted": predicted, "probability": 0.7}
        )
    (folder / "evaluation.json").write_text(json.dumps({"mistakes": rows}))
    lines = [f"{row['path']},{row['label']},{row['predicted']}" for row in rows]
    (folder / "predictions.csv").write_text("\n".join(["path,label,predicted", *lines]) + "\n")
    return folder


@pytest.fixture
def small_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of 1000 outputs that is as small as the tests' own."""
    monkeypatch.setattr(
        backbones, "build_imagenet_classifier", lambda name, *, weights: build_small_classifier(1000)
    )


def test_the_artifact_names_files_that_are_there_and_small(
    tmp_path: Path, model: Path, dataset: Path, small_imagenet: None
) -> None:
    found = write(
        tmp_path / "a", model, dataset, backbone_weights="imagenet", ideal_classes=["zebra", "siamese cat"]
    )
    assert found == json.loads((tmp_path / "a" / "visuals.json").read_text())
    assert [(row["network"], row["class"], row["steps"]) for row in found["ideal"]] == [
        ("ImageNet", "zebra", 4),
        ("ImageNet", "siamese cat", 4),
        ("trained", "blue", 2),
        ("trained", "green", 2),
        ("trained", "red", 2),
    ]
    explained = [*found["explanations"]["pictures"], found["explanations"]["sanity"]]
    rows = [*found["ideal"], *found["feature_maps"], found["picture"], *explained]
    named = [row["file"] for row in rows] + [row["animation"] for row in rows if "animation" in row]
    assert sum(name.endswith(".webp") for name in named) == 2
    there = {path.name for path in (tmp_path / "a").iterdir()}
    assert there == {*named, "visuals.json"}
    for name in named:
        assert (tmp_path / "a" / name).stat().st_size <= (110_000 if name.endswith(".webp") else 60_000)
        Image.open(tmp_path / "a" / name).verify()
    assert found["picture"]["path"].startswith(found["picture"]["label"] + "/")
    assert found["note"] == ""


def test_probabilities_are_those_of_the_files(tmp_path: Path, model: Path, dataset: Path) -> None:
    found = write(tmp_path / "a", model, dataset, steps=60)
    classifier = keras.models.load_model(model / "model.keras")
    for index, row in enumerate(found["ideal"]):
        pixels = preprocessing.decode(tf.constant((tmp_path / "a" / row["file"]).read_bytes()), SIDE)
        probability = float(classifier(pixels[None])[0, index])
        assert row["probability"] == pytest.approx(probability, abs=1e-5)
        assert probability > 0.8


def test_without_weights_the_note_says_why_imagenet_is_missing(
    tmp_path: Path, model: Path, dataset: Path
) -> None:
    found = write(tmp_path / "a", model, dataset)
    assert {row["network"] for row in found["ideal"]} == {"trained"}
    assert "weights='none'" in found["note"]


def test_a_classifier_that_cannot_be_had_is_a_note(
    tmp_path: Path, model: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, *, weights: str) -> Any:
        raise InputError("the file has no ImageNet layer.")

    monkeypatch.setattr(backbones, "build_imagenet_classifier", refuse)
    found = write(tmp_path / "a", model, dataset, backbone_weights="some.h5")
    assert found["note"] == "No ImageNet pictures: the file has no ImageNet layer."


def test_no_classes_asked_for_is_no_remark(tmp_path: Path, model: Path, dataset: Path) -> None:
    found = write(tmp_path / "a", model, dataset, ideal_classes=[], num_trained_classes=0)
    assert found["ideal"] == []
    assert found["note"] == ""


def test_feature_maps_are_those_of_the_nested_backbone(tmp_path: Path, model: Path, dataset: Path) -> None:
    found = write(tmp_path / "a", model, dataset, num_trained_classes=0)
    assert [(row["layer"], row["shape"]) for row in found["feature_maps"]] == [
        ("relu8", [16, 16, 8]),
        ("relu12", [8, 8, 12]),
    ]


def test_one_layer_is_enough(tmp_path: Path, dataset: Path, model: Path) -> None:
    pixels = keras.Input((SIDE, SIDE, 3))
    inner = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(5, 3, name="only", activation="relu")(inner)
    backbone = keras.Model(inner, keras.layers.GlobalAveragePooling2D()(x), name="backbone")
    x = keras.layers.Rescaling(2.0, name="preprocessing")(pixels)
    x = keras.layers.Dense(3, name="logits")(backbone(x))
    classifier = keras.Model(pixels, keras.layers.Softmax(name="probabilities")(x))
    (tmp_path / "model").mkdir()
    classifier.save(tmp_path / "model" / "model.keras")
    (tmp_path / "model" / "model.json").write_text((model / "model.json").read_text())
    found = write(tmp_path / "a", tmp_path / "model", dataset, num_trained_classes=0)
    assert [row["layer"] for row in found["feature_maps"]] == ["only"]


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv3small", "resnet50v2"])
def test_first_layers_are_early_activations_of_falling_resolution(name: str) -> None:
    network = backbones.build(name, weights="none").get_layer("backbone")
    layers = first_layers(network)
    sides = [layer.output.shape[1] for layer in layers]
    assert sides == [112, 56, 28, 14, 7]
    maps = keras.Model(network.input, [layer.output for layer in layers])(np.zeros((1, 224, 224, 3)))
    assert [m.shape[1] for m in maps] == sides


def test_explained_pictures_begin_with_the_mistakes(tmp_path: Path, model: Path, dataset: Path) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", dataset, wrong=2)
    found = write(tmp_path / "a", model, dataset, evaluation_path=evaluation, num_trained_classes=0)
    said = json.loads((evaluation / "evaluation.json").read_text())["mistakes"]
    rows = found["explanations"]["pictures"]
    assert [row["path"] for row in rows[:2]] == [mistake["path"] for mistake in said]
    assert len({row["path"] for row in rows}) == 6
    assert found["explanations"]["layer"] == "relu12"
    for row in rows:
        assert row["path"].startswith(row["label"] + "/")
        assert row["error"] < 0.2
    assert found["neighbours"] == []
    assert found["map"] is None


def test_the_check_of_the_maps_is_stored(tmp_path: Path, model: Path, dataset: Path) -> None:
    sanity = write(tmp_path / "a", model, dataset, num_trained_classes=0)["explanations"]["sanity"]
    assert sanity["passed"] == (max(sanity["grad_cam"], sanity["integrated_gradients"]) < 0.5)
    assert (tmp_path / "a" / sanity["file"]).is_file()


def test_mistakes_have_neighbours_and_rings_on_the_map(tmp_path: Path, artifacts: Artifacts) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", artifacts.dataset, wrong=2)
    settings = {"features_path": artifacts.features, "evaluation_path": evaluation}
    model = write_small_model(tmp_path / "model", artifacts.dataset)
    found = write(tmp_path / "a", model, artifacts.dataset, num_trained_classes=0, **settings)
    said = json.loads((evaluation / "evaluation.json").read_text())["mistakes"]
    assert [row["path"] for row in found["neighbours"]] == [mistake["path"] for mistake in said]
    ringed = {
        point["path"]: point["predicted"]
        for point in found["map"]["points"]
        if point["predicted"] is not None
    }
    assert ringed == {mistake["path"]: mistake["predicted"] for mistake in said}
    named = [row["file"] for row in found["map"]["thumbnails"]]
    for row in found["neighbours"]:
        named += [row["file"], *(near["file"] for near in row["nearest"])]
    for name in named:
        Image.open(tmp_path / "a" / name).verify()


def test_an_evaluation_of_other_pictures_is_refused(tmp_path: Path, model: Path, dataset: Path) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", dataset, wrong=1)
    said = json.loads((evaluation / "evaluation.json").read_text())
    said["mistakes"][0]["path"] = "red/none.png"
    (evaluation / "evaluation.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="Received: 'red/none.png', which is none"):
        write(tmp_path / "a", model, dataset, evaluation_path=evaluation, num_trained_classes=0)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"steps": 0}, "steps must be at least 1. Received: 0"),
        ({"num_trained_classes": -1}, "num_trained_classes must be at least 0"),
        ({"ideal_classes": ["zebr"]}, "Received: 'zebr'. Near it: 'zebra'"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rule):
        write(tmp_path / "a", tmp_path / "no-model", tmp_path / "no-data", **settings)
