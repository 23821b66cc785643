"""Balls of radius ε around pictures, in L-infinity and L2: steps, projections, random starts, rounding to 8 bits."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from graftflow.epsilons import whole_levels
from graftflow.errors import InputError

Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")
_HALVINGS = 12


class Radius(NamedTuple):
    """ε as tensors, so that no other ε compiles anything again."""

    epsilon: tf.Tensor  # float32 (), in units of the pixel range [0, 1]
    levels: tf.Tensor  # float32 (): ⌊255 ε⌋ of L-infinity, ⌊(255 ε)²⌋ of L2: the largest whole sum of squares


def radius(epsilon: float, norm: Norm) -> Radius:
    """Return ε with its largest whole number of levels.

    Args:
        epsilon: in [0, 1] for L-infinity; at least 0 for L2, of the whole picture.
        norm: ``linf`` or ``l2``.

    Raises:
        InputError: where ε is out of range or the norm unknown.
    """
    if norm not in NORMS:
        raise InputError(f"norm must be either 'linf' or 'l2'. Received: '{norm}'.")
    if norm == "linf" and not 0 <= epsilon <= 1:
        raise InputError(f"epsilon must lie in [0, 1]. Received: {epsilon}.")
    if not 0 <= epsilon < math.inf:
        raise InputError(f"epsilon of an L2 ball must be at least 0 and finite. Received: {epsilon}.")
    levels = whole_levels(epsilon) if norm == "linf" else math.floor((255 * epsilon) ** 2 + 1e-6)
    return Radius(tf.constant(epsilon, tf.float32), tf.constant(levels, tf.float32))


def project(x: tf.Tensor, centre: tf.Tensor, epsilon: tf.Tensor, norm: Norm) -> tf.Tensor:
    """Π: into the ε ball around ``centre`` and into [0, 1]."""
    if norm == "linf":
        return tf.clip_by_value(tf.clip_by_value(x, centre - epsilon, centre + epsilon), 0.0, 1.0)
    delta = x - centre
    # The centre lies in [0, 1], so that clipping takes nothing out of the ball.
    return tf.clip_by_value(centre + delta * tf.minimum(1.0, epsilon / (length(delta) + 1e-12)), 0.0, 1.0)


def steepest(gradient: tf.Tensor, norm: Norm) -> tf.Tensor:
    """Return the step of length 1 that raises the loss most: sign g, or g / ‖g‖₂; 0 where g is 0."""
    return tf.sign(gradient) if norm == "linf" else gradient / tf.maximum(length(gradient), 1e-30)


def length(x: tf.Tensor) -> tf.Tensor:
    """Return ‖x‖₂ of each picture, ``(n, 1, 1, 1)``; scaled, so that squares of small gradients are not lost."""
    largest = tf.maximum(tf.reduce_max(tf.abs(x), axis=(1, 2, 3), keepdims=True), 1e-30)
    return largest * tf.sqrt(tf.reduce_sum(tf.square(x / largest), axis=(1, 2, 3), keepdims=True))


@tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
def step(
    x: tf.Tensor, centre: tf.Tensor, gradient: tf.Tensor, size: tf.Tensor, epsilon: tf.Tensor, norm: Norm
) -> tf.Tensor:
    """Return Π(x + size · steepest(g)); ``size`` is a scalar or ``(n, 1, 1, 1)``."""
    return project(x + size * steepest(gradient, norm), centre, epsilon, norm)


def random_start(
    centre: tf.Tensor, epsilon: float, norm: Norm, *, seed: Sequence[int], numbers: Iterable[int]
) -> tf.Tensor:
    """Return a point of each ball, uniform, clipped to [0, 1].

    Args:
        centre: ``float32 (n, h, w, 3)`` in [0, 1].
        epsilon: the radius.
        norm: ``linf`` or ``l2``.
        seed: fixes the noise.
        numbers: of each picture; its noise depends on nothing else, so not on the batch it is in.
    """
    noise = np.empty(centre.shape, np.float32)
    for row, number in zip(noise, numbers, strict=True):
        generator = generator_of(*seed, number)
        if norm == "linf":
            row[...] = epsilon * generator.uniform(-1, 1, row.shape)
        else:
            direction = generator.normal(size=row.shape)
            direction *= epsilon * generator.uniform() ** (1 / row.size) / np.linalg.norm(direction)
            row[...] = direction
    return project(centre + noise, centre, tf.constant(epsilon, tf.float32), norm)


def generator_of(*seed: int) -> np.random.Generator:
    """Return NumPy's generator for some whole numbers of any sign."""
    return np.random.default_rng([int(number) % 2**64 for number in seed])


def round_within(x: tf.Tensor, centre: tf.Tensor, levels: tf.Tensor, norm: Norm) -> tf.Tensor:
    """Round pixels to multiples of 1/255 in the ball of :class:`Radius`' ``levels`` around the rounded centre.

    In L2 the perturbation is scaled first, picture by picture, so that once rounded it fills the ball: rounded as it
    is, a perturbation below half a level in every pixel would vanish.
    """
    # The division stands outside: a compiled one becomes a product with 1/255, which is another number in its last bit.
    return _whole_levels_within(x, centre, levels, norm) / 255.0


@tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
def _whole_levels_within(x: tf.Tensor, centre: tf.Tensor, levels: tf.Tensor, norm: Norm) -> tf.Tensor:
    middle = tf.round(centre * 255.0)
    if norm == "linf":
        rounded = tf.clip_by_value(tf.round(x * 255.0), middle - levels, middle + levels)
    else:
        rounded = middle + _scaled_and_rounded((x - centre) * 255.0, levels)
    return tf.clip_by_value(rounded, 0.0, 255.0)


def round_to_eight_bits(adversarial: tf.Tensor, original: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Round pixels to multiples of 1/255, as a PNG carries them, without leaving the L-infinity ball of ε.

    Args:
        adversarial: ``float32 (n, h, w, 3)`` in [0, 1].
        original: the same shape; its own nearest multiples of 1/255 are the centre of the ball.
        epsilon: L-infinity radius; ⌊255 ε⌋ levels of it can be used, none of them when ε < 1/255.

    Returns:
        ``float32``, each k/255 with |k − 255 · original| ≤ 255 ε for an original of whole levels.
    """
    adversarial, original = (tf.convert_to_tensor(t, tf.float32) for t in (adversarial, original))
    return round_within(adversarial, original, radius(epsilon, "linf").levels, "linf")


def distances(pixels: Any, original: Any, norm: Norm) -> Any:
    """Return how far pictures moved, ``float64 (n,)`` NumPy, in units of the pixel range."""
    delta = np.abs(np.asarray(pixels, np.float64) - np.asarray(original, np.float64))
    if norm == "linf":
        return delta.max(axis=(1, 2, 3), initial=0)
    return np.sqrt((delta**2).sum(axis=(1, 2, 3)))


def _scaled_and_rounded(delta: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
    """Return round(s · δ) with the largest s found by bisection whose sum of squares is at most ``levels``."""

    def fits(scale: tf.Tensor) -> tf.Tensor:
        squares = tf.square(tf.round(scale * delta))
        # Whole numbers: float64 adds them exactly.
        total = tf.reduce_sum(tf.cast(squares, tf.float64), axis=(1, 2, 3), keepdims=True)
        return total <= tf.cast(levels, tf.float64)

    # At s = 0.4 / max |δ| all is rounded to 0, which fits; at 2√levels + 1 times that, the largest alone does not.
    largest = tf.maximum(tf.reduce_max(tf.abs(delta), axis=(1, 2, 3), keepdims=True), 1e-6)
    low = 0.4 / largest
    high = low * (4.0 * tf.sqrt(levels) + 4.0)
    for _ in range(_HALVINGS):
        middle = tf.sqrt(low * high)
        good = fits(middle)
        low, high = tf.where(good, middle, low), tf.where(good, high, middle)
    return tf.round(low * delta)
