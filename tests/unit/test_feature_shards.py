"""Features in parts: gathered they are the unsharded ones bit by bit, and no wrong set of shards is gathered."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graftflow import feature_shards, features, files
from graftflow.errors import InputError
from graftflow.feature_shards import Shard, merge_shards

SPLITS = ("train", "validation", "test")


def extract(folder: Path, dataset: Path, shard: int, num_shards: int, **others) -> dict:
    folder.mkdir(parents=True)
    arguments = {"backbone": "efficientnet_lite0", "weights": "imagenet", **others}
    return features.write_feature_shard(
        folder, dataset_path=dataset, shard=shard, num_shards=num_shards, **arguments
    )


@pytest.fixture(scope="module")
def three(artifacts, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The 48 pictures in three shards, without a cache."""
    root = tmp_path_factory.mktemp("three")
    for number in range(3):
        extract(root / str(number), artifacts.dataset, number, 3)
    return [root / str(number) for number in range(3)]


@pytest.fixture
def copies(three: list[Path], tmp_path: Path) -> list[Path]:
    """Copies of the three shards, to change."""
    return [Path(shutil.copytree(path, tmp_path / "copies" / path.name)) for path in three]


def say(folder: Path, **changes) -> None:
    files.write_json(folder / "shard.json", {**files.read_json(folder / "shard.json"), **changes})


def merge(folder: Path, shards: list[Path]) -> dict:
    folder.mkdir()
    return merge_shards(folder, shard_paths=shards)


def test_gathered_shards_are_the_unsharded_features_byte_by_byte(artifacts, three, tmp_path: Path) -> None:
    summary = merge(tmp_path / "features", three[::-1])
    for split in SPLITS:
        ours, others = tmp_path / "features" / f"{split}.npz", artifacts.features / f"{split}.npz"
        assert ours.read_bytes() == others.read_bytes(), split
        with np.load(ours) as arrays:
            assert np.ptp(arrays["features"], axis=0).max() > 0
    before = files.read_json(artifacts.features / "features.json")
    assert list(summary) == list(before)
    assert {**summary, "seconds": 0} == {**before, "seconds": 0}
    told = [files.read_json(path / "shard.json") for path in three]
    assert [shard["computed"] for shard in told] == [16, 16, 16]
    assert summary["seconds"] == pytest.approx(sum(shard["seconds"] for shard in told))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_shards_hold_every_picture_once_and_differ_by_one_at_most(total: int) -> None:
    counts, seen = (31, 4, 9), []
    held = []
    for number in range(total):
        first, held_here = 0, 0
        for count in counts:
            places = Shard(number, total).places(count, first=first)
            seen += (first + places).tolist()
            first, held_here = first + count, held_here + len(places)
        held.append(held_here)
    assert sorted(seen) == list(range(44))
    assert max(held) - min(held) <= 1


def test_more_shards_than_pictures_leave_some_empty_and_lose_nothing(artifacts, tmp_path: Path) -> None:
    shards = [tmp_path / str(number) for number in range(64)]
    cache = tmp_path / "cache"
    with_cache = {"weights": "imagenet", "cache": cache}
    (tmp_path / "whole").mkdir()
    features.write_features(
        tmp_path / "whole", dataset_path=artifacts.dataset, backbone="efficientnet_lite0", **with_cache
    )
    for number in (0, 47, 48, 63):  # the others are cut from the whole
        extract(shards[number], artifacts.dataset, number, 64, **with_cache)
    whole = {split: dict(np.load(tmp_path / "whole" / f"{split}.npz")) for split in SPLITS}
    for number in set(range(64)) - {0, 47, 48, 63}:
        shutil.copytree(shards[0], shards[number])
        first = 0
        for split, columns in whole.items():
            places = Shard(number, 64).places(len(columns["labels"]), first=first)
            first += len(columns["labels"])
            rows = {name: column[places] for name, column in columns.items()}
            np.savez(shards[number] / f"{split}.npz", places=places, **rows)
        say(shards[number], shard=number)
    assert files.read_json(shards[63] / "shard.json")["cached"] == 0
    merge(tmp_path / "features", shards)
    for split in SPLITS:
        ours = tmp_path / "features" / f"{split}.npz"
        assert ours.read_bytes() == (tmp_path / "whole" / f"{split}.npz").read_bytes()


@pytest.mark.parametrize(
    ("pick", "received"),
    [
        ([0, 2], "0, 2 (missing: 1)"),
        ([0, 0, 1], "0, 0, 1 (missing: 2)"),
        ([0, 1, 2, 2], "0, 1, 2, 2"),
        ([], "none"),
    ],
)
def test_a_shard_that_is_missing_or_there_twice_is_refused(three, tmp_path: Path, pick, received) -> None:
    with pytest.raises(InputError, match="feature_shards must hold") as caught:
        merge(tmp_path / "features", [three[number] for number in pick])
    assert str(caught.value).endswith(f"Received: {received}")
    assert not list((tmp_path / "features").iterdir())


def test_a_copy_of_a_shard_under_another_name_is_there_twice(copies, tmp_path: Path) -> None:
    shutil.copytree(copies[1], tmp_path / "again")
    with pytest.raises(InputError, match=r"once\. Received: 0, 1, 1, 2$"):
        merge(tmp_path / "features", [*copies, tmp_path / "again"])


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"dataset_digest": "f" * 64}, "the same dataset_digest"),
        ({"num_shards": 4}, "the same num_shards. Received: '3' in shard 0, '4' in shard 1"),
        ({"classes": ["cat", "dog"]}, "the same classes"),
        ({"backbone": {"name": "vgg16", "weights_sha256": "ab" * 32}}, "'vgg16 abababababab' in shard 1"),
    ],
)
def test_a_shard_of_another_extraction_is_refused(copies, tmp_path: Path, change, shown) -> None:
    say(copies[1], **change)
    with pytest.raises(InputError, match="must be of one extraction") as caught:
        merge(tmp_path / "features", copies)
    assert shown in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_weights_are_another_extraction(artifacts, copies, tmp_path: Path) -> None:
    shutil.rmtree(copies[1])
    extract(copies[1], artifacts.dataset, 1, 3, weights="none")
    with pytest.raises(
        InputError, match="the same backbone. Received: 'efficientnet_lite0 [0-9a-f]{12}' in shard 0"
    ):
        merge(tmp_path / "features", copies)


@pytest.mark.parametrize("name", ["shard.json", "validation.npz"])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_shard_is_named(copies, tmp_path: Path, name: str, damage: str) -> None:
    path = copies[2] / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="as extract_features writes them") as caught:
        merge(tmp_path / "features", copies)
    assert str(path) in str(caught.value)


def test_every_picture_needs_exactly_one_row(copies, tmp_path: Path) -> None:
    with np.load(copies[0] / "test.npz") as arrays:
        columns = dict(arrays)
    columns["places"][0] = columns["places"][1]
    np.savez(copies[0] / "test.npz", **columns)
    with pytest.raises(InputError, match="1 pictures without one, 1 with more") as caught:
        merge(tmp_path / "features", copies)
    assert "pictures of test" in str(caught.value)


def test_a_failed_shard_alone_is_computed_again_and_only_what_it_lacks(
    artifacts, three, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, original = tmp_path / "cache", features.passes.decoding
    with_cache = {"cache": cache, "batch_size": 4}

    def failing(network, input_size):
        function, calls = original(network, input_size), []

        def run(batch):
            calls.append(1)
            if len(calls) > 2:  # two batches are done, and kept
                raise RuntimeError("the GPU fell off")
            return function(batch)

        return run

    for number in (0, 2):
        assert extract(tmp_path / str(number), artifacts.dataset, number, 3, **with_cache)["computed"] == 16
    monkeypatch.setattr(features.passes, "decoding", failing)
    with pytest.raises(RuntimeError, match="fell off"):
        extract(tmp_path / "1", artifacts.dataset, 1, 3, **with_cache)
    monkeypatch.setattr(features.passes, "decoding", original)
    shutil.rmtree(tmp_path / "1")
    again = extract(tmp_path / "1", artifacts.dataset, 1, 3, **with_cache)
    assert again["computed"] + again["cached"] == 16
    assert (again["computed"], again["cached"]) == (8, 8)
    merge(tmp_path / "features", [tmp_path / str(number) for number in range(3)])
    for split in SPLITS:
        ours = tmp_path / "features" / f"{split}.npz"
        assert ours.read_bytes() == (artifacts.features / f"{split}.npz").read_bytes()


def test_shards_in_processes_of_their_own_share_one_cache(artifacts, tmp_path: Path) -> None:
    code = (
        "import sys; from graftflow.features import write_feature_shard as w\n"
        "w(sys.argv[1], dataset_path=sys.argv[2], backbone='efficientnet_lite0', weights='imagenet',"
        " shard=int(sys.argv[3]), num_shards=2, cache=sys.argv[4])"
    )
    shards, cache = [tmp_path / "0", tmp_path / "1"], tmp_path / "cache"
    processes = []
    for number, shard in enumerate(shards):
        shard.mkdir()
        arguments = [str(shard), str(artifacts.dataset), str(number), str(cache)]
        processes.append(
            subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
        )
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    summary = merge(tmp_path / "features", shards)
    assert (summary["computed"], summary["cached"]) == (48, 0)
    for split in SPLITS:
        ours = tmp_path / "features" / f"{split}.npz"
        assert ours.read_bytes() == (artifacts.features / f"{split}.npz").read_bytes()
    # And the whole, by one process, finds what both have kept.
    assert extract(tmp_path / "whole", artifacts.dataset, 0, 1, cache=cache)["cached"] == 48


@pytest.mark.parametrize(
    ("number", "total", "rule"),
    [
        (3, 3, "shard must be a whole number from 0 to 2, below num_shards. Received: 3"),
        (-1, 3, "shard must be a whole number from 0 to 2, below num_shards. Received: -1"),
        (0, 0, "num_shards must be a whole number from 1 to 1024. Received: 0"),
    ],
)
def test_a_shard_must_be_one_of_its_number(number: int, total: int, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        Shard(number, total)
    assert str(caught.value) == rule


def test_the_gather_loads_no_tensorflow() -> None:
    """A TensorFlow import is 2 to 4 seconds, which every run with one shard would pay as well."""
    code = (
        "import sys, json, components.merge_features, graftflow.feature_shards, graftflow.files\n"
        "print(json.dumps([m for m in ('tensorflow', 'keras', 'sklearn', 'PIL') if m in sys.modules]))"
    )
    root = Path(feature_shards.__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []
