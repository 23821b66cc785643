"""A cut network computes what the whole one does, and shares its weights."""

import keras
import numpy as np
import pytest

from graftflow import backbones
from graftflow.cuts import cut, unfreeze_last_blocks
from graftflow.errors import InputError


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50v2", "mobilenetv3small"])
def test_trunk_and_tail_together_are_the_network(name: str) -> None:
    model = backbones.build(name, weights="none")
    pixels = np.random.default_rng(0).random((1, 224, 224, 3), dtype="f4")
    features = model(pixels)
    for num_blocks in (1, 2, len(backbones.blocks(name, model.get_layer("backbone")))):
        parts = cut(model, name, num_blocks)
        activations = parts.trunk(pixels)
        assert activations.shape[1:] == parts.shape
        np.testing.assert_allclose(parts.tail(activations), features, rtol=1e-5, atol=1e-6)


def test_the_tail_trains_the_network_itself_and_nothing_else() -> None:
    model = backbones.build("mobilenetv3small", weights="none")
    depths = unfreeze_last_blocks(model, "mobilenetv3small", 2)
    parts = cut(model, "mobilenetv3small", 2)
    assert parts.trunk.trainable_variables == []
    paths = {variable.path for variable in parts.tail.trainable_variables}
    assert paths == set(depths) == {v.path for v in model.trainable_variables}
    assert set(depths.values()) == {0, 1}
    variable = parts.tail.trainable_variables[0]
    variable.assign(variable + 1)
    assert any(variable is own for own in model.get_layer("backbone").variables)


def test_normalisation_stays_in_inference_mode() -> None:
    model = backbones.build("mobilenetv2", weights="none")
    unfreeze_last_blocks(model, "mobilenetv2", 2)
    network = model.get_layer("backbone")
    trainable = [layer.name for layer in network.layers if layer.trainable and layer.weights]
    assert trainable
    assert all(name.startswith(("block_15", "block_16", "Conv_1")) for name in trainable)
    normalising = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert not any(layer.trainable for layer in normalising)
    statistics = [w.numpy() for layer in normalising for w in layer.weights]
    parts = cut(model, "mobilenetv2", 2)
    parts.tail(np.random.default_rng(0).random((2, *parts.shape), dtype="f4"), training=True)
    for old, new in zip(statistics, (w for layer in normalising for w in layer.weights), strict=True):
        np.testing.assert_array_equal(old, new)


def test_blocks_are_counted_from_none_to_all() -> None:
    model = backbones.build("mobilenetv3small", weights="none")
    with pytest.raises(InputError, match="between 0 .* and 10 for mobilenetv3small. Received: 11"):
        unfreeze_last_blocks(model, "mobilenetv3small", 11)
    assert unfreeze_last_blocks(model, "mobilenetv3small", 0) == {}
    parts = cut(model, "mobilenetv3small", 0)
    assert (parts.trunk, parts.tail, parts.shape) == (model, None, (576,))
