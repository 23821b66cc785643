"""The dataset artifact: who is in it, in which split, and how it is read."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftflow.datasets import load_info, read_split, split_size, write_dataset
from graftflow.errors import InputError
from graftflow.splits import SPLITS
from tests.unit.pictures_on_disk import (
    FRACTIONS,
    bmp,
    cats_and_dogs,
    encode,
    make_folder,
    photo,
    reasons,
    records,
    rows,
    write,
)


def test_the_artifact_is_what_the_architecture_says(tmp_path: Path) -> None:
    files = cats_and_dogs()
    dataset, info = write(make_folder(tmp_path / "pets", files))
    assert {p.name for p in dataset.iterdir()} == {
        "classes.json",
        "dataset.json",
        "manifest.csv",
        "left_out.csv",
        "audit.json",
        "contact_sheet.jpg",
        *(f"{split}-00000-of-00001.tfrecord" for split in SPLITS),
    }
    about = json.loads((dataset / "dataset.json").read_text())
    assert list(about) == ["source", "seed", "fractions", "counts", "digest", "note", "audit"]
    assert about["fractions"] == {"train": 0.6, "validation": 0.2, "test": 0.2}
    assert about["counts"]["train"] == {"cat": 6, "dog": 6}
    assert about["counts"]["test"] == about["counts"]["validation"] == {"cat": 2, "dog": 2}
    digest = hashlib.sha256((dataset / "manifest.csv").read_bytes()).hexdigest()
    assert about["digest"] == info.digest == digest
    assert about["audit"] == {
        "pictures": 20,
        "left_out": 0,
        "duplicates": 0,
        "near_duplicates": 0,
        "near_conflicts": 0,
        "leaks": 0,
        "converted": 0,
        "conversions": {},
        "wrong_format": 0,
        "grey": 0,
        "plain": 0,
        "small": 20,
        "elongated": 0,
        "imbalance": 1.0,
        "formats": {"JPEG": 20},
        "widths": {"minimum": 40, "median": 40, "maximum": 40},
        "heights": {"minimum": 30, "median": 30, "maximum": 30},
    }
    manifest = rows(dataset / "manifest.csv")
    assert [row["path"] for row in manifest] == sorted(files)
    assert str(tmp_path) not in (dataset / "manifest.csv").read_text()
    assert info.classes == ("cat", "dog")
    assert info.pictures == 20
    for split in SPLITS:
        listed = {row["path"]: row for row in manifest if row["split"] == split}
        read = records(dataset, split)
        assert {path for path, _, _ in read} == set(listed)
        assert split_size(dataset, split) == len(read) == len(read_split(dataset, split))
        for path, label, image in read:
            assert image == files[path]
            assert hashlib.sha256(image).hexdigest() == listed[path]["sha256"]
            assert info.classes[label] == listed[path]["label"] == path.split("/")[0]


def test_a_seed_fixes_splits_and_order_wherever_the_folder_stands(tmp_path: Path) -> None:
    files = cats_and_dogs()
    (first, one), (other, two) = (
        write(make_folder(tmp_path / "a", files), seed=5),
        write(make_folder(tmp_path / "z", dict(reversed(files.items()))), seed=5),
    )
    assert (first / "manifest.csv").read_bytes() == (other / "manifest.csv").read_bytes()
    assert one.digest == two.digest
    for split in SPLITS:
        assert records(first, split) == records(other, split) == records(first, split)
    _, changed = write(tmp_path / "a", seed=6)
    assert changed.digest != one.digest


def test_the_manifest_is_the_same_on_every_machine(tmp_path: Path) -> None:
    files = {f"{c}/{i:02d}.bmp": bmp(ord(c) * 100 + i) for c in "abc" for i in range(20)}
    dataset, info = write(make_folder(tmp_path / "colours", files), seed=42)
    assert info.digest == "037efb38bdb2a92346108d0115e208171a0c37fc48015f1bb973da54e9780cde"
    assert [path for path, _, _ in records(dataset, "test")][:2] == ["c/18.bmp", "a/08.bmp"]


def test_classes_are_mixed_in_the_order_of_the_records(tmp_path: Path) -> None:
    dataset, _ = write(make_folder(tmp_path / "pets", cats_and_dogs(30)))
    labels = [label for _, label, _ in records(dataset, "train")]
    assert labels != sorted(labels)
    assert set(labels[:12]) == {0, 1}


def test_copies_stay_in_one_split_and_are_counted(tmp_path: Path) -> None:
    files = cats_and_dogs()
    for i in range(4):
        files[f"cat/copy{i}.jpg"] = files["cat/3.jpg"]
        files[f"dog/pair{i}.jpg"] = files[f"dog/{i}.jpg"]
    root = make_folder(tmp_path / "pets", files)
    for seed in range(6):
        dataset, info = write(root, seed=seed, validation_fraction=0.3, test_fraction=0.3)
        assert info.audit["duplicates"] == 8
        assert info.pictures == 28
        by_content: dict[str, set[str]] = {}
        for row in rows(dataset / "manifest.csv"):
            by_content.setdefault(row["sha256"], set()).add(row["split"])
        assert all(len(splits) == 1 for splits in by_content.values())


def test_three_copies_of_one_picture_are_no_class(tmp_path: Path) -> None:
    files = cats_and_dogs() | {f"eel/{i}.jpg": encode(photo(9000), "JPEG") for i in range(3)}
    with pytest.raises(InputError, match=r"3 different pictures .* Class 'eel' of .* has 1\.$"):
        write(make_folder(tmp_path / "pets", files))


def test_what_was_left_out_of_a_class_that_is_too_small_is_told(tmp_path: Path) -> None:
    broken = {"alone.jpg": b"", "cat/notes.txt": b"no picture", "dog/broken.jpg": b"\xff\xd8\xff"}
    files = cats_and_dogs() | broken
    dataset, info = write(make_folder(tmp_path / "pets", files))
    assert sorted(reasons(dataset)) == sorted(broken)
    assert all(reasons(dataset).values())
    assert (info.audit["pictures"], info.audit["left_out"]) == (20, 3)
    files |= {f"eel/{i}.jpg": encode(photo(9000 + i), "JPEG") for i in range(2)}
    files |= {"eel/2.jpg": b"\xff\xd8\xff", "eel/3.jpg": b""}
    with pytest.raises(
        InputError, match=r"Class 'eel' of .* has 2\. 2 left out, first: 'eel/2\.jpg' has a broken header"
    ):
        write(make_folder(tmp_path / "more", files))


def test_equal_bytes_in_two_classes_are_all_left_out(tmp_path: Path) -> None:
    files = cats_and_dogs()
    files["dog/cat.jpg"] = files["cat/twin.jpg"] = files["cat/0.jpg"]
    dataset, info = write(make_folder(tmp_path / "pets", files))
    assert reasons(dataset) == {
        "cat/0.jpg": "has the same bytes as 'dog/cat.jpg', which is of another class",
        "cat/twin.jpg": "has the same bytes as 'dog/cat.jpg', which is of another class",
        "dog/cat.jpg": "has the same bytes as 'cat/0.jpg', which is of another class",
    }
    assert info.pictures == 19
    assert (info.audit["left_out"], info.audit["duplicates"]) == (3, 0)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction must be above 0 .* Received: 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must be above 0 and below 1. Received: 1.0"),
        ({"test_fraction": float("nan")}, "test_fraction must be above 0 .* Received: nan"),
        ({"test_fraction": 0.8}, r"together must be below 1.*Received: 0\.2 \+ 0\.8"),
        ({"seed": -1}, "seed must be a whole number from 0 .* Received: -1"),
        ({"shard_megabytes": 0}, "shard_megabytes must be above 0. Received: 0"),
    ],
)
def test_settings_out_of_range_are_told_before_any_work(
    tmp_path: Path, settings: dict[str, Any], pattern: str
) -> None:
    with pytest.raises(InputError, match=pattern):
        write_dataset(tmp_path, **{"source": "digits", "seed": 0, **FRACTIONS, **settings})
    assert list(tmp_path.iterdir()) == []


def test_readers_tell_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a folder with classes.json and dataset.json"):
        load_info(tmp_path)
    (tmp_path / "classes.json").write_text("[]")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"Received: .*KeyError"):
        load_info(tmp_path)
    with pytest.raises(InputError, match=r"split must be one of .* Did you mean 'validation'\?"):
        read_split(tmp_path, "validatio")
    with pytest.raises(InputError, match="split must be one of test, train, validation"):
        split_size(tmp_path, "all")


def test_reading_the_facts_does_not_import_tensorflow(tmp_path: Path) -> None:
    dataset, info = write(make_folder(tmp_path / "pets", cats_and_dogs()))
    code = (
        "import sys; from graftflow.datasets import load_info, split_size\n"
        f"print(load_info({str(dataset)!r}).digest, split_size({str(dataset)!r}, 'train'))\n"
        "print('tensorflow' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [info.digest, "12", "False"]


def test_the_embedded_sources_make_data_sets(tmp_path: Path) -> None:
    for source in ("closeups", "digits"):
        folder = tmp_path / source
        folder.mkdir()
        info = write_dataset(folder, source=source, seed=0, **FRACTIONS)
        assert info.source == source
        assert info.audit["left_out"] == info.audit["converted"] == 0
        assert info.note
