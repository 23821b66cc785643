"""The graph reads a picture as everything else does, and refuses one that is made to fill the memory."""

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from graftflow import export
from graftflow.encodings import jpeg_orientation
from graftflow.preprocessing import decode, decode_batch, read_pixels
from tests.unit.mixed_pictures import ORDERS, exif_block, mixed_pictures, png_claiming, segment, with_exif
from tests.unit.pictures_on_disk import encode, photo
from tests.unit.small_classifier import SIDE, build_small_classifier

Array = npt.NDArray[Any]
TOO_LARGE = "picture must have at most 89,478,485 pixels and no side above 65,535. Received: {} by {}"


def jpeg(size: tuple[int, int] = (10, 7), **settings: Any) -> bytes:
    return encode(photo(5, size), "JPEG", quality=95, **settings)


def turned(pixels: Array, orientation: int) -> Array:
    """What Pillow makes of these pixels with this orientation."""
    png = encode(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0" + exif_block(orientation))
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(ImageOps.exif_transpose(image))


def plainly(data: bytes) -> Array:
    found: Array = tf.io.decode_image(data, channels=3, expand_animations=False).numpy()
    return found


@pytest.mark.parametrize("jfif", [True, False], ids=["JFIF and Exif", "Exif only"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_as_its_exif_says(orientation: int, order: str, jfif: bool) -> None:
    data = with_exif(jpeg(), exif_block(orientation, order), jfif=jfif)
    expected = turned(plainly(data), orientation)
    np.testing.assert_array_equal(read_pixels(tf.constant(data)), expected)
    upright = encode(Image.fromarray(expected), "PNG")
    np.testing.assert_array_equal(decode(tf.constant(data), 24), decode(tf.constant(upright), 24))


@pytest.mark.parametrize(
    "before",
    [
        segment(0xFFFE, b"a comment"),
        segment(0xFFE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        segment(0xFFE2, b"ICC_PROFILE\0\x01\x02" + bytes(65_519)) * 3,
        segment(0xFFEF, b""),
    ],
    ids=["comment", "XMP", "colour profile of 196 kB", "empty"],
)
def test_exif_is_found_behind_other_segments(before: bytes) -> None:
    data = with_exif(jpeg(), exif_block(6))
    data = data[:2] + before + data[2:]
    np.testing.assert_array_equal(read_pixels(tf.constant(data)), turned(plainly(data), 6))


@pytest.mark.parametrize("length", range(9))
def test_a_segment_too_short_for_exif_is_none(length: int) -> None:
    """Its length cuts the word Exif, so that what seems to follow is not of the segment."""
    data = bytearray(with_exif(jpeg(), exif_block(6, ">"), jfif=False))
    data[4:6] = length.to_bytes(2)
    with_this_length = tf.constant(bytes(data))
    assert jpeg_orientation(bytes(data)) == 1
    try:
        expected = plainly(bytes(data))
    except tf.errors.InvalidArgumentError:
        with pytest.raises(tf.errors.InvalidArgumentError):
            read_pixels(with_this_length)
    else:
        np.testing.assert_array_equal(read_pixels(with_this_length), expected)


@pytest.mark.parametrize(("segments", "orientation"), [(98, 6), (100, 1)])
def test_the_search_for_exif_ends_after_a_hundred_segments(segments: int, orientation: int) -> None:
    data = with_exif(jpeg(), exif_block(6))
    data = data[:2] + segment(0xFFFE, b"") * segments + data[2:]
    assert jpeg_orientation(data) == orientation
    np.testing.assert_array_equal(read_pixels(tf.constant(data)), turned(plainly(data), orientation))


def test_malformed_exif_never_fails_and_turns_nothing_that_pillow_would_not() -> None:
    """300 blocks with bytes changed, cut off or repeated: read as ``jpeg_orientation`` does, as Pillow does or not."""
    generator = np.random.default_rng(0)
    make = b"\x0f\x01\x02\0\x06\0\0\0\x26\0\0\0"
    plain = jpeg()
    outcomes = {o: turned(plainly(plain), o).tobytes() for o in range(1, 9)}
    assert len(set(outcomes.values())) == 8
    found = []
    for number in range(300):
        order = ("<", ">")[number % 2]
        block = bytearray(
            exif_block(1 + number % 8, order, before=make if order == "<" else b"") + b"graft\0"
        )
        for place in generator.integers(0, len(block), generator.integers(1, 4)):
            block[place] = generator.choice([0, 1, 2, 3, 6, 255, int(generator.integers(256))])
        if number % 3 == 0:
            block = block[: generator.integers(len(block))]
        data = with_exif(plain, bytes(block))
        pixels = read_pixels(tf.constant(data)).numpy()
        seen = next(
            o
            for o, outcome in outcomes.items()
            if outcome == pixels.tobytes() and o == jpeg_orientation(data)
        )
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            try:
                pillow = image.getexif().get(0x0112, 1)
            except Exception:  # whatever malformed EXIF leads to
                pillow = 1
        assert seen in (pillow, 1), bytes(block)
        found.append(seen)
    # The mutations are mild enough that many a picture is still turned.
    assert 60 < sum(seen != 1 for seen in found) < 260


def test_broken_segments_of_a_jpeg_are_read_as_the_client_reads_them() -> None:
    """Lengths and markers changed at random: the graph's walk and the one in Python stop at the same place."""
    generator = np.random.default_rng(1)
    data = with_exif(jpeg(), exif_block(3))
    whole = plainly(data)
    read = 0
    for _ in range(200):
        broken = bytearray(data)
        broken[generator.integers(2, 40)] = generator.integers(256)
        try:
            expected = plainly(bytes(broken))
        except tf.errors.InvalidArgumentError:
            with pytest.raises(tf.errors.InvalidArgumentError):
                read_pixels(tf.constant(bytes(broken)))
            continue
        read += 1
        pixels = read_pixels(tf.constant(bytes(broken)))
        np.testing.assert_array_equal(pixels, turned(expected, jpeg_orientation(bytes(broken))))
        assert pixels.shape == whole.shape
    assert read > 50


def ordinary() -> dict[str, bytes]:
    image = photo(7, (50, 40))
    frames = [photo(i, (50, 40)).quantize() for i in range(5)]
    return {
        "JPEG": encode(image, "JPEG"),
        "grey JPEG": encode(image.convert("L"), "JPEG"),
        "progressive JPEG": encode(image, "JPEG", progressive=True),
        "CMYK JPEG": encode(image.convert("CMYK"), "JPEG"),
        "PNG": encode(image, "PNG"),
        "grey PNG": encode(image.convert("L"), "PNG"),
        "palette PNG": encode(image.quantize(), "PNG"),
        "1 bit PNG": encode(image.convert("1"), "PNG"),
        "alpha PNG": encode(image.convert("RGBA"), "PNG"),
        "BMP": encode(image, "BMP"),
        "GIF": encode(image.quantize(), "GIF"),
        "animated GIF": encode(
            frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"c" * 700, loop=0, duration=20
        ),
    }


@pytest.mark.parametrize("kind", ordinary())
def test_an_ordinary_picture_is_read_as_tensorflow_decodes_it(kind: str) -> None:
    data = ordinary()[kind]
    pixels = plainly(data)
    np.testing.assert_array_equal(read_pixels(tf.constant(data)), pixels)
    resized = tf.image.resize(tf.cast(pixels, tf.float32), (24, 24), antialias=True)
    np.testing.assert_array_equal(decode(tf.constant(data), 24), tf.clip_by_value(resized / 255.0, 0.0, 1.0))


def test_real_photographs_are_decoded_as_before(shared_data: Path) -> None:
    """Bit by bit as the plain decoding of a picture as float32, which is what models were trained with."""
    files = sorted(shared_data.rglob("*.jpg"))[::20]
    assert len(files) >= 40
    for file in files:
        pixels = tf.image.resize(tf.cast(plainly(file.read_bytes()), tf.float32), (224, 224), antialias=True)
        expected = tf.clip_by_value(pixels / 255.0, 0.0, 1.0)
        np.testing.assert_array_equal(decode(tf.constant(file.read_bytes()), 224), expected)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(jpeg())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_claiming(width: int, height: int, size: int = 1000) -> bytes:
    start = struct.pack("<2sIHHI", b"BM", 54 + size, 0, 0, 54)
    return start + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(size)


def gif_claiming(width: int, height: int, *, screen: tuple[int, int] = (9, 9)) -> bytes:
    """A GIF with an extension and one frame of this size, of which there is one pixel."""
    data = encode(Image.new("P", (1, 1)), "GIF", comment=b"comment", save_all=True)
    place = data.index(b"\x2c\0\0\0\0\1\0\1\0")
    frame = data[: place + 5] + struct.pack("<HH", width, height) + data[place + 9 :]
    return frame[:6] + struct.pack("<HH", *screen) + frame[10:]


BOMBS = {
    "PNG": (png_claiming(60_000, 60_000), (60_000, 60_000)),
    "PNG just too large": (png_claiming(8947, 10_001 + 1), (8947, 10_002)),
    "PNG too wide": (png_claiming(65_536, 1, bytes(3 * 65_536 + 1)), (65_536, 1)),
    "PNG of 2^32": (png_claiming(2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1)),
    "JPEG": (jpeg_claiming(65_500, 65_500), (65_500, 65_500)),
    "BMP": (bmp_claiming(2**31 - 1, -(2**31)), (2**31 - 1, 2**31)),
    "BMP too wide": (bmp_claiming(100_000, 1, 300_000), (100_000, 1)),
    "BMP of negative height": (bmp_claiming(60_000, -60_000), (60_000, 60_000)),
    "GIF frame": (gif_claiming(65_535, 65_535), (65_535, 65_535)),
    "GIF screen": (gif_claiming(1, 1, screen=(65_535, 65_534)), (65_535, 65_534)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_made_to_fill_the_memory_is_refused_by_its_header(name: str) -> None:
    data, size = BOMBS[name]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        read_pixels(tf.constant(data))
    assert TOO_LARGE.format(*size) in str(caught.value)


def test_only_the_first_frame_of_a_gif_is_unpacked() -> None:
    """The second frame is a bomb: TensorFlow alone would unpack it, 4 GB of it."""
    first, second = gif_claiming(1, 1), gif_claiming(65_535, 65_535)
    data = first.rstrip(b";") + second[second.index(b"\x2c\0\0\0\0\xff\xff") :]
    assert read_pixels(tf.constant(data)).shape == (1, 1, 3)


def test_a_gif_of_endless_blocks_is_given_up() -> None:
    """Sub-blocks of one byte, then a frame: walking the millions that a request has room for would take minutes."""
    frame = gif_claiming(1, 1)
    place = frame.index(b"!\xfe")

    def commented(count: int) -> tf.Tensor:
        return tf.constant(frame[:place] + b"!\xfe" + b"\1a" * count + b"\0" + frame[place:])

    assert read_pixels(commented(1000)).shape == (1, 1, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        read_pixels(commented(10_000_000))


def cut(data: bytes, length: int) -> bytes:
    return data[:length]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"BM",
        b"\x89PNG\r\n\x1a\n",
        b"hello, world",
        bmp_claiming(5, -5, 10),
        bmp_claiming(-5, 5),
        png_claiming(0, 5),
        jpeg()[:200],
        cut(ordinary()["animated GIF"], 900),
        encode(photo(1), "WEBP"),
        encode(photo(1), "TIFF"),
        np.random.default_rng(0).bytes(5000),
    ],
)
def test_what_is_no_picture_is_an_error_of_the_request(data: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        read_pixels(tf.constant(data))


def test_another_format_is_told_what_to_be() -> None:
    rule = r"picture must be a JPEG, PNG, BMP or GIF. Received: bytes that begin with \[82 73 70 70\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
        read_pixels(tf.constant(encode(photo(1), "WEBP")))


def test_gifs_cut_anywhere_never_hang() -> None:
    data = ordinary()["animated GIF"]
    read = 0
    for length in range(0, len(data), 37):
        try:
            read_pixels(tf.constant(data[:length]))
            read += 1
        except tf.errors.InvalidArgumentError:
            continue
    assert read > 5


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """An exported classifier and the Keras model that it was made of."""
    folder = tmp_path_factory.mktemp("served")
    model = build_small_classifier(3)
    classes = ["blue", "green", "red"]
    (folder / "classes.txt").write_text("\n".join(classes))
    module = export.ServedClassifier(model, classes, folder / "classes.txt")
    tf.saved_model.save(module, str(folder / "1"), signatures=module.functions)
    return str(folder / "1"), model


def test_a_session_answers_as_the_keras_model_does(served: tuple[str, Any]) -> None:
    """TensorFlow Serving runs the graph in a session, without Python and without eager execution."""
    path, model = served
    kept = ("jpeg", "png", "grey", "rotated", "progressive")
    pictures = [d for n, d in mixed_pictures().items() if n.partition("/")[2].startswith(kept)]
    upright = [turned(plainly(d), jpeg_orientation(d)) for d in pictures]
    pixels = decode_batch(tf.constant([encode(Image.fromarray(p), "PNG") for p in upright]), SIDE)
    expected = model(pixels, training=False).numpy()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = loaded.signature_def["serving_default"]
        given, answer = signature.inputs["image_bytes"].name, signature.outputs["probabilities"].name
        np.testing.assert_allclose(session.run(answer, {given: pictures}), expected, atol=1e-6)
        for data, size in BOMBS.values():
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                session.run(answer, {given: [pictures[0], data]})
            assert TOO_LARGE.format(*size) in str(caught.value)
        # The picture beside the bomb is not lost: alone, it is answered.
        np.testing.assert_allclose(session.run(answer, {given: pictures[:1]}), expected[:1], atol=1e-6)
