"""Copies are found however they were made; different pictures of one thing are not taken for copies."""

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from graftflow import near_duplicates
from graftflow.audit import Audited, audit_picture
from graftflow.embedded import open_closeups, open_digits
from graftflow.files import read_json
from graftflow.near_duplicates import ENOUGH, MOST_BITS, Likes, Pair, find_pairs, perceptual_hash
from graftflow.pictures import Picture
from tests.unit.pictures_on_disk import encode, make_folder, rows, write


def picture(data: bytes) -> Audited:
    found = audit_picture(Picture("a/b", "a", lambda: data))
    assert isinstance(found, Audited)
    return found


def pairs_of(found: Sequence[Audited]) -> list[Pair]:
    comparable = [one for one in found if one.facts.hash >= 0]
    pixels = np.stack([np.frombuffer(one.thumbnail, np.uint8).reshape(32, 32) for one in comparable])
    return find_pairs([one.facts.hash for one in comparable], lambda indices: pixels[list(indices)]).pairs


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


@pytest.mark.parametrize("many", [2**21, 0])
def test_every_pair_of_like_hashes_is_a_candidate(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_MANY", many)  # bands of 16 bits, and of 21 and 22
    generator = np.random.default_rng(0)
    base = generator.integers(0, 2**64, 50, dtype=np.uint64)
    hashes, like = [], set()
    for i, value in enumerate(base.tolist()):
        turned = generator.choice(64, int(generator.integers(0, MOST_BITS + 1)), replace=False)
        hashes += [value, value ^ sum(1 << int(bit) for bit in turned)]
        like.add((2 * i, 2 * i + 1))
    same = np.asarray(photographs()[0].resize((32, 32)).convert("L"))
    found = find_pairs(hashes, lambda indices: np.stack([same] * len(indices)))
    assert {(pair.first, pair.second) for pair in found.pairs} >= like
    assert found.near == set(range(100))
    assert find_pairs([], lambda _: np.zeros((0, 32, 32))).pairs == []


def test_the_hash_is_the_same_everywhere() -> None:
    grey = bytes((x * x + 7 * x * y + 3 * y) % 251 for y in range(32) for x in range(32))
    assert perceptual_hash(grey) == 0xE20FC34414080100


def test_25_000_hashes_take_seconds() -> None:
    hashes = np.random.default_rng(1).integers(0, 2**64, 25_000, dtype=np.uint64).tolist()
    start = time.perf_counter()
    assert find_pairs(hashes, lambda indices: np.zeros((len(indices), 32, 32), np.uint8)).count == 0
    assert time.perf_counter() - start < 20


def frames(count: int, noise: float = 2, photograph: int = 0) -> list[Any]:
    """What a fixed camera sees: one photograph's thumbnail with noise of some grey levels."""
    still = np.asarray(photographs()[photograph].convert("L").resize((32, 32), Image.Resampling.BOX))
    generator = np.random.default_rng(photograph)
    return [
        (still + generator.normal(0, noise, still.shape)).clip(0, 255).astype(np.uint8) for _ in range(count)
    ]


def search(pixels: Sequence[Any], **settings: Any) -> tuple[Likes, int]:
    """Search among thumbnails; return what is found, and how many thumbnails were asked for."""
    asked = 0

    def thumbnails(indices: Sequence[int]) -> Any:
        nonlocal asked
        asked += len(indices)
        return np.stack([pixels[i] for i in indices])

    return find_pairs([perceptual_hash(grey.tobytes()) for grey in pixels], thumbnails, **settings), asked


def grouped(links: Sequence[tuple[int, int]], count: int) -> set[frozenset[int]]:
    """Return the groups of two and more that links make."""
    groups = [{i} for i in range(count)]
    for first, second in links:
        if groups[first] is not groups[second]:
            groups[first] |= groups[second]
            for i in groups[second]:
                groups[i] = groups[first]
    return {frozenset(group) for group in groups if len(group) > 1}


def test_all_pairs_of_a_group_of_33_are_found() -> None:
    found, _ = search(frames(ENOUGH + 1))
    assert found.count == len(found.pairs) == ENOUGH * (ENOUGH + 1) // 2
    assert len(found.links) == ENOUGH


def test_work_and_memory_grow_with_the_pictures_where_hundreds_are_alike() -> None:
    work = {}
    for count in (300, 600):
        # Two cameras, in turns, and the first one seen in a mirror.
        scenes = [frames(count // 3), frames(count // 3, photograph=1)]
        scenes.append([np.ascontiguousarray(grey[:, ::-1]) for grey in frames(2 * count // 3)[count // 3 :]])
        pixels = [grey for three in zip(*scenes, strict=True) for grey in three]
        found, work[count] = search(pixels, most=50)
        first = frozenset(i for i in range(count) if i % 3 != 1)
        assert grouped(found.links, count) == {first, frozenset(range(count)) - first}
        assert found.near == set(range(count))
        assert len(found.links) == count - 2
        assert count * ENOUGH // 3 < found.count < 2 * count * ENOUGH
        assert 0 < found.mirrored < found.count
        assert len(found.pairs) <= 100
        assert found.pairs[:50] == sorted(found.pairs, key=lambda pair: (pair.first, pair.second))[:50]
        assert found.crowded == 0
    assert work[600] < 2.5 * work[300]


def test_every_picture_that_is_like_one_of_another_class_is_told_among_hundreds() -> None:
    pixels = frames(200)
    found, _ = search(pixels, labels=["cat"] * 150 + ["dog"] + ["cat"] * 49, most=300)
    assert found.conflicting == set(range(200))
    assert sum(150 in (pair.first, pair.second) for pair in found.pairs) == 199
    assert search(pixels)[0].conflicting == set()


def test_the_least_alike_pairs_are_kept_as_well() -> None:
    pixels = [grey for noise in (1, 6) for grey in frames(30, noise)]
    everything = search(pixels)[0].pairs
    some = search(pixels, most=20)[0].pairs
    assert len(everything) > 400
    assert set(some) == {*everything[:20], *sorted(everything, key=lambda pair: pair.correlation)[:20]}


@pytest.mark.parametrize("limit", ["MOST_COMPARED", "MOST_LOOKS"])
def test_of_unlike_pictures_with_one_hash_some_are_compared_and_the_others_told(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, limit, 40)
    noise = np.random.default_rng(0).integers(0, 256, (300, 32, 32), np.uint8)
    asked = 0

    def thumbnails(indices: Sequence[int]) -> Any:
        nonlocal asked
        asked += len(indices)
        return noise[list(indices)]

    found = find_pairs([perceptual_hash(noise[0].tobytes())] * 300, thumbnails)
    assert found.count == 0
    assert found.crowded > 200
    assert asked < 2 * 300 * (40 + ENOUGH)


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


def test_a_film_across_two_splits_is_a_leak_of_all_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    films = {"train": {"a": 0, "b": 1}, "validation": {"a": 3, "b": 4}, "test": {"a": 0, "b": 2}}
    for split, scenes in films.items():
        for label, photograph in scenes.items():
            for i, grey in enumerate(frames(50, noise=len(split) / 3, photograph=photograph)):
                files[f"{split}/{label}/{i}.png"] = encode(Image.fromarray(grey), "PNG")
    dataset, info = write(make_folder(tmp_path / "film", files))
    (leak,) = read_json(dataset / "audit.json")["leaks"]
    assert (leak["split"], leak["copy_in"], leak["pictures"]) == ("test", "train", 50)
    assert info.audit["near_duplicates"] == 300
    assert info.audit["near_conflicts"] == 0
    assert "were compared" not in info.note
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 1)
    monkeypatch.setattr(near_duplicates, "LEAST_DETAIL", 1.1)
    assert (
        "300 pictures have so many others of like outlines that not all" in write(tmp_path / "film")[1].note
    )


def test_a_data_set_without_near_copies_has_no_sheet_of_them(tmp_path: Path) -> None:
    root = mixed_up(tmp_path / "views")
    (root / "far/copy.jpg").unlink()
    (root / "near/copy.png").unlink()
    dataset, info = write(root)
    assert info.audit["near_duplicates"] == 0
    assert not (dataset / "near_duplicates.jpg").exists()
