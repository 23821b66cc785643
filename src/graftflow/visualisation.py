"""The ``visuals`` artifact: what a network wants to see of a class, and what its first layers see."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from graftflow import attacks, backbones, datasets, preprocessing
from graftflow.errors import InputError
from graftflow.files import read_json, write_json
from graftflow.imagenet_classes import imagenet_index
from graftflow.progress import Progress
from graftflow.training import load_classifier

# Square root of the covariance of ImageNet's colours, columns by variance: brightness, blue against
# yellow, green against magenta; from lucid/optvis/param/color.py (Olah et al. 2017, "Feature
# Visualization", Distill, section "Preconditioning"), divided by the longest column.
_COLOURS = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / 0.46195
# The two axes of colour reach what a photograph has only with this factor (looked at).
_COLOURFULNESS = (1.0, 1.5, 1.5)
_CONTRAST, _LEARNING_RATE, _SMOOTHNESS = 1.5, 0.03, 100.0
# Zooming in as far as 0.7 is what makes whole animals appear; moves are a fraction of the side.
_ZOOMS, _RADIANS, _MOVE = (0.7, 1.1), 0.1, 16 / 224

_MAP_LAYERS, _MAP_ROWS, _MAP_COLUMNS, _MAP_SIDE, _GAP = 4, 4, 8, 56, 2
_JPEG_BYTES = 60_000

Array = np.ndarray[Any, Any]


def write_visuals(
    destination: str | Path,
    *,
    model_path: str | Path,
    dataset_path: str | Path,
    backbone_weights: str,
    ideal_classes: Sequence[str],
    num_trained_classes: int = 3,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Draw ideal pictures and feature maps and write the ``visuals`` artifact.

    Args:
        destination: an existing folder; receives ``visuals.json`` and JPEGs of at most 60 kB.
        model_path: a ``model`` artifact; ``model.json`` names the backbone.
        dataset_path: the ``dataset`` artifact; one of its test pictures goes through the layers.
        backbone_weights: where the ImageNet classifier's weights come from, as for
            :func:`graftflow.backbones.build_imagenet_classifier`; with ``"none"``, or where they
            cannot be had, its pictures are left out and ``note`` says why.
        ideal_classes: ImageNet classes to draw, e.g. ``["Siamese cat", "zebra"]``.
        num_trained_classes: how many of the trained model's own classes to draw, ≥ 0, first ones.
        steps: gradient steps for an ImageNet class, ≥ 1; a trained class takes half of them.
        seed: fixes the noise that the pictures start from, their jitter and the test picture.

    Returns:
        What was written to ``visuals.json``. ``probability`` is that of the picture in the file.

    Raises:
        InputError: where a setting is out of range, a class is no ImageNet class, or the test split
            is empty.
    """
    folder, dataset = Path(destination), Path(dataset_path)
    if steps < 1:
        raise InputError(f"steps must be at least 1. Received: {steps}.")
    if num_trained_classes < 0:
        raise InputError(f"num_trained_classes must be at least 0. Received: {num_trained_classes}.")
    wanted = {name: imagenet_index(name) for name in ideal_classes}
    classes = datasets.load_info(dataset).classes
    classifier = load_classifier(model_path)
    backbone = read_json(Path(model_path) / "model.json")["backbone"]["name"]

    network, note = _imagenet_classifier(backbone, backbone_weights) if wanted else (None, "")
    trained = {name: index for index, name in enumerate(classes[:num_trained_classes])}
    drawings = [(classifier, "trained", trained, -(-steps // 2))]
    if network is not None:
        drawings.insert(0, (network, "ImageNet", wanted, steps))
    ideal = []
    for model, kind, indices, count in drawings:
        if indices:
            ideal += _write_ideal(folder, model, kind, indices, count, seed)
    example, label, path = _test_picture(dataset, seed)
    pixels = preprocessing.decode_batch(example[None], classifier.input_shape[1])
    _save_jpeg(folder / "picture.jpg", pixels[0].numpy())
    result = {
        "ideal": ideal,
        "feature_maps": _write_feature_maps(folder, classifier, pixels),
        "picture": {"file": "picture.jpg", "path": path, "label": classes[label]},
        "note": note,
    }
    write_json(folder / "visuals.json", result)
    return result


def draw_ideal(
    logits_of: attacks.Logits,
    classes: Sequence[int],
    *,
    size: int,
    steps: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Array:
    """Draw, from noise, pictures that a classifier is sure of (Olah et al. 2017).

    Adam ascends log p + logit − 100 · total variation, of the picture turned, zoomed and moved a
    little at random in each step, in the coordinates of its Fourier transform divided by frequency
    and of uncorrelated colours: without them the pictures are garish noise.

    Args:
        logits_of: pixels ``float32 (n, size, size, 3)`` in [0, 1] → logits ``(n, k)``.
        classes: index of the class of each picture, in 0 … k − 1.
        size: side in pixels.
        steps: of Adam, ≥ 1.
        seed: fixes the noise and the jitter.
        advance: called after every step.

    Returns:
        ``float32 (n, size, size, 3)`` in [0, 1], contrast stretched to that range.
    """
    labels = tf.constant(list(classes), tf.int64)
    shape = (2, 3, size, size // 2 + 1)
    # Noise of its own for every class: a picture does not depend on which others are drawn with it.
    noise = [tf.random.stateless_normal(shape, tf.constant((seed, index), tf.int64)) for index in classes]
    spectrum = tf.Variable(0.01 * tf.stack(noise, axis=1))
    optimizer = keras.optimizers.Adam(_LEARNING_RATE)
    optimizer.build([spectrum])

    @tf.function  # type: ignore[untyped-decorator]
    def ascend(transform: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            pixels = _pixels_of(spectrum, size)
            logits = logits_of(_transformed(pixels, transform))
            own = tf.gather(logits, labels, batch_dims=1)
            cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = cross_entropy - own + _SMOOTHNESS * attacks.total_variation(pixels)
        optimizer.apply(tape.gradient(loss, [spectrum]), [spectrum])

    generator = np.random.default_rng(seed)
    for _ in range(steps):
        ascend(tf.constant(_random_transform(generator, size), tf.float32))
        advance()
    return _stretched(_pixels_of(spectrum, size).numpy())


def first_layers(network: keras.Model) -> list[keras.layers.Layer]:
    """Return, for each of the first few resolutions, the first activation that has it.

    Args:
        network: a bare backbone, of whatever layers.

    Returns:
        At most four layers with outputs ``(n, h, w, c)``, c ≥ 4, in the network's order; where a
        resolution has no activation layer, the first layer with weights that has it.
    """
    activations = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU)
    chosen: dict[int, keras.layers.Layer] = {}
    for layer in network.layers:
        output = layer.output
        shape: Sequence[Any] = getattr(output, "shape", ())
        if len(shape) != 4 or shape[-1] < 4 or shape[1] is None:
            continue
        known = chosen.get(shape[1])
        better = isinstance(layer, activations) and not isinstance(known, activations)
        if (known is None and layer.weights) or better:
            chosen[shape[1]] = layer
    sides = sorted(chosen, reverse=True)
    return [chosen[side] for side in sides[:_MAP_LAYERS]]


def _imagenet_classifier(backbone: str, weights: str) -> tuple[Any, str]:
    """Return the classifier, or None and why there is none."""
    if weights == "none":
        return None, "No ImageNet pictures: the backbone was built with weights='none'."
    try:
        return backbones.build_imagenet_classifier(backbone, weights=weights), ""
    except InputError as error:
        return None, f"No ImageNet pictures: {error}"


def _write_ideal(
    folder: Path, model: Any, kind: str, indices: dict[str, int], steps: int, seed: int
) -> list[dict[str, Any]]:
    progress = Progress(f"ideal pictures of {kind} classes", total=steps, unit="steps")
    logits_of = attacks.logits_model(model)
    drawn = draw_ideal(
        logits_of,
        list(indices.values()),
        size=model.input_shape[1],
        steps=steps,
        seed=seed,
        advance=progress.advance,
    )
    rows = []
    for number, (name, index) in enumerate(indices.items()):
        file = f"ideal-{kind.lower()}-{number}.jpg"
        _save_jpeg(folder / file, drawn[number])
        with Image.open(folder / file) as picture:
            seen = np.asarray(picture.convert("RGB"), np.float32)[None] / 255
        probability = tf.nn.softmax(attacks.predict_logits(logits_of, seen))[0, index]
        rows.append(
            {
                "file": file,
                "class": name,
                "network": kind,
                "probability": float(probability),
                "steps": steps,
            }
        )
    return rows


def _pixels_of(spectrum: tf.Tensor, size: int) -> tf.Tensor:
    """Return pixels ``(n, size, size, 3)`` of real and imaginary parts, scaled to 1/frequency."""
    across, down = np.fft.rfftfreq(size)[None], np.fft.fftfreq(size)[:, None]
    frequency = np.maximum(np.hypot(across, down), 1 / size)
    waves = tf.complex(spectrum[0], spectrum[1]) * tf.constant(size / frequency, tf.complex64)
    planes = tf.signal.irfft2d(waves, (size, size)) / 4
    colours = tf.constant(_CONTRAST * _COLOURS * np.array(_COLOURFULNESS), tf.float32)
    return tf.sigmoid(tf.einsum("nchw,dc->nhwd", planes, colours))


def _random_transform(generator: np.random.Generator, size: int) -> Array:
    """Return a small random turn, zoom and move about the centre, as a projective transform."""
    angle, zoom = generator.uniform(-_RADIANS, _RADIANS), generator.uniform(*_ZOOMS)
    right, down = generator.uniform(-_MOVE * size, _MOVE * size, 2)
    cosine, sine, centre = zoom * np.cos(angle), zoom * np.sin(angle), size / 2
    return np.array(
        [
            cosine,
            -sine,
            centre * (1 - cosine + sine) + right,
            sine,
            cosine,
            centre * (1 - cosine - sine) + down,
            0,
            0,
        ]
    )


def _transformed(pixels: tf.Tensor, transform: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=transform[None],
        output_shape=tf.shape(pixels)[1:3],
        interpolation="BILINEAR",
        fill_mode="REFLECT",
        fill_value=0.0,
    )


def _stretched(pixels: Array) -> Array:
    """Stretch each picture so that its darkest and lightest hundredths reach 0 and 1."""
    low, high = np.percentile(pixels, [1, 99], axis=(1, 2, 3), keepdims=True)
    return np.asarray(np.clip((pixels - low) / np.maximum(high - low, 1e-6), 0, 1), np.float32)


def _test_picture(dataset: Path, seed: int) -> tuple[tf.Tensor, int, str]:
    count = datasets.split_size(dataset, "test")
    if count == 0:
        raise InputError(f"the test split must hold pictures. Received: none in '{dataset}'.")
    position = int(np.random.default_rng(seed).integers(count))
    example = next(iter(datasets.read_split(dataset, "test").skip(position).take(1)))
    return example["image"], int(example["label"]), example["path"].numpy().decode()


def _write_feature_maps(folder: Path, classifier: Any, pixels: tf.Tensor) -> list[dict[str, Any]]:
    # The backbone is a model inside of the classifier. Its layers' outputs belong to its own graph,
    # so the maps are computed from its own inputs and it is fed what the classifier would feed it.
    network = classifier.get_layer("backbone")
    layers = first_layers(network)
    if not layers:
        return []
    maps_of = keras.Model(network.input, [layer.output for layer in layers])
    maps = maps_of(classifier.get_layer("preprocessing")(pixels), training=False)
    rows = []
    for number, (layer, found) in enumerate(
        zip(layers, maps if len(layers) > 1 else tf.nest.flatten(maps), strict=True)
    ):
        file = f"feature-maps-{number}.jpg"
        _save_jpeg(folder / file, _grid(found[0].numpy()))
        rows.append({"file": file, "layer": layer.name, "shape": [int(n) for n in found.shape[1:]]})
    return rows


def _grid(maps: Array) -> Array:
    """Lay up to 32 channels of ``float32 (h, w, c)`` side by side; returns RGB in [0, 1].

    The channels that vary most are shown, each stretched to its own range, black on a still one.
    """
    from matplotlib import colormaps

    ranked = np.argsort(-maps.std(axis=(0, 1)), kind="stable")[: _MAP_ROWS * _MAP_COLUMNS]
    cell = _MAP_SIDE + _GAP
    rows = -(-len(ranked) // _MAP_COLUMNS)
    grid = np.ones((rows * cell - _GAP, _MAP_COLUMNS * cell - _GAP, 3), np.float32)
    for number, channel in enumerate(sorted(ranked)):
        plane = Image.fromarray(_stretched(maps[None, ..., channel, None])[0, ..., 0])
        plane = plane.resize((_MAP_SIDE, _MAP_SIDE), Image.Resampling.BILINEAR)
        top, left = (cell * place for place in divmod(number, _MAP_COLUMNS))
        coloured = colormaps["viridis"](np.asarray(plane))[..., :3]
        grid[top : top + _MAP_SIDE, left : left + _MAP_SIDE] = coloured
    return grid


def _save_jpeg(path: Path, pixels: Array) -> None:
    """Write pixels in [0, 1] with the best quality that stays under 60 kB."""
    picture = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    for quality in (92, 85, 75, 60, 40):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= _JPEG_BYTES:
            return
