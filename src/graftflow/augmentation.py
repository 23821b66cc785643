"""Random views of a picture, the same for the same seed."""

from collections.abc import Sequence

import tensorflow as tf

from graftflow.recipes import AUGMENTATIONS, check_field


def augment(pixels: tf.Tensor, seed: tf.Tensor, *, augmentation: str = "light") -> tf.Tensor:
    """Mirror, crop and shift the light of one picture, at random.

    Args:
        pixels: ``float32 (s, s, 3)`` in [0, 1].
        seed: ``int (2,)``; the same seed gives the same view.
        augmentation: ``none`` returns the picture itself; ``light``: mirrored with probability 1/2, cropped to 80 to
            100 % of the side and resized, brightness shifted by at most 0.1, contrast scaled by 0.8 to 1.2;
            ``strong``: cropped to 50 to 100 %, larger shifts, of hue and saturation too, and a grey square.

    Returns:
        The same shape and range.

    Raises:
        InputError: for another name.
    """
    check_field("augmentation", augmentation)
    chosen = AUGMENTATIONS[augmentation]
    if chosen is None:
        return pixels
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 8))
    pixels = tf.image.stateless_random_flip_left_right(pixels, seeds[0])
    pixels = _crop(pixels, seeds[1:3], chosen.smallest_side)
    pixels = tf.image.stateless_random_brightness(pixels, chosen.brightness, seeds[3])
    pixels = tf.image.stateless_random_contrast(pixels, 1 - chosen.contrast, 1 + chosen.contrast, seeds[4])
    if chosen.colour:
        pixels = tf.image.stateless_random_saturation(
            pixels, 1 - 2 * chosen.contrast, 1 + 2 * chosen.contrast, seeds[5]
        )
        pixels = tf.image.stateless_random_hue(pixels, 0.05, seeds[6])
    if chosen.erased_side:
        pixels = _erase(pixels, seeds[7], chosen.erased_side)
    return tf.clip_by_value(pixels, 0.0, 1.0)


def _crop(pixels: tf.Tensor, seeds: Sequence[tf.Tensor], smallest_side: float) -> tf.Tensor:
    size = pixels.shape[0]
    side = tf.random.stateless_uniform((), seeds[0], smallest_side, 1.0)
    corner = tf.random.stateless_uniform((2,), seeds[1]) * (1.0 - side)
    box = tf.concat([corner, corner + side], axis=0)
    return tf.image.crop_and_resize(pixels[None], box[None], [0], (size, size))[0]


def _erase(pixels: tf.Tensor, seed: tf.Tensor, side: float) -> tf.Tensor:
    """Paint a grey square; its centre may be anywhere, so that it hides from a quarter of itself to all."""
    size = pixels.shape[0]
    centre = tf.random.stateless_uniform((2,), seed)
    places = (tf.range(size, dtype=tf.float32) + 0.5) / size
    inside = tf.abs(places[None] - centre[:, None]) <= side / 2
    square = inside[0][:, None] & inside[1][None]
    return tf.where(square[..., None], 0.5, pixels)


def mix(
    values: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, *, share: float, order: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mix each example of a batch with another one (mixup, Zhang et al. 2018, equation 1).

    On activations inside the network instead of pixels this is manifold mixup (Verma et al. 2019).

    Args:
        values: ``float (n, …)``.
        targets: class probabilities ``float (n, k)``.
        weights: of the examples, ``float (n,)``.
        share: of the example itself, 0 to 1.
        order: ``int (n,)``, which example each one is mixed with.

    Returns:
        Values, targets and weights of the same shapes.
    """
    kept = (1.0 - share) if share < 0.5 else share  # the same distribution: the partner is random, too
    return (
        kept * values + (1.0 - kept) * tf.gather(values, order),
        kept * targets + (1.0 - kept) * tf.gather(targets, order),
        kept * weights + (1.0 - kept) * tf.gather(weights, order),
    )
