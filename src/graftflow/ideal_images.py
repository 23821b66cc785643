"""Ideal images: from noise, what a classifier is sure to see of a class (Olah et al. 2017, "Feature Visualization")."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from graftflow import attacks, backbones, folding
from graftflow.errors import InputError
from graftflow.files import atomic_file
from graftflow.imagenet_classes import imagenet_index

# Square root of the covariance of ImageNet's colours, columns by variance: brightness, blue against
# yellow, green against magenta; from lucid/optvis/param/color.py (Olah et al. 2017, "Feature
# Visualization", Distill, section "Preconditioning"), divided by the longest column.
_COLOURS = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / 0.46195
# The two axes of colour reach what a photograph has only with this factor (looked at).
_COLOURFULNESS = (1.0, 1.5, 1.5)
_CONTRAST, _LEARNING_RATE, _SMOOTHNESS = 1.0, 0.02, 200.0
_RADIANS, _MOVE = 0.1, 16 / 224
# From coarse to fine: blur in pixels of a side of 224 at the first step, and from the given share of the steps on.
_BLUR, _LAST_BLUR, _SHARP_FROM = 1.5, 0.8, 0.6
_ZOOMS = (0.8, 1.1)
# Contrast in the corners: the subject stays in the middle, and whole.
_RIM = 0.25
# Weight of the statistics of batch normalisation (Yin et al. 2020, "Dreaming to Distill", equation 4).
_NATURALNESS = 1.0
_LEAST_SCALE = 1e-3

SIZE = 224
_FRAMES, _FRAME_SIDE, _FRAME_MS, _LAST_FRAME_MS = 24, 192, 120, 2500

Array = np.ndarray[Any, Any]
Judge = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Drawing(NamedTuple):
    """An ideal image.

    Attributes:
        pixels: ``float32 (size, size, 3)`` in [0, 1].
        probability: of the class, for the picture rounded to 8 bits and squashed to the network's input.
        frames: how it came about, ``uint8 (size, size, 3)`` each, first to last.
    """

    pixels: Array
    probability: float
    frames: list[Array]


def draw(
    class_name: str,
    *,
    backbone: str = "efficientnet_lite0",
    weights: str = "imagenet",
    seed: int = 0,
    size: int = SIZE,
    steps: int = 128,
    advance: Callable[[], None] = lambda: None,
) -> Drawing:
    """Draw the ideal image of one ImageNet class.

    Args:
        class_name: first name of an ImageNet class, e.g. ``"Siamese cat"``.
        backbone: a name of the table in :mod:`graftflow.backbones`.
        weights: of the ImageNet classifier, as for :func:`graftflow.backbones.build_imagenet_classifier`.
        seed: fixes the noise that the picture starts from and its jitter.
        size: side of the picture in pixels, 8 … 1024; the network sees it at its own input size.
        steps: of Adam, ≥ 1.
        advance: called after every step.

    Raises:
        InputError: a setting is out of range, the class is none of ImageNet (the message names the nearest), the
            backbone is unknown, or its weights cannot be had.
    """
    _check(steps, size)
    index = imagenet_index(class_name)
    classifier = backbones.build_imagenet_classifier(backbone, weights=weights)
    return draw_ideal(
        classifier, [index], size=size, steps=steps, seed=seed, num_frames=_FRAMES, advance=advance
    )[0]


def draw_ideal(
    classifier: keras.Model,
    classes: Sequence[int],
    *,
    size: int,
    steps: int,
    seed: int,
    num_frames: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[Drawing]:
    """Draw, from noise, pictures that a classifier is sure of.

    Adam ascends log p + logit − 200 · total variation − the distance of the layers' statistics from those of
    photographs (:func:`judge_of`), of the picture turned, zoomed and moved a little at random in each step. The picture
    is its Fourier transform divided by frequency, in uncorrelated colours: without them it is garish noise. It goes
    from coarse to fine, and fades towards its corners: without that the classes' parts lie scattered over it.

    Args:
        classifier: pixels ``float32 (n, s, s, 3)`` in [0, 1] → probabilities, with the layers ``preprocessing``,
            ``backbone`` (a model of its own) and ``logits``.
        classes: index of the class of each picture, in 0 … k − 1.
        size: side of the pictures in pixels, 8 … 1024.
        steps: of Adam, ≥ 1.
        seed: fixes the noise and the jitter.
        num_frames: how many stages each drawing keeps, at most; most of them are early ones.
        advance: called after every step.

    Returns:
        A drawing a class, contrast stretched to [0, 1].

    Raises:
        InputError: where a setting is out of range.
    """
    artist = Artist(classifier, size)
    drawn = artist.draw(classes, steps=steps, seed=seed, num_frames=num_frames, advance=advance)
    sure = artist.probabilities(np.stack([pixels for pixels, _ in drawn]), classes)
    return [
        Drawing(pixels, probability, frames)
        for (pixels, frames), probability in zip(drawn, sure, strict=True)
    ]


class Artist:
    """Draws ideal images of a classifier's classes; whatever classes, and however many, it is compiled once.

    Args:
        classifier: as for :func:`draw_ideal`. It draws with the weights that it has now.
        size: side of the pictures in pixels, 8 … 1024.
    """

    def __init__(self, classifier: keras.Model, size: int) -> None:
        self._size, self._seen = size, int(classifier.input_shape[1])
        self._judge = judge_of(classifier)
        spectrum = tf.TensorSpec((2, None, 3, size, size // 2 + 1))
        signature = [spectrum, tf.TensorSpec((None,), tf.int64), tf.TensorSpec((8,)), tf.TensorSpec(())]
        self._slope = tf.function(self._slope_of, input_signature=signature, autograph=False)

    def draw(
        self,
        classes: Sequence[int],
        *,
        steps: int,
        seed: int,
        num_frames: int = 0,
        advance: Callable[[], None] = lambda: None,
    ) -> list[tuple[Array, list[Array]]]:
        """Return pixels and frames of a picture a class, as :func:`draw_ideal` does.

        Raises:
            InputError: where the size or ``steps`` is out of range.
        """
        _check(steps, self._size)
        size, labels = self._size, tf.constant(list(classes), tf.int64)
        shape = (2, 3, size, size // 2 + 1)
        # Noise of its own for every class: a picture does not depend on which others are drawn with it.
        noise = [tf.random.stateless_normal(shape, tf.constant((seed, index), tf.int64)) for index in classes]
        spectrum = tf.Variable(0.01 * tf.stack(noise, axis=1))
        optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        optimizer.build([spectrum])
        generator = np.random.default_rng(seed)
        # The picture changes most at first.
        last = max(num_frames - 1, 1)
        kept = {round((steps - 1) * (place / last) ** 1.5) for place in range(num_frames)}
        stages: list[Array] = []
        for step in range(steps):
            blur = _blur_of(max(0.0, 1 - step / (_SHARP_FROM * steps)), size)
            transform = tf.constant(_random_transform(generator, size, self._seen), tf.float32)
            optimizer.apply([self._slope(spectrum, labels, transform, blur)], [spectrum])
            if step in kept:
                shown = _stretched(_pixels_of(spectrum, size, blur).numpy())
                stages.append(np.round(255 * shown).astype(np.uint8))
            advance()
        drawn = _stretched(_pixels_of(spectrum, size, _blur_of(0.0, size)).numpy())
        return [(pixels, [stage[number] for stage in stages]) for number, pixels in enumerate(drawn)]

    def probabilities(self, pixels: Array, classes: Sequence[int]) -> list[float]:
        """Return those of a class for each of the pictures ``(n, size, size, 3)``, received as a server would."""
        found = tf.nn.softmax(self._judge(_as_received(pixels, self._seen))[0])
        return [float(row[index]) for row, index in zip(found, classes, strict=True)]

    def _slope_of(
        self, spectrum: tf.Tensor, labels: tf.Tensor, transform: tf.Tensor, blur: tf.Tensor
    ) -> tf.Tensor:
        """Return the loss's gradient for the spectrum."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(spectrum)
            pixels = _pixels_of(spectrum, self._size, blur)
            logits, unnatural = self._judge(_transformed(pixels, transform, self._seen))
            own = tf.gather(logits, labels, batch_dims=1)
            cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            variation = _SMOOTHNESS * attacks.total_variation(pixels)
            loss = cross_entropy - own + variation + _NATURALNESS * unnatural
        return tape.gradient(loss, spectrum)


def judge_of(classifier: keras.Model) -> Judge:
    """Return a function from pixels to logits ``(n, k)`` and how unlike a photograph's its activations are ``(n,)``.

    For every batch normalisation of the backbone: mean over channels of ((μ − m)² + (σ − s)²) / s², μ and σ of the
    picture, m and s the statistics that the layer keeps of its training pictures; then the mean over the layers. It
    is 0 for networks without such layers, VGG for instance.

    Args:
        classifier: as for :func:`draw_ideal`. The function keeps the weights that it has now.
    """
    norms = folding.normalisations(classifier.get_layer("backbone"))
    # Where γ is small, x cannot be told exactly from γ · (x − m) / s + β: there the normalisation stays.
    folded = folding.folded(classifier, least_scale=_LEAST_SCALE)
    network = folded.get_layer("backbone")
    layers = [network.get_layer(norm.name) for norm in norms]
    parts = keras.Model(network.input, [network.output, *(layer.input for layer in layers)])
    pixels_to_input, head = folded.get_layer("preprocessing"), head_of(folded)
    kept = [
        _kept(norm, normalised=not isinstance(layer, keras.layers.BatchNormalization))
        for norm, layer in zip(norms, layers, strict=True)
    ]
    unnatural = _distance(kept) if kept else None

    def judge(pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = tf.nest.flatten(parts(pixels_to_input(pixels), training=False))
        return head(outputs[0]), unnatural(outputs[1:]) if unnatural else tf.zeros(tf.shape(pixels)[:1])

    return judge


def _distance(kept: Sequence[tuple[Array, Array, Array]]) -> Callable[[Sequence[tf.Tensor]], tf.Tensor]:
    """Return a function from the layers' maps to how far their statistics are from those that are kept, ``(n,)``.

    It takes the channels of all layers together: layer by layer these small operations take as long to trace and
    compile as the network itself.
    """
    centre, deviation, least = (np.concatenate(values) for values in zip(*kept, strict=True))
    share = np.concatenate(
        [np.full(len(c), np.float32(1 / len(kept)) / np.float32(len(c))) for c, *_ in kept]
    )

    def distance(maps: Sequence[tf.Tensor]) -> tf.Tensor:
        moments = [_moments(tf.cast(found, tf.float32)) for found in maps]
        mean, variance = (tf.concat(values, axis=1) for values in zip(*moments, strict=True))
        apart = ((mean - centre) / deviation) ** 2
        apart += (tf.sqrt(variance / deviation**2 + least) - 1.0) ** 2
        return tf.reduce_sum(apart * share, axis=1)

    return distance


def _kept(norm: keras.layers.BatchNormalization, *, normalised: bool) -> tuple[Array, Array, Array]:
    """Return mean and deviation that a layer keeps, ``float32 (c,)``, and ε as a share of the deviation's square.

    Args:
        norm: the layer.
        normalised: whether they are to be of what the layer returns, and not of what it is given.
    """
    mean, variance = (np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance))
    deviation = np.sqrt(variance + norm.epsilon)
    least = norm.epsilon / deviation**2
    if normalised:
        mean = np.zeros_like(mean) if norm.beta is None else np.asarray(norm.beta)
        deviation = np.ones_like(mean) if norm.gamma is None else np.asarray(norm.gamma)
    return mean.astype(np.float32), deviation.astype(np.float32), least.astype(np.float32)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _moments(maps: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., tf.Tensor]]:
    """Return mean and variance over places of ``float32 (n, h, w, c)``, each ``(n, c)``.

    Its gradient passes over the maps twice; that of ``tf.nn.moments`` six times, which took as long as the network.
    """
    mean = tf.reduce_mean(maps, axis=(1, 2))
    variance = tf.reduce_mean(tf.math.squared_difference(maps, mean[:, None, None]), axis=(1, 2))

    def gradient(of_mean: tf.Tensor, of_variance: tf.Tensor) -> tf.Tensor:
        count = tf.cast(tf.shape(maps)[1] * tf.shape(maps)[2], tf.float32)
        slope = 2.0 * of_variance / count
        return maps * slope[:, None, None] + (of_mean / count - mean * slope)[:, None, None]

    return (mean, variance), gradient


def head_of(classifier: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return what stands between the backbone's output and the logits, as a function; weights are shared.

    The backbone is a model inside of the classifier, and its layers belong to a graph of its own: whoever needs
    activations calls the parts one after the other, since no model can be made across the two graphs.
    """
    names = [layer.name for layer in classifier.layers]
    between = classifier.layers[names.index("backbone") + 1 : names.index("logits") + 1]

    def head(outputs: tf.Tensor) -> tf.Tensor:
        for layer in between:
            outputs = layer(outputs)
        return tf.cast(outputs, tf.float32)

    return head


def write_animation(destination: str | Path, frames: Sequence[Array], *, most_bytes: int = 300_000) -> None:
    """Write frames as an animated WebP of 192 pixels that plays for ever and rests on its last frame.

    Args:
        destination: the file, ``.webp``.
        frames: ``uint8 (h, w, 3)`` each, at least 1.
        most_bytes: the quality is lowered until the file is not larger; the lowest is taken even where it is.
    """
    side = (_FRAME_SIDE, _FRAME_SIDE)
    pictures = [Image.fromarray(frame).resize(side, Image.Resampling.LANCZOS) for frame in frames]
    duration = [_FRAME_MS] * (len(pictures) - 1) + [_LAST_FRAME_MS]
    buffer = io.BytesIO()
    for quality in (75, 60, 45, 30, 15):
        buffer = io.BytesIO()
        pictures[0].save(
            buffer,
            "WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=duration,
            loop=0,
            quality=quality,
            method=2,
        )
        if buffer.tell() <= most_bytes:
            break
    with atomic_file(destination) as aside:
        aside.write_bytes(buffer.getvalue())


def _check(steps: int, size: int) -> None:
    if steps < 1:
        raise InputError(f"steps must be at least 1. Received: {steps}.")
    if not 8 <= size <= 1024:
        raise InputError(f"size must lie in 8 … 1024 pixels. Received: {size}.")


def _blur_of(rest: float, size: int) -> tf.Tensor:
    return tf.constant((_LAST_BLUR + (_BLUR - _LAST_BLUR) * rest) * size / 224, tf.float32)


def _pixels_of(spectrum: tf.Tensor, size: int, blur: tf.Tensor) -> tf.Tensor:
    """Return pixels ``(n, size, size, 3)`` of real and imaginary parts, scaled to 1/frequency, ``blur`` pixels wide."""
    across, down = np.fft.rfftfreq(size)[None], np.fft.fftfreq(size)[:, None]
    squared = across**2 + down**2
    scale = tf.constant(size / np.maximum(np.sqrt(squared), 1 / size), tf.float32)
    passed = scale * tf.exp(-2 * (np.pi * blur) ** 2 * tf.constant(squared, tf.float32))
    waves = tf.complex(spectrum[0] * passed, spectrum[1] * passed)
    planes = tf.signal.irfft2d(waves, (size, size)) / 4
    planes *= tf.constant(_vignette(size), tf.float32)
    colours = tf.constant(_CONTRAST * _COLOURS * np.array(_COLOURFULNESS), tf.float32)
    rows = tf.transpose(tf.matmul(colours, tf.reshape(planes, (-1, 3, size * size))), (0, 2, 1))
    return tf.sigmoid(tf.reshape(rows, (-1, size, size, 3)))


def _vignette(size: int) -> Array:
    """Return 1 in the middle, falling to ``_RIM`` in the corners, ``(size, size)``."""
    place = (np.arange(size) + 0.5) / size * 2 - 1
    distance = np.hypot(place[:, None], place[None]) / np.sqrt(2)
    return np.asarray(_RIM + (1 - _RIM) * np.exp(-((distance / 0.6) ** 4)))


def _random_transform(generator: np.random.Generator, size: int, seen: int) -> Array:
    """Return a small random turn, zoom and move about the centre, as a projective transform."""
    angle, zoom = generator.uniform(-_RADIANS, _RADIANS), generator.uniform(*_ZOOMS) * size / seen
    right, down = generator.uniform(-_MOVE * size, _MOVE * size, 2) + size / 2
    cosine, sine, middle = zoom * np.cos(angle), zoom * np.sin(angle), seen / 2
    across = [cosine, -sine, right + middle * (sine - cosine)]
    return np.array([*across, sine, cosine, down - middle * (sine + cosine), 0, 0])


def _transformed(pixels: tf.Tensor, transform: tf.Tensor, seen: int) -> tf.Tensor:
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=transform[None],
        output_shape=tf.constant((seen, seen)),
        interpolation="BILINEAR",
        fill_mode="REFLECT",
        fill_value=0.0,
    )


def _as_received(pixels: Array, seen: int) -> tf.Tensor:
    """Round to 8 bits and squash, as pictures are decoded."""
    rounded = tf.round(255 * pixels)
    return tf.clip_by_value(tf.image.resize(rounded, (seen, seen), antialias=True) / 255, 0, 1)


def _stretched(pixels: Array) -> Array:
    """Stretch each picture so that its darkest and lightest hundredths reach 0 and 1."""
    low, high = np.percentile(pixels, [1, 99], axis=(1, 2, 3), keepdims=True)
    return np.asarray(np.clip((pixels - low) / np.maximum(high - low, 1e-6), 0, 1), np.float32)
