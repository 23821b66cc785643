"""Cached features: the backbone sees a picture once, and a damaged cache is never believed."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from graftflow import backbones, caches, datasets, feature_cache, features, files, passes
from graftflow.errors import InputError
from graftflow.splits import SPLITS


def divide(folder: Path, pictures: Path, seed: int) -> Path:
    folder.mkdir()
    datasets.write_dataset(
        folder, source=f"directory:{pictures}", seed=seed, validation_fraction=0.25, test_fraction=0.25
    )
    return folder


def extract(folder: Path, dataset: Path, cache: Path | None, weights: str = "imagenet") -> dict:
    folder.mkdir()
    return features.write_features(
        folder, dataset_path=dataset, backbone="efficientnet_lite0", weights=weights, cache=cache
    )


def rows_by_path(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for split in ("train", "validation", "test"):
        with np.load(folder / f"{split}.npz") as arrays:
            found.update(zip(arrays["paths"].tolist(), arrays["features"], strict=True))
    return found


@pytest.fixture(scope="module")
def filled(artifacts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """A cache that has seen the 48 pictures, the features written with it and their summary."""
    root = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        # Two files, as after many pictures.
        patch.setattr(feature_cache, "_FLUSH_BYTES", 30 * (32 + 4 * 1280))
        summary = extract(root / "features", artifacts.dataset, root / "cache")
    return root / "cache", root / "features", summary


@pytest.fixture
def cache(filled, tmp_path: Path) -> Path:
    """A copy of the filled cache, to change."""
    return Path(shutil.copytree(filled[0], tmp_path / "cache"))


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the backbone was asked")

    monkeypatch.setattr(features.passes, "frozen_function", refuse)


def test_cached_and_uncached_features_agree(artifacts, filled) -> None:
    _, folder, summary = filled
    assert (summary["computed"], summary["cached"]) == (48, 0)
    plain = files.read_json(artifacts.features / "features.json")
    assert (plain["computed"], plain["cached"]) == (48, 0)
    for split in ("train", "validation", "test"):
        with np.load(folder / f"{split}.npz") as ours, np.load(artifacts.features / f"{split}.npz") as others:
            np.testing.assert_allclose(ours["features"], others["features"], rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(ours["labels"], others["labels"])
            np.testing.assert_array_equal(ours["paths"], others["paths"])
            assert ours["features"].dtype == np.float32


def test_another_seed_asks_no_backbone_and_gets_the_same_bits(
    artifacts, filled, tmp_path: Path, no_backbone: None
) -> None:
    other = divide(tmp_path / "dataset", artifacts.pictures, seed=5)
    summary = extract(tmp_path / "features", other, filled[0])
    assert (summary["computed"], summary["cached"]) == (0, 48)
    before, after = rows_by_path(filled[1]), rows_by_path(tmp_path / "features")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)
    with np.load(filled[1] / "train.npz") as ours, np.load(tmp_path / "features" / "train.npz") as theirs:
        assert set(ours["paths"]) != set(theirs["paths"])


def test_a_grown_folder_costs_its_new_pictures(artifacts, cache: Path, tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(artifacts.pictures, tmp_path / "pictures"))
    with Image.open(pictures / "brick" / "00.png") as picture:
        picture.convert("RGB").rotate(90).save(pictures / "brick" / "new.png")
    shutil.copy(pictures / "brick" / "new.png", pictures / "brick" / "copy.png")
    shutil.copy(pictures / "coffee" / "00.png", pictures / "coffee" / "copy.png")
    summary = extract(tmp_path / "features", divide(tmp_path / "dataset", pictures, seed=0), cache)
    assert sum(summary["counts"].values()) == 51
    assert (summary["computed"], summary["cached"]) == (1, 50)
    rows = rows_by_path(tmp_path / "features")
    np.testing.assert_array_equal(rows["brick/new.png"], rows["brick/copy.png"])
    assert not np.allclose(rows["brick/new.png"], rows["brick/00.png"])


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_cache_is_computed_again(
    artifacts, filled, cache: Path, tmp_path: Path, damage: str
) -> None:
    (shard, *others) = sorted(cache.rglob("*.rows"), key=lambda path: -path.stat().st_size)
    assert others, "more than one was written"
    data = bytearray(shard.read_bytes())
    lost = len(data) // (32 + 4 * 1280)
    data[len(data) // 2] ^= 1
    shard.write_bytes(data if damage == "flipped" else data[: len(data) - 4 * 1280 - 32])
    summary = extract(tmp_path / "features", artifacts.dataset, cache)
    assert (summary["computed"], summary["cached"]) == (lost, 48 - lost)
    before, after = rows_by_path(filled[1]), rows_by_path(tmp_path / "features")
    for path in before:
        np.testing.assert_allclose(after[path], before[path], rtol=1e-6, atol=1e-6)
    for path in cache.rglob("*.rows"):
        assert files.sha256_file(path) == path.stem


def test_other_weights_have_their_own_rows(artifacts, filled, cache: Path, tmp_path: Path) -> None:
    summary = extract(tmp_path / "features", artifacts.dataset, cache, weights="none")
    assert summary["computed"] == 48
    assert len(list((cache / "features").iterdir())) == 2
    before, after = rows_by_path(filled[1]), rows_by_path(tmp_path / "features")
    assert not any(np.allclose(after[path], before[path]) for path in before)


def test_the_key_follows_what_features_depend_on(filled) -> None:
    identity = filled[2]["backbone"]
    key = caches.key_of(features.cache_facts(identity))
    assert [folder.name for folder in (filled[0] / "features").iterdir()] == [key]
    for name, value in (
        ("weights_sha256", "0" * 64),
        ("keras", "9"),
        ("preprocessing", "x"),
        ("input_size", 1),
    ):
        assert caches.key_of(features.cache_facts({**identity, name: value})) != key
    # The same weights from a mirror's file are the same weights.
    assert caches.key_of(features.cache_facts({**identity, "weights": "mirror.pth"})) == key


@pytest.mark.parametrize("decode_ahead", [8, None])
def test_no_split_is_held_as_pixels(
    artifacts, monkeypatch: pytest.MonkeyPatch, decode_ahead: int | None
) -> None:
    """Decoding stops a few batches ahead of the network, however many pictures follow."""
    decoded, read, times = [], datasets.read_split, 40
    count = times * sum(datasets.split_size(artifacts.dataset, split) for split in SPLITS)

    def decode(_image: tf.Tensor, size: int, **_white: tf.Tensor) -> tf.Tensor:
        def note() -> np.float32:
            decoded.append(1)
            return np.float32(0.5)

        return tf.fill((size, size, 3), tf.ensure_shape(tf.numpy_function(note, [], tf.float32), ()))

    ahead = []

    def wait() -> np.float32:
        before = -1
        while before < len(decoded):  # until decoding has stopped by itself
            before = len(decoded)
            time.sleep(0.2)
        ahead.append(len(decoded))
        return np.float32(0)

    def network(pixels: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([pixels]):
            return pixels[:, 0, 0] + tf.numpy_function(wait, [], tf.float32)

    monkeypatch.setattr(features.preprocessing, "decode", decode)
    monkeypatch.setattr(datasets, "read_split", lambda path, split: read(path, split).repeat(times))
    rows = features.computed(
        artifacts.dataset, network if decode_ahead else passes.decoding(network, 8), wanted=np.ones(count, bool),
        decode_ahead=decode_ahead, batch_size=4, at_once=2,
    )  # fmt: skip
    places, first = next(rows)
    assert places.tolist() == [0, 1, 2, 3]
    assert first.shape == (4, 3)
    assert count > 900
    # Six batches for two passes, and some pictures of the next for each core; or what the two passes hold.
    assert 4 <= ahead[0] <= (6 * 4 + 4 * (os.cpu_count() or 1) if decode_ahead else 2 * 4)


def test_features_have_the_same_bits_wherever_and_in_whatever_batches_pictures_are_decoded(artifacts) -> None:
    function = passes.frozen_function(backbones.build("efficientnet_lite0"), 224)
    wanted = np.arange(48) % 5 > 0
    ways = [
        (function, {"batch_size": 5, "at_once": 1, "decode_ahead": 224}),
        (function, {"batch_size": 16, "decode_ahead": 224}),
        (passes.decoding(function, 224), {"batch_size": 8}),
        (passes.decoding(function, 224), {"batch_size": 7, "at_once": 3}),
    ]
    found = []
    for network, way in ways:
        rows = list(features.computed(artifacts.dataset, network, wanted=wanted, **way))
        assert np.concatenate([places for places, _ in rows]).tolist() == np.flatnonzero(wanted).tolist()
        found.append(np.concatenate([row for _, row in rows]))
    assert found[0].std() > 0.01
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_reading_never_waits_for_a_thread_that_tunes_it(artifacts) -> None:
    """Tuned iterators wait where they end, now and then for up to a minute: none must be."""
    records = datasets.read_split(artifacts.dataset, "train")
    batches = records.map(lambda r: r["label"], tf.data.AUTOTUNE).concatenate(
        records.map(lambda r: r["label"])
    )
    assert batches.batch(2).prefetch(2).options().autotune.enabled is False


def test_bad_settings_are_refused(artifacts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache must be a folder that can be written. Received: .*file"):
        extract(tmp_path / "features", artifacts.dataset, tmp_path / "file" / "cache")
    with pytest.raises(InputError, match="batch_size must be at least 1. Received: 0"):
        features.write_features(
            tmp_path, dataset_path=artifacts.dataset, backbone="vgg16", weights="none", batch_size=0
        )
