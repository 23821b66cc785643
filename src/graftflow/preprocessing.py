"""From encoded bytes to pixels to a backbone's input: the one copy of this code, also inside the exported model."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def decode(image: tf.Tensor, size: int) -> tf.Tensor:
    """Decode one picture and squash it to a square of pixels.

    Args:
        image: scalar string, the bytes of a JPEG, PNG, BMP or GIF (first frame); grey becomes RGB, alpha is dropped.
        size: side of the result in pixels.

    Returns:
        ``float32 (size, size, 3)`` in [0, 1], bilinear with antialiasing.

    Raises:
        tf.errors.InvalidArgumentError: where the bytes are no picture.
    """
    pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
    pixels = tf.image.resize(tf.cast(pixels, tf.float32), (size, size), antialias=True)
    return tf.ensure_shape(tf.clip_by_value(pixels / 255.0, 0.0, 1.0), (size, size, 3))


def decode_crop(image: tf.Tensor, size: int, *, shorter_side: int) -> tf.Tensor:
    """Decode one picture as ImageNet classifiers are evaluated: shorter side resized, then the centre cropped.

    Args:
        image: scalar string, encoded as for :func:`decode`.
        size: side of the crop in pixels.
        shorter_side: what the picture's shorter side is resized to first, in pixels (bicubic, antialiased).

    Returns:
        ``float32 (size, size, 3)`` in [0, 1].
    """
    pixels = tf.cast(tf.io.decode_image(image, channels=3, expand_animations=False), tf.float32)
    shape = tf.cast(tf.shape(pixels)[:2], tf.float32)
    resized = tf.cast(tf.round(shape * shorter_side / tf.reduce_min(shape)), tf.int32)
    pixels = tf.image.resize(pixels, resized, method="bicubic", antialias=True)
    top, left = tf.unstack((resized - size) // 2)
    pixels = pixels[top : top + size, left : left + size]
    return tf.ensure_shape(tf.clip_by_value(pixels / 255.0, 0.0, 1.0), (size, size, 3))


def decode_batch(images: tf.Tensor, size: int) -> tf.Tensor:
    """Apply :func:`decode` to ``string (n,)``; returns ``float32 (n, size, size, 3)`` in [0, 1]."""
    return tf.map_fn(
        lambda image: decode(image, size),
        images,
        fn_output_signature=tf.TensorSpec((size, size, 3), tf.float32),
        parallel_iterations=16,
    )


@keras.saving.register_keras_serializable(package="graftflow")
class PixelPreprocessing(keras.layers.Layer):  # type: ignore[misc]
    """Maps pixels in [0, 1] to the values a backbone was trained on: ``pixels * scale + offset``, channel by channel.

    Args:
        scale: three factors, in the channel order of the output.
        offset: three summands, in the channel order of the output.
        reverse_channels: whether RGB becomes BGR first, as Caffe's networks (VGG, ResNet) want it.
    """

    def __init__(
        self,
        scale: Sequence[float],
        offset: Sequence[float],
        reverse_channels: bool = False,
        **layer: Any,
    ) -> None:
        super().__init__(trainable=False, **{k: v for k, v in layer.items() if k != "trainable"})
        self.scale, self.offset = [float(s) for s in scale], [float(o) for o in offset]
        self.reverse_channels = reverse_channels

    def call(self, pixels: Any) -> Any:
        """``float32 (n, h, w, 3)`` in [0, 1] → the same shape, in the backbone's own range."""
        if self.reverse_channels:
            pixels = pixels[..., ::-1]
        dtype = pixels.dtype
        scale = keras.ops.convert_to_tensor(self.scale, dtype=dtype)
        return pixels * scale + keras.ops.convert_to_tensor(self.offset, dtype=dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape does not change."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs."""
        own = {
            "scale": self.scale,
            "offset": self.offset,
            "reverse_channels": self.reverse_channels,
        }
        return {**super().get_config(), **own}
