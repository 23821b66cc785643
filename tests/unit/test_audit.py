"""Every picture is looked at: what is kept, what is written anew and what is left out."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftflow import audit
from graftflow.datasets import write_dataset
from graftflow.errors import InputError
from graftflow.files import read_json
from graftflow.splits import SPLITS
from tests.unit.pictures_on_disk import (
    cats_and_dogs,
    encode,
    make_folder,
    photo,
    reasons,
    records,
    rows,
    write,
)

CATS_AND_DOGS = Path(__file__).parents[2].parent / "shared" / "data" / "cats-vs-dogs"


def huge_png() -> bytes:
    """A PNG of a few bytes that says it is 20,000 by 20,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_unusable_pictures_are_left_out_and_listed(tmp_path: Path) -> None:
    jpeg, png = encode(photo(1, (300, 200)), "JPEG"), encode(photo(1, (300, 200)), "PNG")
    files = cats_and_dogs()
    broken = {
        "cat/empty.jpg": (b"", "is an empty file"),
        "cat/half.jpg": (jpeg[: len(jpeg) // 2], "is truncated"),
        "cat/half.png": (png[: len(png) // 2], "is truncated"),
        "cat/head.jpg": (jpeg[:20], "has a broken header"),
        "cat/huge.png": (huge_png(), "has more than 89,478,485 pixels"),
        "cat/noise.png": (png[:60] + b"\x55" * 200 + png[260:], "cannot be decoded: "),
        "cat/notes.txt": (b"hello", "is no JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM picture"),
        "cat/Thumbs.db": (b"\xd0\xcf\x11\xe0", "is no JPEG, PNG,"),
        "cat/vector.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is no JPEG, PNG,"),
        "cat/deep.tiff": (encode(Image.new("F", (4, 4), 0.5), "TIFF"), "has floating-point"),
        "loose.jpg": (jpeg, "stands beside the class folders"),
    }
    hidden = {"cat/.DS_Store": b"x", "cat/._0.jpg": b"x"}
    contents = files | hidden | {path: content for path, (content, _) in broken.items()}
    dataset, info = write(make_folder(tmp_path / "pets", contents))
    found = reasons(dataset)
    assert set(found) == set(broken)
    for path, (_, reason) in broken.items():
        assert found[path].startswith(reason), path
    assert info.audit["left_out"] == len(broken)
    assert info.pictures == 20


def test_a_class_emptied_by_corrupt_pictures_is_fatal(tmp_path: Path) -> None:
    files = cats_and_dogs() | {f"eel/{i}.jpg": b"\xff\xd8\xff no picture" for i in range(9)}
    files |= {f"eel/good{i}.jpg": encode(photo(9000 + i), "JPEG") for i in range(2)}
    pattern = "Class 'eel' of 'directory:.*' has 2. 9 left out, first: 'eel/0.jpg' "
    with pytest.raises(InputError, match=pattern) as caught:
        write(make_folder(tmp_path / "pets", files))
    assert "\n" not in str(caught.value)


def orange(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (24, 12), (255, 128, 0)).convert(mode)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(orange(), "PNG", exif=exif)


def see_through() -> Image.Image:
    image = orange("RGBA")
    image.putalpha(128)
    return image


def sixteen_bits() -> bytes:
    return encode(Image.fromarray(np.full((12, 24), 0x80FF, np.uint16)), "PNG")


ORANGE = (255, 128, 0)
CONVERTED = {
    "EXIF orientation": (rotated(), "PNG", ORANGE, (12, 24)),
    "CMYK": (encode(orange("CMYK"), "JPEG", quality=95), "JPEG", ORANGE, (24, 12)),
    "palette": (encode(orange().quantize(), "PNG", bits=8), "PNG", ORANGE, (24, 12)),
    "16 bits": (sixteen_bits(), "PNG", (128, 128, 128), (24, 12)),
    "1 bit": (encode(orange("1"), "PNG"), "PNG", None, (24, 12)),
    "transparency": (encode(see_through(), "PNG"), "PNG", (255, 191, 127), (24, 12)),
    "WEBP": (encode(orange(), "WEBP", lossless=True), "WEBP", ORANGE, (24, 12)),
    "GIF": (
        encode(orange().quantize(), "GIF", save_all=True, append_images=[Image.new("P", (24, 12))]),
        "GIF",
        ORANGE,
        (24, 12),
    ),
    "BMP": (encode(orange(), "BMP"), "BMP", ORANGE, (24, 12)),
    "TIFF": (encode(orange(), "TIFF"), "TIFF", ORANGE, (24, 12)),
    "PPM": (encode(orange(), "PPM"), "PPM", ORANGE, (24, 12)),
    "animation": (
        encode(orange(), "PNG", save_all=True, append_images=[Image.new("RGB", (24, 12))]),
        "PNG",
        ORANGE,
        (24, 12),
    ),
}


def test_unusual_pictures_become_upright_rgb_png(tmp_path: Path) -> None:
    files = cats_and_dogs()
    files |= {f"cat/{name}": content for name, (content, _, _, _) in CONVERTED.items()}
    dataset, info = write(make_folder(tmp_path / "pets", files))
    assert reasons(dataset) == {}
    assert info.audit["conversions"] == dict.fromkeys(sorted(CONVERTED), 1)
    assert info.audit["converted"] == len(CONVERTED)
    stored = {path: image for s in SPLITS for path, _, image in records(dataset, s)}
    manifest = {row["path"]: row for row in rows(dataset / "manifest.csv")}
    for name, (content, kind, colour, size) in CONVERTED.items():
        row = manifest[f"cat/{name}"]
        assert (row["converted"], row["format"]) == (name, kind)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        with Image.open(io.BytesIO(stored[f"cat/{name}"])) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
            assert (int(row["width"]), int(row["height"])) == size
            if colour:
                assert np.abs(np.asarray(image).astype(int) - colour).max() <= 3, name


def test_plain_pictures_keep_their_bytes_and_decode_in_tensorflow(tmp_path: Path) -> None:
    import tensorflow as tf

    files = cats_and_dogs() | {
        "cat/grey.jpg": encode(photo(1, mode="L"), "JPEG"),
        "cat/progressive.jpg": encode(photo(2), "JPEG", progressive=True),
        "cat/grey.png": encode(photo(3, mode="L"), "PNG"),
        "cat/rgb.png": encode(photo(4), "PNG"),
        "cat/wrong-suffix.png": encode(photo(5), "JPEG"),
    }
    dataset, info = write(make_folder(tmp_path / "pets", files))
    assert info.audit["converted"] == 0
    for split in SPLITS:
        for path, _, image in records(dataset, split):
            assert image == files[path]
            pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
            assert pixels.shape == (30, 40, 3)


def detailed(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Noise of 8 pixels a grain: a picture with edges, unlike every other of another size."""
    grain = np.random.default_rng(size).integers(0, 256, (24, 32, 3), np.uint8)
    return Image.fromarray(grain).resize(size, Image.Resampling.NEAREST).convert(mode)


def test_what_is_odd_about_kept_pictures_is_counted_and_listed(tmp_path: Path) -> None:
    files = {
        f"{label}/{i}.jpg": encode(photo(1000 * k + i, (400, 300)), "JPEG")
        for k, label in enumerate(("cat", "dog"))
        for i in range(30 if label == "cat" else 8)
    }
    odd = {
        "cat/png.jpg": (encode(detailed((200, 160)), "PNG"), "wrong_format", "PNG inside .jpg"),
        "cat/webp.PNG": (encode(detailed((210, 160)), "WEBP"), "wrong_format", "WEBP inside .PNG"),
        "cat/grey.jpg": (encode(detailed((220, 160), "L"), "JPEG"), "grey", "no colours"),
        "cat/grey-rgb.jpg": (encode(detailed((230, 160), "L").convert("RGB"), "JPEG"), "grey", "no colours"),
        "cat/small.jpg": (encode(detailed((70, 70)), "JPEG"), "small", "70 × 70 px"),
        "cat/long.jpg": (encode(detailed((800, 200)), "JPEG"), "elongated", "800 × 200 px"),
        "cat/dark.jpg": (
            encode(Image.new("RGB", (200, 200), (9, 9, 30)), "JPEG"),
            "plain",
            "hardly more than one",
        ),
        "cat/three-to-one.jpg": (encode(detailed((600, 200)), "JPEG"), "", ""),
        "cat/picture.bmp": (encode(detailed((300, 200)), "BMP"), "converted", "BMP"),
    }
    files |= {path: data for path, (data, _, _) in odd.items()}
    dataset, info = write(
        make_folder(tmp_path / "pets", files | {"cat/empty.jpg": b"", "dog/empty.jpg": b""})
    )
    audit = read_json(dataset / "audit.json")
    found = {kind: {row["path"]: row["detail"] for row in f["rows"]} for kind, f in audit["findings"].items()}
    for path, (_, kind, detail) in odd.items():
        if kind:
            assert found[kind][path].startswith(detail), path
    assert all(len(rows) == audit["findings"][kind]["count"] for kind, rows in found.items())
    expected = {"wrong_format": 2, "grey": 2, "small": 1, "elongated": 1, "plain": 1, "converted": 2}
    assert {kind: info.audit[kind] for kind in expected} == expected
    assert audit["left_out"] == {"empty": 2}
    assert audit["balance"] == {
        "largest": {"class": "cat", "pictures": 39},
        "smallest": {"class": "dog", "pictures": 8},
        "ratio": 4.875,
        "warning": True,
    }
    assert info.audit["imbalance"] == 4.875
    assert audit["rules"]["imbalance"] == 3


@pytest.mark.skipif(not CATS_AND_DOGS.is_dir(), reason=f"there are no photographs in {CATS_AND_DOGS}")
def test_photographs_of_cats_and_dogs_are_kept_as_they_are(tmp_path: Path) -> None:
    info = write_dataset(
        tmp_path,
        source=f"directory:{CATS_AND_DOGS}",
        seed=0,
        validation_fraction=0.15,
        test_fraction=0.15,
    )
    assert info.classes == ("cat", "dog")
    assert info.audit["left_out"] == info.audit["converted"] == 0
    assert info.audit["near_duplicates"] == info.audit["duplicates"] == 0
    assert info.pictures == sum(1 for _ in CATS_AND_DOGS.rglob("*.jpg"))
    assert info.counts["test"]["cat"] == info.counts["test"]["dog"]


def test_where_memory_ends_while_tensorflow_traces_no_thread_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorFlow keeps its lock then: a second try would never return."""
    tries = []

    class Function:
        def get_concrete_function(self) -> None:
            tries.append(1)
            raise MemoryError("no more")

    monkeypatch.setattr(audit, "_TRACING_ENDED", [])
    for _ in range(2):
        with pytest.raises(MemoryError, match="no more"):
            audit._trace(Function())
    assert len(tries) == 1
