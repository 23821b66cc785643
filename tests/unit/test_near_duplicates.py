"""Copies are found however they were made; different pictures of one thing are not taken for copies."""

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from graftflow.audit import Audited, audit_picture
from graftflow.embedded import open_closeups, open_digits
from graftflow.files import read_json
from graftflow.near_duplicates import MOST_BITS, Pair, find_pairs, perceptual_hash
from graftflow.pictures import Picture
from tests.unit.pictures_on_disk import encode, make_folder, rows, write


def picture(data: bytes) -> Audited:
    found = audit_picture(Picture("a/b", "a", lambda: data))
    assert isinstance(found, Audited)
    return found


def pairs_of(found: Sequence[Audited]) -> list[Pair]:
    comparable = [one for one in found if one.facts.hash >= 0]
    pixels = np.stack([np.frombuffer(one.thumbnail, np.uint8).reshape(32, 32) for one in comparable])
    return find_pairs([one.facts.hash for one in comparable], lambda indices: pixels[list(indices)])


def photographs() -> list[Image.Image]:
    """Whole photographs of scikit-image, no two of one thing."""
    from importlib.resources import files

    names = (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "ihc.png",
        "moon.png",
    )
    return [Image.open(str(files("skimage") / "data" / name)).convert("RGB") for name in names]


def jpeg(image: Image.Image, quality: int) -> bytes:
    return encode(image, "JPEG", quality=quality)


def smaller(image: Image.Image) -> Image.Image:
    return image.resize((image.width * 3 // 5, image.height * 3 // 5), Image.Resampling.BICUBIC)


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "encoded again": lambda image: jpeg(image, 60),
    "smaller": lambda image: encode(smaller(image), "PNG"),
    "brighter": lambda image: encode(brighter(image), "PNG"),
    "mirrored": lambda image: encode(ImageOps.mirror(image), "PNG"),
    "grey": lambda image: encode(image.convert("L"), "PNG"),
    "all at once": lambda image: jpeg(brighter(smaller(ImageOps.mirror(image))), 60),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_found_and_nothing_else(how: str) -> None:
    originals = photographs()
    found = [picture(encode(image, "PNG")) for image in originals]
    found += [picture(COPIES[how](image)) for image in originals]
    pairs = pairs_of(found)
    n = len(originals)
    assert [(pair.first, pair.second) for pair in pairs] == [(i, i + n) for i in range(n)]
    assert all(pair.mirrored == (how in ("mirrored", "all at once")) for pair in pairs)
    assert all(pair.bits <= MOST_BITS and pair.correlation >= 0.95 for pair in pairs)


def test_an_upright_copy_of_a_turned_photograph_is_found() -> None:
    image = photographs()[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    turned = encode(image.rotate(90, expand=True), "JPEG", exif=exif, quality=90)
    assert len(pairs_of([picture(encode(image, "PNG")), picture(turned)])) == 1


def test_tiles_of_one_photograph_are_no_copies_and_digits_are_not_compared() -> None:
    tiles = [picture(one.read()) for one in open_closeups().pictures]
    assert sum(one.facts.hash >= 0 for one in tiles) > 700
    assert pairs_of(tiles) == []
    # Scans of 8 by 8 pixels: a 1 is nearly equal to many another 1.
    assert all(picture(one.read()).facts.hash == -1 for one in list(open_digits().pictures)[:100])


def test_photographs_of_one_kind_are_no_copies(shared_data: Path) -> None:
    files = sorted(shared_data.glob("cats-vs-dogs/*/*.jpg"))[::4] + sorted(
        shared_data.glob("imagenet-sample/*.jpg")
    )
    assert pairs_of([picture(file.read_bytes()) for file in files]) == []


def test_plain_and_tiny_pictures_are_not_compared() -> None:
    ramp = Image.linear_gradient("L")
    assert picture(encode(Image.new("RGB", (90, 90), (9, 9, 12)), "PNG")).facts.plain
    assert picture(encode(Image.new("RGB", (90, 90), (9, 9, 12)), "PNG")).facts.hash == -1
    assert picture(encode(ramp.resize((31, 90)), "PNG")).facts.hash == -1
    assert picture(encode(ramp.resize((32, 90)), "PNG")).facts.hash >= 0
    # Two skies: dark above, bright below, and nothing else in common.
    skies = [ramp.resize((200, 200)), ramp.resize((200, 200)).point(lambda v: int(255 * (v / 255) ** 1.5))]
    noisy = [
        Image.fromarray(
            (np.asarray(s) + np.random.default_rng(i).normal(0, 9, (200, 200))).clip(0, 255).astype("uint8")
        )
        for i, s in enumerate(skies)
    ]
    assert pairs_of([picture(encode(image, "PNG")) for image in noisy]) == []


def test_every_pair_of_like_hashes_is_a_candidate() -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 2**64, 50, dtype=np.uint64)
    hashes, like = [], set()
    for i, value in enumerate(base.tolist()):
        turned = generator.choice(64, int(generator.integers(0, MOST_BITS + 1)), replace=False)
        hashes += [value, value ^ sum(1 << int(bit) for bit in turned)]
        like.add((2 * i, 2 * i + 1))
    same = np.asarray(photographs()[0].resize((32, 32)).convert("L"))
    found = find_pairs(hashes, lambda indices: np.stack([same] * len(indices)))
    assert {(pair.first, pair.second) for pair in found} >= like


def test_the_hash_is_the_same_everywhere() -> None:
    grey = bytes((x * x + 7 * x * y + 3 * y) % 251 for y in range(32) for x in range(32))
    assert perceptual_hash(grey) == 0xE20FC34414080100


def test_25_000_hashes_take_seconds() -> None:
    hashes = np.random.default_rng(1).integers(0, 2**64, 25_000, dtype=np.uint64).tolist()
    start = time.perf_counter()
    assert find_pairs(hashes, lambda indices: np.zeros((len(indices), 32, 32), np.uint8)) == []
    assert time.perf_counter() - start < 20


def mixed_up(root: Path) -> Path:
    """Tiles of photographs as two classes, with copies: one in its class, one in the other."""
    files: dict[str, bytes] = {}
    for k, image in enumerate(photographs()[:4]):
        for i in range(6):
            tile = image.crop((60 * i, 10 + 20 * i, 60 * i + 128, 138 + 20 * i))
            files[f"{'near' if k % 2 else 'far'}/{k}-{i}.png"] = encode(tile, "PNG")
    first = Image.open(io.BytesIO(files["far/0-1.png"]))
    files["far/copy.jpg"] = jpeg(brighter(first), 60)
    files["near/copy.png"] = encode(ImageOps.mirror(first), "PNG")
    return make_folder(root, files)


def test_near_copies_are_kept_in_one_split_listed_and_shown(tmp_path: Path) -> None:
    root = mixed_up(tmp_path / "views")
    for seed in range(4):
        dataset, info = write(root, seed=seed)
        manifest: dict[str, dict[str, Any]] = {row["path"]: row for row in rows(dataset / "manifest.csv")}
        together = ("far/0-1.png", "far/copy.jpg", "near/copy.png")
        assert len({manifest[path]["split"] for path in together}) == 1
        assert {manifest[path]["group"] for path in together} == {"far/0-1.png"}
        assert sum(bool(row["group"]) for row in manifest.values()) == 3
        assert info.pictures == 26
        assert (info.audit["near_duplicates"], info.audit["near_conflicts"]) == (3, 3)
    near = read_json(dataset / "audit.json")["near_duplicates"]
    assert (near["pairs"], near["groups"], near["mirrored"]) == (3, 1, 2)
    assert [(row["first"], row["second"], row["mirrored"]) for row in near["rows"]] == [
        ("far/0-1.png", "near/copy.png", True),
        ("far/copy.jpg", "near/copy.png", True),
        ("far/0-1.png", "far/copy.jpg", False),
    ]
    with Image.open(dataset / "near_duplicates.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert 1000 <= sheet.width <= 1400


def test_a_data_set_without_near_copies_has_no_sheet_of_them(tmp_path: Path) -> None:
    root = mixed_up(tmp_path / "views")
    (root / "far/copy.jpg").unlink()
    (root / "near/copy.png").unlink()
    dataset, info = write(root)
    assert info.audit["near_duplicates"] == 0
    assert not (dataset / "near_duplicates.jpg").exists()
