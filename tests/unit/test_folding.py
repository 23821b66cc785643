"""Folding changes what a network costs and nothing of what it answers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from graftflow import folding


@pytest.fixture
def classifier() -> keras.Model:
    """Normalisations behind convolutions of both kinds, and some that must stay; statistics far from 0 and 1."""
    layers = keras.layers
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, 2, "same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization(name="behind_stem")(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization(scale=False, name="behind_depthwise")(x)
    kept = layers.Conv2D(16, 1, name="seen_twice")(x)
    y = layers.BatchNormalization(name="behind_seen_twice")(kept)
    y = layers.Conv2D(16, 1, activation="relu", name="activated")(layers.Add()([y, kept]))
    y = layers.BatchNormalization(name="behind_activated")(y)
    network = keras.Model(image, layers.GlobalAveragePooling2D()(y), name="backbone")
    generator = np.random.default_rng(0)
    for layer in network.layers:
        layer.set_weights([generator.uniform(0.2, 1.5, value.shape) for value in layer.get_weights()])
    network.trainable = False
    pixels = keras.Input((16, 16, 3), name="pixels")
    logits = layers.Dense(4, name="logits")(network(pixels, training=False))
    return keras.Model(pixels, layers.Activation("softmax", name="probabilities")(logits))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 1, (3, 16, 16, 3)).astype(np.float32)


def _logits_and_gradient(model: keras.Model, pixels: np.ndarray) -> list[np.ndarray]:
    x = tf.constant(pixels)
    logits_of = keras.Model(model.inputs, model.get_layer("logits").output)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = logits_of(x, training=False)
    return [logits.numpy(), tape.gradient(logits, x).numpy()]


def _norms(model: keras.Model) -> set[str]:
    return {layer.name for layer in folding.normalisations(model.get_layer("backbone"))}


def test_answers_and_gradients_stay(classifier: keras.Model, pixels: np.ndarray) -> None:
    copy = folding.folded(classifier)
    for one, other in zip(
        _logits_and_gradient(classifier, pixels), _logits_and_gradient(copy, pixels), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=2e-4, atol=1e-4 * np.abs(one).max())


def test_only_what_follows_a_convolution_alone_is_folded(classifier: keras.Model) -> None:
    before = [value.copy() for value in classifier.get_weights()]
    assert _norms(folding.folded(classifier)) == {"behind_seen_twice", "behind_activated"}
    assert len(_norms(classifier)) == 4
    for one, other in zip(before, classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_small_scale_stays_a_layer(classifier: keras.Model, pixels: np.ndarray) -> None:
    norm = classifier.get_layer("backbone").get_layer("behind_stem")
    norm.set_weights([np.full(8, 1e-6), *norm.get_weights()[1:]])
    copy = folding.folded(classifier, least_scale=1e-3)
    assert "behind_stem" in _norms(copy)
    np.testing.assert_allclose(copy(pixels), classifier(pixels), rtol=1e-3, atol=1e-6)


def test_new_weights_are_taken_over(classifier: keras.Model, pixels: np.ndarray) -> None:
    copy = folding.folded(classifier)
    generator = np.random.default_rng(2)
    classifier.set_weights([generator.uniform(0.2, 1.5, value.shape) for value in classifier.get_weights()])
    stale = float(
        np.abs(_logits_and_gradient(copy, pixels)[0] - _logits_and_gradient(classifier, pixels)[0]).max()
    )
    folding.refold(copy, classifier)
    one, other = (_logits_and_gradient(model, pixels)[0] for model in (classifier, copy))
    np.testing.assert_allclose(other, one, rtol=1e-4)
    assert stale > 100 * np.abs(other - one).max()


def test_models_are_alike_whatever_their_weights_and_unlike_in_any_setting(classifier: keras.Model) -> None:
    config = classifier.get_config()
    same = keras.Model.from_config({**config, "name": "another"})
    same.get_layer("backbone").trainable = True
    assert folding.alike(classifier, same)
    pooled = keras.models.clone_model(
        classifier,
        clone_function=lambda layer: (
            keras.layers.Activation("sigmoid", name=layer.name)
            if layer.name == "probabilities"
            else layer.__class__.from_config(layer.get_config())
        ),
    )
    assert not folding.alike(classifier, pooled)
