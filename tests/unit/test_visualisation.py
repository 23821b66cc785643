"""Ideal pictures are what a classifier is sure of; feature maps come out of nested backbones."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from graftflow import attacks, backbones
from graftflow.errors import InputError
from graftflow.visualisation import draw_ideal, first_layers, write_visuals
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
    named = [row["file"] for row in [*found["ideal"], *found["feature_maps"], found["picture"]]]
    there = {path.name for path in (tmp_path / "a").iterdir()}
    assert there == {*named, "visuals.json"}
    for name in named:
        assert (tmp_path / "a" / name).stat().st_size <= 60_000
        Image.open(tmp_path / "a" / name).verify()
    assert found["picture"]["path"].startswith(found["picture"]["label"] + "/")
    assert found["note"] == ""


def test_probabilities_are_those_of_the_files(tmp_path: Path, model: Path, dataset: Path) -> None:
    found = write(tmp_path / "a", model, dataset, steps=60)
    classifier = keras.models.load_model(model / "model.keras")
    for index, row in enumerate(found["ideal"]):
        pixels = np.asarray(Image.open(tmp_path / "a" / row["file"]), np.float32)[None] / 255
        probability = float(classifier(pixels)[0, index])
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


def test_the_same_seed_gives_the_same_pictures(model: Path) -> None:
    logits_of = attacks.logits_model(keras.models.load_model(model / "model.keras"))

    def draw(seed: int) -> np.ndarray:
        return draw_ideal(logits_of, [0, 2], size=SIDE, steps=5, seed=seed)

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    assert draw(1).shape == (2, SIDE, SIDE, 3)
    assert draw(1).dtype == np.float32
    assert draw(1).min() == 0
    assert draw(1).max() == 1


def test_a_picture_does_not_depend_on_the_others(model: Path) -> None:
    logits_of = attacks.logits_model(keras.models.load_model(model / "model.keras"))
    alone = draw_ideal(logits_of, [2], size=SIDE, steps=3, seed=0)[0]
    together = draw_ideal(logits_of, [0, 2], size=SIDE, steps=3, seed=0)[1]
    np.testing.assert_allclose(alone, together, atol=0.02)


def test_odd_sides_are_drawn_too(model: Path) -> None:
    drawn = draw_ideal(lambda x: tf.reduce_mean(x, axis=(1, 2)), [2], size=15, steps=20, seed=0)
    assert drawn.shape == (1, 15, 15, 3)
    assert drawn[..., 2].mean() > drawn[..., 0].mean()


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
    assert sides == [112, 56, 28, 14]
    maps = keras.Model(network.input, [layer.output for layer in layers])(np.zeros((1, 224, 224, 3)))
    assert [m.shape[1] for m in maps] == sides


def test_efficientnet_lite_draws_a_siamese_cat_it_is_sure_of() -> None:
    classifier = backbones.build_imagenet_classifier("efficientnet_lite0")
    drawn = draw_ideal(attacks.logits_model(classifier), [284], size=224, steps=80, seed=0)
    assert float(classifier(drawn)[0, 284]) > 0.99


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
