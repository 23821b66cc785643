"""A backbone cut in two: the trunk that stays frozen, and the tail that trains."""

from dataclasses import dataclass
from typing import Any

import keras

from graftflow import backbones
from graftflow.errors import InputError


@dataclass(frozen=True)
class Cut:
    """The two parts of a feature extractor; both share their layers with it.

    Attributes:
        trunk: ``keras.Model`` from pixels ``float32 (n, s, s, 3)`` in [0, 1] to the activations at the cut.
        tail: ``keras.Model`` from these activations to features ``(n, feature_width)``; None where the trunk ends
            with the features.
        shape: of the activations of one picture.
    """

    trunk: Any
    tail: Any
    shape: tuple[int, ...]


def unfreeze_last_blocks(model: Any, backbone: str, num_blocks: int) -> dict[str, int]:
    """Make the last blocks of the backbone trainable; BatchNorm stays in inference mode everywhere.

    Args:
        model: a feature extractor or classifier with the layer ``backbone``.
        backbone: the backbone's name.
        num_blocks: how many blocks, counted from the end; 0 freezes all.

    Returns:
        For the path of each trainable variable of the backbone its block's distance from the end: 0 for the last.

    Raises:
        InputError: where the backbone has fewer blocks.
    """
    network = model.get_layer("backbone")
    blocks = backbones.blocks(backbone, network)
    if not 0 <= num_blocks <= len(blocks):
        raise InputError(
            f"num_blocks must be between 0 (no fine-tuning) and {len(blocks)} for {backbone}. "
            f"Received: {num_blocks}"
        )
    if num_blocks == 0:
        network.trainable = False
        return {}
    network.trainable = True
    firsts = [first for _, first in blocks]
    depths: dict[str, int] = {}
    for index, layer in enumerate(network.layers):
        normalises = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = index >= firsts[-num_blocks] and not normalises
        depth = sum(first > index for first in firsts)
        depths.update({variable.path: depth for variable in layer.trainable_variables})
    return depths


def cut(features_model: Any, backbone: str, num_blocks: int) -> Cut:
    """Cut a feature extractor in front of its last blocks.

    Args:
        features_model: what :func:`graftflow.backbones.build` returned.
        backbone: the backbone's name.
        num_blocks: how many blocks the tail has, at most as many as the backbone has; with 0 all is trunk.

    Raises:
        InputError: where more than one tensor crosses the cut, as in no backbone of the table.
    """
    if num_blocks == 0:
        return Cut(features_model, None, tuple(int(side) for side in features_model.output_shape[1:]))
    network = features_model.get_layer("backbone")
    first = backbones.blocks(backbone, network)[-num_blocks][1]
    before = {id(layer) for layer in network.layers[:first]}
    crossing = {
        tensor.name: tensor
        for layer in network.layers[first:]
        for node in layer._inbound_nodes
        for tensor in node.input_tensors
        if id(tensor._keras_history.operation) in before
    }
    if len(crossing) != 1:
        raise InputError(
            f"The cut of {backbone} before its last {num_blocks} blocks must be crossed by one tensor. "
            f"Received: {len(crossing)}"
        )
    (tensor,) = crossing.values()
    pixels = features_model.input
    frozen = keras.Model(network.input, tensor)
    trunk = keras.Model(pixels, frozen(features_model.get_layer("preprocessing")(pixels), training=False))
    return Cut(trunk, keras.Model(tensor, network.output), tuple(int(side) for side in tensor.shape[1:]))
