"""Feature maps: what the channels of a backbone's layers answer to in a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from graftflow.picture_files import save_jpeg

_LAYERS, _ROWS, _COLUMNS, _SIDE, _GAP = 5, 4, 8, 56, 2

Array = np.ndarray[Any, Any]


def first_layers(network: keras.Model) -> list[keras.layers.Layer]:
    """Return, for each of the first few resolutions, the first activation that has it.

    Args:
        network: a bare backbone, of whatever layers.

    Returns:
        At most five layers with outputs ``(n, h, w, c)``, c ≥ 4, in the network's order; where a
        resolution has no activation layer, the first layer with weights that has it.
    """
    activations = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU)
    chosen: dict[int, keras.layers.Layer] = {}
    for layer in network.layers:
        output = layer.output
        shape: Sequence[Any] = getattr(output, "shape", ())
        if len(shape) != 4 or shape[-1] < 4 or shape[1] is None or shape[1] < 2:
            continue
        known = chosen.get(shape[1])
        better = isinstance(layer, activations) and not isinstance(known, activations)
        if (known is None and layer.weights) or better:
            chosen[shape[1]] = layer
    sides = sorted(chosen, reverse=True)
    return [chosen[side] for side in sides[:_LAYERS]]


def write_feature_maps(folder: Path, classifier: keras.Model, pixels: tf.Tensor) -> list[dict[str, Any]]:
    """Write the feature maps of one picture by layer, first to last.

    Args:
        folder: an existing folder; receives ``feature-maps-<number>.jpg``.
        classifier: with the layers ``preprocessing`` and ``backbone``.
        pixels: ``float32 (1, s, s, 3)`` in [0, 1].

    Returns:
        ``{"file","layer","shape"}`` for each of :func:`first_layers`.
    """
    # The backbone is a model inside of the classifier. Its layers' outputs belong to its own graph,
    # so the maps are computed from its own inputs and it is fed what the classifier would feed it.
    network = classifier.get_layer("backbone")
    layers = first_layers(network)
    if not layers:
        return []
    maps_of = keras.Model(network.input, [layer.output for layer in layers])
    maps = tf.nest.flatten(maps_of(classifier.get_layer("preprocessing")(pixels), training=False))
    rows = []
    for number, (layer, found) in enumerate(zip(layers, maps, strict=True)):
        file = f"feature-maps-{number}.jpg"
        save_jpeg(folder / file, _grid(found[0].numpy()))
        rows.append({"file": file, "layer": layer.name, "shape": [int(n) for n in found.shape[1:]]})
    return rows


def _grid(maps: Array) -> Array:
    """Lay up to 32 channels of ``float32 (h, w, c)`` side by side; returns RGB in [0, 1].

    The channels that vary most are shown, each stretched to its own range, black on a still one.
    """
    from matplotlib import colormaps

    ranked = np.argsort(-maps.std(axis=(0, 1)), kind="stable")[: _ROWS * _COLUMNS]
    cell = _SIDE + _GAP
    rows = -(-len(ranked) // _COLUMNS)
    grid = np.ones((rows * cell - _GAP, _COLUMNS * cell - _GAP, 3), np.float32)
    for number, channel in enumerate(sorted(ranked)):
        plane = Image.fromarray(_stretched(maps[..., channel]))
        plane = plane.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        top, left = (cell * place for place in divmod(number, _COLUMNS))
        coloured = colormaps["viridis"](np.asarray(plane))[..., :3]
        grid[top : top + _SIDE, left : left + _SIDE] = coloured
    return grid


def _stretched(plane: Array) -> Array:
    """Stretch a plane so that its darkest and lightest hundredths reach 0 and 1."""
    low, high = np.percentile(plane, [1, 99])
    return np.asarray(np.clip((plane - low) / max(high - low, 1e-6), 0, 1), np.float32)
