"""Pictures with any change: left out with a reason, or kept as bytes that the exported model decodes to pixels."""

import io
import warnings

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from graftflow.audit import Audited, LeftOut, audit_picture
from graftflow.encodings import as_stored, encode, jpeg_orientation
from graftflow.pictures import Picture, Unusable
from graftflow.preprocessing import decode, read_pixels
from tests.unit import pictures_on_disk
from tests.unit.mixed_pictures import (
    exif_block,
    grey_of_16_bits,
    png_chunk,
    see_through,
    turned_png,
    with_exif,
)
from tests.unit.pictures_on_disk import photo
from tests.unit.properties import changed, examples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
PHOTO = photo(5, (24, 16))
KINDS = {
    "JPEG": pictures_on_disk.encode(PHOTO, "JPEG"),
    "progressive": pictures_on_disk.encode(PHOTO, "JPEG", progressive=True),
    "grey": pictures_on_disk.encode(PHOTO.convert("L"), "JPEG"),
    "CMYK": pictures_on_disk.encode(PHOTO.convert("CMYK"), "JPEG"),
    "EXIF": with_exif(pictures_on_disk.encode(PHOTO, "JPEG"), exif_block(6)),
    "PNG": pictures_on_disk.encode(PHOTO, "PNG"),
    "turned PNG": turned_png(PHOTO),
    "palette": pictures_on_disk.encode(PHOTO.quantize(8), "PNG"),
    "alpha": see_through(PHOTO),
    "16 bits": grey_of_16_bits(PHOTO),
    "GIF": pictures_on_disk.encode(PHOTO, "GIF"),
    "BMP": pictures_on_disk.encode(PHOTO, "BMP"),
    "WebP": pictures_on_disk.encode(PHOTO, "WEBP"),
    "TIFF": pictures_on_disk.encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "PPM": pictures_on_disk.encode(PHOTO, "PPM"),
}


def check(data: bytes) -> Audited | LeftOut:
    """Look at a picture as ``download_data`` does, and check what must hold of any."""
    found = audit_picture(Picture("cat/1", "cat", lambda: data))
    if isinstance(found, LeftOut):
        assert found.reason
        assert found.reason.isprintable()
        with pytest.raises(Unusable):
            as_stored(data)
        return found
    facts = found.facts
    # Pillow and TensorFlow see a picture of one size, and the graph of the exported model makes pixels of it.
    assert tuple(read_pixels(tf.constant(found.data)).shape) == (facts.height, facts.width, 3)
    pixels = decode(tf.constant(found.data), 8).numpy()
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert (found.data == data) == (not facts.converted)
    # What a client sends is what is stored, but for what TensorFlow alone refuses; it stays as it is from then on.
    if not facts.converted.endswith("TensorFlow cannot decode"):
        assert as_stored(data) == found.data
    assert as_stored(found.data) == found.data
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_whole_is_kept(kind: str) -> None:
    assert isinstance(check(KINDS[kind]), Audited)


@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
@examples(3)
def test_a_changed_picture_is_left_out_or_decodes_to_pixels(kind: str, data: st.DataObject) -> None:
    check(data.draw(changed(KINDS[kind])))


@given(data=st.data(), kind=st.sampled_from([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"gAMA", b"iCCP", b"acTL",
                                             b"fcTL", b"zTXt", b"iTXt", b"sBIT"]))  # fmt: skip
@examples(2)
def test_a_png_of_changed_chunks_is_left_out_or_decodes_to_pixels(data: st.DataObject, kind: bytes) -> None:
    """Chunks whose checksum is right: what is changed inside of them reaches the decoders."""
    start, chunks = KINDS[data.draw(st.sampled_from(["PNG", "palette", "alpha", "16 bits"]))], []
    at = 8
    while at + 12 <= len(start):
        size = int.from_bytes(start[at : at + 4])
        chunks.append((start[at + 4 : at + 8], start[at + 8 : at + 8 + size]))
        at += 12 + size
    place = data.draw(st.integers(0, len(chunks) - 1))
    name, body = chunks[place]
    if data.draw(st.booleans()):
        chunks[place] = (name, data.draw(changed(body)) if body else data.draw(st.binary(max_size=9)))
    else:
        chunks.insert(place, (kind, data.draw(st.binary(max_size=40))))
    check(start[:8] + b"".join(png_chunk(*chunk) for chunk in chunks))


@given(
    block=st.one_of(st.binary(max_size=60), changed(exif_block(6)), changed(exif_block(8, ">"))),
    jfif=st.booleans(),
)
@examples(2)
def test_any_exif_turns_a_picture_alike_everywhere(block: bytes, jfif: bool) -> None:
    """The client, the data set and the graph turn it, or do not; and none of them loses it."""
    data = with_exif(KINDS["JPEG"], block, jfif=jfif)
    found = check(data)
    assert isinstance(found, Audited)
    turned = (
        jpeg_orientation(found.data) > 4 if found.data.startswith(b"\xff\xd8") else found.facts.width == 16
    )
    assert (found.facts.width, found.facts.height) == ((16, 24) if turned else (24, 16))
    with warnings.catch_warnings(action="ignore"):
        assert encode(found.data).image.size == (found.facts.width, found.facts.height)


@given(data=st.one_of(st.binary(max_size=80), st.tuples(
    st.sampled_from([b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF", b"II*\0", b"P6"]),
    st.binary(max_size=80)).map(b"".join)))  # fmt: skip
@examples(2)
def test_any_bytes_are_left_out_or_decode(data: bytes) -> None:
    check(data)


def test_a_png_that_pillow_alone_decodes_is_written_anew() -> None:
    """A length that goes beyond the file: Pillow has all rows by then, TensorFlow wants the rest."""
    data = bytearray(KINDS["PNG"])
    place = data.index(b"IDAT")
    data[place - 4 : place] = (2**20).to_bytes(4)
    found = check(bytes(data))
    assert isinstance(found, Audited)
    assert found.facts.converted == "PNG that TensorFlow cannot decode"


def test_the_picture_of_these_tests_is_no_plain_one() -> None:
    with Image.open(io.BytesIO(KINDS["PNG"])) as image:
        assert np.asarray(image).std() > 10
