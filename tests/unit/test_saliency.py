"""Maps of what an answer rests on obey their axioms, on classifiers with a backbone inside, and need the weights."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from graftflow import attacks, preprocessing
from graftflow.errors import InputError
from graftflow.saliency import Explainer, last_maps, shuffled_weights, similarity
from graftflow.training import load_classifier
from tests.conftest import Artifacts
from tests.unit.small_classifier import SIDE, build_small_classifier


@pytest.fixture(scope="module")
def pixels() -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).uniform(0, 1, (3, SIDE, SIDE, 3)), tf.float32)


@pytest.fixture(scope="module")
def photographs(artifacts: Artifacts) -> tf.Tensor:
    from graftflow import datasets

    records = datasets.read_split(artifacts.dataset, "test").take(3)
    return preprocessing.decode_batch(tf.stack([record["image"] for record in records]), 224)


@pytest.fixture(scope="module")
def transferred(artifacts: Artifacts) -> Any:
    return load_classifier(artifacts.model)


def test_grad_cam_of_pooled_maps_and_a_linear_head_is_the_class_activation_map(pixels: tf.Tensor) -> None:
    # Selvaraju et al. 2017, section 3.1: with global average pooling it is CAM, Σ wₖ Aᵏ.
    classifier = build_small_classifier(4)
    explainer = Explainer(classifier)
    assert explainer.layer == "relu12"
    backbone = classifier.get_layer("backbone")
    maps = keras.Model(backbone.input, backbone.get_layer("relu12").output)(
        classifier.get_layer("preprocessing")(pixels)
    )
    kernel = classifier.get_layer("logits").kernel.numpy()
    for label in range(4):
        expected = np.maximum(np.asarray(maps) @ kernel[:, label], 0)
        expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-12)
        np.testing.assert_allclose(explainer.grad_cam(pixels, [label] * 3), expected, atol=1e-5)


def test_grad_cam_on_a_transferred_network_differs_by_class(transferred: Any, photographs: tf.Tensor) -> None:
    explainer = Explainer(transferred)
    maps = [explainer.grad_cam(photographs, [label] * 3) for label in (0, 1)]
    assert maps[0].shape == (3, 7, 7)
    assert maps[0].min() >= 0
    assert maps[0].max() == pytest.approx(1)
    assert not np.allclose(maps[0], maps[1], atol=0.05)


def test_attributions_add_up_to_the_change_of_the_logit(transferred: Any, photographs: tf.Tensor) -> None:
    explainer = Explainer(transferred)
    predicted = np.asarray(transferred(photographs)).argmax(axis=1).tolist()
    found = explainer.integrated_gradients(photographs, predicted)
    logits = attacks.logits_model(transferred)
    grey = logits(tf.fill((1, 224, 224, 3), 0.5)).numpy()[0, predicted]
    change = logits(photographs).numpy()[range(3), predicted] - grey
    np.testing.assert_allclose(found.difference, change, rtol=1e-3)
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)), change, rtol=0.2)
    apart = np.abs(found.maps.sum(axis=(1, 2)) - found.difference) / np.abs(found.difference)
    np.testing.assert_allclose(found.error, apart, atol=1e-3)


def test_attributions_of_a_linear_network_are_exact(pixels: tf.Tensor) -> None:
    # Of random weights some give a change so small that rounding is a large part of it.
    keras.utils.set_random_seed(0)
    inner = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="only")(inner)
    backbone = keras.Model(inner, keras.layers.GlobalAveragePooling2D()(x), name="backbone")
    outer = keras.Input((SIDE, SIDE, 3))
    scaled = keras.layers.Rescaling(3.0, name="preprocessing")(outer)
    logits = keras.layers.Dense(2, name="logits")(backbone(scaled))
    model = keras.Model(outer, keras.layers.Softmax(name="probabilities")(logits))
    found = Explainer(model).integrated_gradients(pixels, [0, 1, 0], steps=3)
    # ∫ 3u² du by three middles is 35/36.
    np.testing.assert_allclose(found.error, 1 / 36, atol=5e-3)
    finer = Explainer(model).integrated_gradients(pixels, [0, 1, 0], steps=3, tolerance=0.001)
    assert finer.error.max() < 0.005
    grey = Explainer(model).integrated_gradients(tf.fill((1, SIDE, SIDE, 3), 0.5), [0])
    assert not grey.maps.any()


def test_shuffled_weights_change_the_maps_and_come_back(transferred: Any, photographs: tf.Tensor) -> None:
    explainer = Explainer(transferred)
    before, kept = explainer.grad_cam(photographs, [0] * 3), transferred.get_weights()
    with shuffled_weights(transferred, seed=0):
        during = explainer.grad_cam(photographs, [0] * 3)
        for one, other in zip(kept, transferred.get_weights(), strict=True):
            np.testing.assert_array_equal(np.sort(one, axis=None), np.sort(other, axis=None))
    assert similarity(before, during) < 0.5
    np.testing.assert_array_equal(explainer.grad_cam(photographs, [0] * 3), before)
    for one, other in zip(kept, transferred.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_that_is_asked_of_a_network_is_compiled_once(pixels: tf.Tensor) -> None:
    classifier = build_small_classifier(3)
    explainer = Explainer(classifier)
    for count in (3, 1):
        explainer.grad_cam(pixels[:count], [0] * count)
        with shuffled_weights(classifier, seed=0):
            explainer.integrated_gradients(pixels[:count], [1] * count, steps=4)
    assert explainer._answer.experimental_get_tracing_count() == 1


def test_weights_come_back_after_an_error() -> None:
    model = build_small_classifier(3)
    kept = model.get_weights()
    with pytest.raises(RuntimeError), shuffled_weights(model, seed=0):
        raise RuntimeError
    assert all(np.array_equal(one, other) for one, other in zip(kept, model.get_weights(), strict=True))


def test_similarity_is_of_ranks() -> None:
    maps = np.random.default_rng(0).uniform(0, 1, (2, 7, 7)).astype(np.float32)
    assert similarity(maps, maps**3) == pytest.approx(1)
    assert similarity(maps, -maps) == pytest.approx(-1)
    assert similarity(maps, np.ones_like(maps)) == 0
    large = np.random.default_rng(1).uniform(0, 1, (1, 112, 112)).astype(np.float32)
    assert similarity(large, large) == pytest.approx(1)


def test_a_backbone_without_maps_and_no_steps_are_refused(pixels: tf.Tensor) -> None:
    inner = keras.Input((SIDE,))
    flat = keras.Model(inner, keras.layers.Dense(2)(inner), name="flat")
    with pytest.raises(InputError, match="must have a layer with maps .* Received: 'flat'"):
        last_maps(flat)
    with pytest.raises(InputError, match="steps must be at least 1. Received: 0"):
        Explainer(build_small_classifier(3)).integrated_gradients(pixels, [0] * 3, steps=0)
