"""Models of one structure share a compiled network, and each answers with its own weights."""

from typing import Any

import keras
import numpy as np
import pytest

from graftflow.predictions import predict
from graftflow.transferability import contender, transfer_matrix
from tests.unit.small_classifier import SIDE, build_small_classifier

BUILT = {count: build_small_classifier(count) for count in (3, 4)}


def classifier(seed: int, num_classes: int = 3) -> Any:
    # Of one configuration, as from a file: layers that are built twice get other names.
    model = keras.Model.from_config(BUILT[num_classes].get_config())
    generator = np.random.default_rng(seed)
    model.set_weights([generator.normal(0, 0.5, value.shape) for value in model.get_weights()])
    return model


@pytest.fixture
def pixels() -> np.ndarray:
    return np.float32(np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3)) / 255)


def test_two_models_of_one_structure_share_a_network(pixels: np.ndarray) -> None:
    models = [classifier(seed) for seed in (1, 2)]
    first = contender("first", models[0])
    second = contender("second", models[1], [first])
    assert second.network is first.network
    for one, model in [(first, models[0]), (second, models[1])] * 2:
        np.testing.assert_allclose(predict(one.ready(), pixels), model(pixels), atol=1e-5)


def test_to_know_another_model_changes_nothing_in_the_first_one(pixels: np.ndarray) -> None:
    first = contender("first", classifier(1))
    logits_of = first.ready()
    before = predict(logits_of, pixels)
    second = contender("second", classifier(2), [first])
    np.testing.assert_array_equal(predict(logits_of, pixels), before)
    labels = before.argmax(axis=1)
    transfer_matrix([first, second], pixels, labels, epsilon=8 / 255, steps=2)
    np.testing.assert_array_equal(predict(logits_of, pixels), before)


def test_a_model_of_another_structure_has_its_own_network() -> None:
    first = contender("first", classifier(1))
    other = contender("other", classifier(2, num_classes=4), [first])
    assert other.network is not first.network


def test_the_matrix_is_that_of_networks_of_their_own(pixels: np.ndarray) -> None:
    models = [classifier(seed) for seed in (1, 2)]
    first = contender("first", models[0])
    shared = [first, contender("second", models[1], [first])]
    apart = [contender(name, model) for name, model in zip(("first", "second"), models, strict=True)]
    labels = np.asarray(models[0](pixels)).argmax(axis=1)
    found, expected = (
        transfer_matrix(contenders, pixels, labels, epsilon=32 / 255, steps=4)
        for contenders in (shared, apart)
    )
    assert found == expected
