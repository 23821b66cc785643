"""What a client sends is what the data set holds: the same bytes, turned and decoded in the same way everywhere."""

import io
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from graftflow import contact_sheets
from graftflow.encodings import as_stored, encode, jpeg_orientation, upright
from graftflow.pictures import Unusable
from graftflow.preprocessing import read_pixels
from graftflow.splits import SPLITS
from tests.unit import pictures_on_disk
from tests.unit.mixed_pictures import (
    CLASSES,
    CORRUPT,
    COUNT,
    KEPT,
    exif_block,
    mixed_pictures,
    png_claiming,
    segment,
    turned_by_xmp,
    turned_png,
    with_exif,
    write_mixed_pictures,
    xmp,
)
from tests.unit.pictures_on_disk import photo, reasons, records, rows


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    return mixed_pictures()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_mixed_pictures(tmp_path_factory.mktemp("mixed") / "pictures")
    return pictures_on_disk.write(root)[0]


@pytest.fixture(scope="module")
def stored(dataset: Path) -> dict[str, bytes]:
    return {path: image for split in SPLITS for path, _, image in records(dataset, split)}


def jpeg(size: tuple[int, int] = (40, 30)) -> bytes:
    return pictures_on_disk.encode(photo(3, size), "JPEG", quality=95)


def test_there_are_a_hundred_mixed_pictures(pictures: dict[str, bytes]) -> None:
    assert len(pictures) == len(set(pictures.values())) == COUNT
    assert {path.partition("/")[0] for path in pictures} == set(CLASSES)


def test_a_client_sends_the_very_bytes_that_the_data_set_holds(
    pictures: dict[str, bytes], stored: dict[str, bytes]
) -> None:
    assert {path: as_stored(data) for path, data in pictures.items()} == stored


def test_a_jpeg_turned_by_exif_keeps_its_bytes(pictures: dict[str, bytes], stored: dict[str, bytes]) -> None:
    kept = {path for path, data in pictures.items() if stored[path] == data}
    assert kept == {path for path in pictures if path.partition("/")[2].startswith(KEPT)}
    assert sum("/rotated-" in path for path in kept) == 16


def test_what_is_sent_twice_stays(stored: dict[str, bytes]) -> None:
    assert {path: as_stored(data) for path, data in stored.items()} == stored


def test_the_model_sees_what_pillow_sees(dataset: Path, stored: dict[str, bytes]) -> None:
    sizes = {row["path"]: (int(row["height"]), int(row["width"])) for row in rows(dataset / "manifest.csv")}
    for path, data in stored.items():
        seen = read_pixels(tf.constant(data)).numpy()
        with Image.open(io.BytesIO(data)) as image:
            shown = np.asarray(upright(image).convert("RGB"))
        assert seen.shape[:2] == shown.shape[:2] == sizes[path], path
        # The two decode a JPEG with different arithmetic.
        most = 0 if data.startswith(b"\x89PNG") else 6
        assert np.abs(seen.astype(int) - shown).mean() <= most / 3, path


def test_a_corrupt_picture_has_the_same_reason_for_the_client(dataset: Path) -> None:
    found = reasons(dataset)
    assert set(found) == {CORRUPT}
    with pytest.raises(Unusable) as caught:
        as_stored((dataset.parent / "pictures" / CORRUPT).read_bytes())
    assert str(caught.value) == found[CORRUPT] == "is truncated"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is an empty file"),
        (b"hello", "is no JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM picture"),
        (png_claiming(20_000, 20_000), "has more than 89,478,485 pixels"),
        (png_claiming(10_000, 10_000), "has more than 89,478,485 pixels"),
        (png_claiming(70_000, 2), "has a side of more than 65,535 pixels"),
    ],
)
def test_what_cannot_be_used_is_told(data: bytes, reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        as_stored(data)


def turned_png_and_xmp() -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    yield "a PNG with EXIF", turned_png(photo(3)), (30, 40)
    yield "a JPEG with XMP", turned_by_xmp(photo(3)), (30, 40)
    both = with_exif(jpeg(), exif_block(6))
    # EXIF wins over XMP, for Pillow and the model alike.
    yield "both", both[:2] + segment(0xFFE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(3)) + both[2:], (30, 40)
    late = jpeg()
    place = late.index(b"\xff\xda")
    yield (
        "EXIF behind the tables",
        late[:place] + segment(0xFFE1, b"Exif\0\0" + exif_block(6)) + late[place:],
        (30, 40),
    )


@pytest.mark.parametrize(("name", "data", "size"), turned_png_and_xmp())
def test_what_the_model_would_not_turn_is_turned_before(
    name: str, data: bytes, size: tuple[int, int]
) -> None:
    found = encode(data)
    assert found.image.size == size
    assert (found.converted, found.data == data) == (
        ("", True) if name == "both" else ("EXIF orientation", False)
    )
    assert read_pixels(tf.constant(found.data)).shape == (size[1], size[0], 3)
    with Image.open(io.BytesIO(found.data)) as image:
        assert upright(image).size == size


def test_malformed_exif_neither_turns_a_picture_nor_loses_it() -> None:
    for block in (b"", b"II*\0", b"nonsense" * 9, exif_block(6)[:20], exif_block(9), exif_block(6, kind=99)):
        data = with_exif(jpeg(), block)
        with warnings.catch_warnings(action="ignore"):
            found = encode(data)
        assert (found.image.size, found.converted, found.data) == ((40, 30), "", data), block


def test_a_value_outside_of_the_block_ends_the_belief_in_it() -> None:
    inside = exif_block(6, before=b"\x0f\x01\x02\0\x06\0\0\0\x08\0\0\0")
    outside = exif_block(6, before=b"\x0f\x01\x02\0\x06\0\0\0\0\0\0\x7f")
    assert jpeg_orientation(with_exif(jpeg(), inside)) == 6
    assert jpeg_orientation(with_exif(jpeg(), outside)) == 1


def test_sheets_show_a_turned_picture_upright() -> None:
    turned = with_exif(jpeg((200, 100)), exif_block(6))
    with Image.open(io.BytesIO(turned)) as image:
        plain = pictures_on_disk.encode(upright(image), "PNG")
    sheets = [
        (
            contact_sheets.draw_contact_sheet([("cat", "", [data])], heading="h"),
            contact_sheets.draw_pairs([("x", [("a", data), ("b", data)])], heading="h"),
        )
        for data in (turned, plain)
    ]
    for one, other in zip(*sheets, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean() < 0.5


def test_encodings_need_no_tensorflow() -> None:
    code = "import sys, graftflow.encodings; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
