"""From encoded bytes to pixels to a backbone's input: the one copy of this code, also inside the exported model.

All of it is TensorFlow operations, so that a server that runs nothing but the graph turns and refuses pictures as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from graftflow.encodings import EXIF_VALUE_BYTES, MAXIMUM_PIXELS, MAXIMUM_SIDE, MOST_SEGMENTS, ORIENTATION

# Pictures of a batch that are decoded at once: each may take 3 bytes a pixel twice, so this bounds a request's memory.
DECODED_AT_ONCE = 4
# Blocks and sub-blocks up to the end of a GIF's first frame: 33 MB where they are full, as is usual, and at most two
# seconds of work.
MOST_GIF_BLOCKS = 2**17


def decode(image: tf.Tensor, size: int, *, white: float | tf.Tensor = 255.0) -> tf.Tensor:
    """Decode one picture and squash it to a square of pixels.

    Args:
        image: scalar string, as for :func:`read_pixels`.
        size: side of the result in pixels.
        white: 255. In a graph TensorFlow's optimizer makes a division by a constant a multiplication, which may
            change the last bit; where it is an argument of the graph, pixels are those of ``tf.data`` and eager calls.

    Returns:
        ``float32 (size, size, 3)`` in [0, 1], bilinear with antialiasing.

    Raises:
        tf.errors.InvalidArgumentError: as :func:`read_pixels`.
    """
    # The 8-bit picture as it is: as float32, which gives the same numbers, it would take four times the memory.
    pixels = tf.image.resize(read_pixels(image), (size, size), antialias=True)
    return tf.ensure_shape(tf.clip_by_value(pixels / white, 0.0, 1.0), (size, size, 3))


def decode_crop(image: tf.Tensor, size: int, *, shorter_side: int) -> tf.Tensor:
    """Decode one picture as ImageNet classifiers are evaluated: shorter side resized, then the centre cropped.

    Args:
        image: scalar string, as for :func:`read_pixels`.
        size: side of the crop in pixels.
        shorter_side: what the picture's shorter side is resized to first, in pixels (bicubic, antialiased).

    Returns:
        ``float32 (size, size, 3)`` in [0, 1].
    """
    pixels = read_pixels(image)
    shape = tf.cast(tf.shape(pixels)[:2], tf.float32)
    resized = tf.cast(tf.round(shape * shorter_side / tf.reduce_min(shape)), tf.int32)
    pixels = tf.image.resize(pixels, resized, method="bicubic", antialias=True)
    top, left = tf.unstack((resized - size) // 2)
    pixels = pixels[top : top + size, left : left + size]
    return tf.ensure_shape(tf.clip_by_value(pixels / 255.0, 0.0, 1.0), (size, size, 3))


def decode_batch(images: tf.Tensor, size: int, *, white: float | tf.Tensor = 255.0) -> tf.Tensor:
    """Apply :func:`decode` to ``string (n,)``; returns ``float32 (n, size, size, 3)`` in [0, 1]."""
    return tf.map_fn(
        lambda image: decode(image, size, white=white),
        images,
        fn_output_signature=tf.TensorSpec((size, size, 3), tf.float32),
        parallel_iterations=DECODED_AT_ONCE,
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


@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)  # type: ignore[untyped-decorator]
def read_pixels(image: tf.Tensor) -> tf.Tensor:
    """Decode one picture at its full size, upright.

    A JPEG is turned as its EXIF orientation says, by the rules of :func:`graftflow.encodings.jpeg_orientation`. The
    size is read from the header first, so that a few bytes that claim a huge picture cost nothing.

    Args:
        image: scalar string, the bytes of a JPEG, PNG, BMP or GIF (first frame); grey becomes RGB, alpha is dropped.

    Returns:
        ``uint8 (height, width, 3)``.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are no such picture, or it has more than 89,478,485 pixels or a side
            of more than 65,535.
    """
    # Hundreds of operations on single numbers: on a GPU each would wait for the bus.
    with tf.device("/CPU:0"):
        start, marker, size = tf.unstack(_words(image, 3))
        (second,) = tf.unstack(
            _words(tf.strings.substr(image, tf.minimum(4 + size, tf.strings.length(image)), 2), 1)
        )
        is_jpeg = tf.equal(start, 0xFFD8) & (marker >= 0xFF00)
        # Most pictures have one segment, JFIF, before those that EXIF never follows: they are spared the search.
        may_be_turned = (marker >= 0xFFE0) & (tf.equal(marker, 0xFFE1) | (second >= 0xFFE0))
        kind = tf.where(is_jpeg, tf.where(may_be_turned, 1, 0), 2)
        with tf.init_scope():
            readers = [_reader(read) for read in (_read_jpeg, _read_turned_jpeg, _read_other)]
        # Not tf.switch_case: TensorFlow lays its branches out in one graph and visits also the hundreds of operations
        # that it does not compute: 0.5 ms of a core a picture more than plain decoding, instead of 0.3 ms.
        (pixels,) = tf.raw_ops.Case(branch_index=kind, input=[image], Tout=[tf.uint8], branches=readers)
        return tf.ensure_shape(pixels, (None, None, 3))


def _reader(read: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    def on_cpu(image: tf.Tensor) -> tf.Tensor:
        with tf.device("/CPU:0"):
            return read(image)

    signature = [tf.TensorSpec((), tf.string)]
    return tf.function(on_cpu, input_signature=signature, autograph=False).get_concrete_function()


def _read_jpeg(image: tf.Tensor) -> tf.Tensor:
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(image, tf.int64))
    return _decode(_bounded(image, width, height))


def _read_turned_jpeg(image: tf.Tensor) -> tf.Tensor:
    pixels, orientation = _read_jpeg(image), _jpeg_orientation(image)
    return tf.cond(orientation > 1, lambda: _turn(pixels, orientation), lambda: pixels)


def _read_other(image: tf.Tensor) -> tf.Tensor:
    head = _bytes(image, 32)
    start = tf.strings.substr(image, 0, 8)
    first_four = tf.strings.substr(start, 0, 4)
    cases = [
        (
            tf.equal(start, b"\x89PNG\r\n\x1a\n"),
            lambda: _bounded(image, _big(head[16:20]), _big(head[20:24])),
        ),
        (tf.equal(first_four, b"GIF8"), lambda: _first_frame(image, head)),
        (
            tf.equal(tf.strings.substr(start, 0, 2), b"BM"),
            # The height is negative where the rows are stored from the top.
            lambda: _bounded(image, _little(head[18:22]), tf.abs(_signed(_little(head[22:26])))),
        ),
    ]
    others = "picture must be a JPEG, PNG, BMP or GIF. Received: bytes that begin with {}"
    return _decode(tf.case(cases, default=lambda: _refuse(image, tf.strings.format(others, head[:4]))))


def _decode(image: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(image, channels=3, expand_animations=False)


def _bounded(image: tf.Tensor, width: tf.Tensor, height: tf.Tensor) -> tf.Tensor:
    """Return the bytes as they are where ``int64`` width and height are within the limits."""
    rule = (
        f"picture must have at most {MAXIMUM_PIXELS:,} pixels and no side above {MAXIMUM_SIDE:,}. Received: "
    )
    fits = (tf.maximum(width, height) <= MAXIMUM_SIDE) & (width * height <= MAXIMUM_PIXELS)
    return tf.cond(
        fits, lambda: image, lambda: _refuse(image, tf.strings.format(rule + "{} by {}", (width, height)))
    )


def _refuse(image: tf.Tensor, message: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
        return tf.identity(image)


def _first_frame(image: tf.Tensor, head: tf.Tensor) -> tf.Tensor:
    """Cut a GIF behind its first frame: the decoder would unpack all of them, however many and large.

    The blocks are walked as GIF89a has them: extensions, then an image, each ending in sub-blocks of at most 255 bytes.
    """
    length = tf.strings.length(image)

    def skip(at: Any, left: Any, _size: Any) -> Any:
        size = tf.cast(_bytes(tf.strings.substr(image, at, 1), 1)[0], tf.int32)
        return at + 1 + size, left - 1, size

    def step(at: Any, left: Any, width: Any, height: Any, _going: Any) -> Any:
        block = _bytes(tf.strings.substr(image, at, 10), 10)
        is_extension, is_frame = tf.equal(block[0], 0x21), tf.equal(block[0], 0x2C)
        # What is no block ends the file for the decoder as well.
        inside = tf.where(is_frame, at + 11 + _table_bytes(block[9]), tf.where(is_extension, at + 2, length))
        after, left, _ = tf.while_loop(
            lambda at, left, size: (size > 0) & (at < length) & (left > 0), skip, (inside, left - 1, 1)
        )
        width = tf.where(is_frame, tf.maximum(width, _little(block[5:7])), width)
        height = tf.where(is_frame, tf.maximum(height, _little(block[7:9])), height)
        return after, left, width, height, is_extension & (after < length) & (left > 0)

    start = 13 + _table_bytes(head[10])
    screen = _little(head[6:8]), _little(head[8:10])
    end, _, width, height, _ = tf.while_loop(
        lambda _at, _left, _width, _height, going: going,
        step,
        (start, MOST_GIF_BLOCKS, *screen, start < length),
    )
    return _bounded(tf.strings.join([tf.strings.substr(image, 0, end), b";"]), width, height)


def _jpeg_orientation(image: tf.Tensor) -> tf.Tensor:
    """Return the EXIF orientation of a JPEG, ``int64`` in [1, 8], as ``encodings.jpeg_orientation`` does."""
    length = tf.strings.length(image)

    def step(at: Any, size: Any, _found: Any, _going: Any) -> Any:
        at += size
        # Marker and length of a segment; the length counts itself and not the marker.
        marker, size = tf.unstack(_words(tf.strings.substr(image, at, 4), 2))
        size += 2
        whole = (size >= 4) & (at + size <= length)
        walkable = tf.equal(marker // 16, 0xFFE) | tf.equal(marker, 0xFFFE)
        found = whole & tf.equal(marker, 0xFFE1) & (size >= 10)
        found &= tf.equal(tf.strings.substr(image, tf.minimum(at + 4, length), 6), b"Exif\0\0")
        return at, size, found, whole & walkable & ~found & (at + size < length)

    false = tf.constant(False)
    at, size, found, _ = tf.while_loop(
        lambda _at, _size, _found, going: going,
        step,
        (tf.constant(0), tf.constant(2), false, length > 2),
        maximum_iterations=MOST_SEGMENTS,
    )
    return tf.cond(
        found,
        lambda: _tiff_orientation(tf.strings.substr(image, at + 10, size - 10)),
        lambda: tf.constant(1, tf.int64),
    )


def _tiff_orientation(tiff: tf.Tensor) -> tf.Tensor:
    """Return the orientation of the first directory of an EXIF block, ``int64``; 1 where that is malformed."""
    length = tf.cast(tf.strings.length(tiff), tf.int64)
    start = tf.strings.substr(tiff, 0, 4)
    little = tf.equal(start, b"II*\0")
    two = tf.where(little, [1, 256], [256, 1])
    four = tf.where(little, [1, 2**8, 2**16, 2**24], [2**24, 2**16, 2**8, 1])

    def number(columns: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(columns, tf.int64) * tf.cast(places, tf.int64), axis=-1)

    directory = tf.minimum(number(_bytes(tiff, 8)[4:], four), length)
    rest = tf.strings.substr(tiff, tf.cast(directory, tf.int32), tf.strings.length(tiff))
    told = number(_bytes(rest, 2), two)
    count = tf.maximum(tf.minimum(told, (length - directory - 2) // 12), 0)
    table = tf.strings.substr(rest, tf.minimum(2, tf.strings.length(rest)), tf.cast(count, tf.int32) * 12)
    # Tag, type and count of values, then the value itself or, if it takes more than four bytes, where it stands.
    rows = tf.reshape(tf.io.decode_raw(table, tf.uint8), (-1, 12))
    tag, kind = number(rows[:, 0:2], two), number(rows[:, 2:4], two)
    values, value, place = number(rows[:, 4:8], four), number(rows[:, 8:10], two), number(rows[:, 8:12], four)
    known = tf.constant(EXIF_VALUE_BYTES, tf.int64)
    taken = values * tf.gather(known, tf.where(kind < len(EXIF_VALUE_BYTES), kind, 0))
    inside = (taken <= 4) | (place + taken <= length)
    number_of = tf.range(count)
    first = tf.reduce_min(tf.where(tf.equal(tag, ORIENTATION), number_of, count))
    valid = tf.equal(kind, 3) & tf.equal(values, 1) & (value >= 1) & (value <= 8)
    # A directory that points outside of its block is not believed from there on.
    believed = tf.reduce_all(inside | (number_of > first)) & (directory >= 8)
    believed &= little | tf.equal(start, b"MM\0*")
    chosen = believed & valid & tf.equal(number_of, first)
    return tf.reduce_max(tf.concat([tf.where(chosen, value, 1), [1]], axis=0))


def _turn(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Make a picture ``(height, width, 3)`` of an EXIF orientation in [1, 8] upright."""
    order = tf.where(orientation > 4, [1, 0, 2], [0, 1, 2])
    # After that: which orientations have the top below, and which the left at the right.
    below, right = ([o in these for o in range(9)] for these in ((3, 4, 7, 8), (2, 3, 6, 7)))
    axes = tf.boolean_mask(tf.constant([0, 1]), tf.gather(tf.constant([below, right]), orientation, axis=1))
    return tf.reverse(tf.transpose(pixels, order), axes)


def _bytes(data: tf.Tensor, count: int) -> tf.Tensor:
    """Return the first bytes of a string, ``int64 (count,)``, 0 where it is shorter."""
    return tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=count), tf.int64)


def _words(data: tf.Tensor, count: int) -> tf.Tensor:
    """Return the first big-endian words of two bytes, ``int32 (count,)``, 0 where the string is shorter."""
    return tf.cast(tf.io.decode_raw(data, tf.uint16, little_endian=False, fixed_length=2 * count), tf.int32)


def _little(digits: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(digits * tf.constant([256**i for i in range(digits.shape[0])], tf.int64))


def _big(digits: tf.Tensor) -> tf.Tensor:
    return _little(digits[::-1])


def _signed(word: tf.Tensor) -> tf.Tensor:
    return tf.where(word >= 2**31, word - 2**32, word)


def _table_bytes(flags: tf.Tensor) -> tf.Tensor:
    """Return how long the colour table is that a GIF announces in a byte, ``int32``."""
    size = 3 * tf.bitwise.left_shift(tf.constant(2, tf.int64), flags & 7)
    return tf.cast(tf.where(flags >= 0x80, size, 0), tf.int32)
