"""Folders that are splits already."""

from pathlib import Path

import pytest

from graftflow.audit import Audited, audit_picture
from graftflow.errors import InputError
from graftflow.folders import check_folder, open_folder
from tests.unit.pictures_on_disk import cats_and_dogs, encode, make_folder, photo, rows, write


def divided(**counts: int) -> dict[str, bytes]:
    return {
        f"{split}/{label}/{i}.jpg": encode(photo(1000 * k + 100 * j + i, (60, 48)), "JPEG")
        for k, (split, count) in enumerate(counts.items())
        for j, label in enumerate(("cat", "dog"))
        for i in range(count)
    }


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "testing")])
def test_folders_that_are_splits_stay_the_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    counts = dict(zip(names, (6, 3, 2), strict=True))
    dataset, info = write(make_folder(tmp_path / "pets", divided(**counts)))
    assert info.counts == {
        "train": {"cat": 6, "dog": 6},
        "validation": {"cat": 3, "dog": 3},
        "test": {"cat": 2, "dog": 2},
    }
    assert info.note == "The source's own splits are kept: train, validation, test."
    for row in rows(dataset / "manifest.csv"):
        assert row["path"].split("/")[1] == names[("train", "validation", "test").index(row["split"])]


def test_a_missing_split_is_taken_from_the_training_folder(tmp_path: Path) -> None:
    dataset, info = write(make_folder(tmp_path / "pets", divided(train=20, test=4)))
    assert info.counts["test"] == info.counts["validation"] == {"cat": 4, "dog": 4}
    assert "It has none for validation: 20 % of its training pictures were taken" in info.note
    assert all("/test/" in row["path"] for row in rows(dataset / "manifest.csv") if row["split"] == "test")


def test_a_class_that_a_split_lacks_is_told(tmp_path: Path) -> None:
    files = divided(train=6, val=3, test=3) | {
        f"train/eel/{i}.jpg": encode(photo(9000 + i), "JPEG") for i in range(9)
    }
    with pytest.raises(InputError, match="Class 'eel' has none in validation, only in train"):
        write(make_folder(tmp_path / "pets", files))


def test_classes_that_are_named_like_splits_stay_classes(tmp_path: Path) -> None:
    files = {
        path.replace("cat/", "train/").replace("dog/", "bus/"): data for path, data in cats_and_dogs().items()
    }
    opened = open_folder(make_folder(tmp_path / "vehicles", files))
    assert {(picture.label, picture.split) for picture in opened.pictures} == {("train", ""), ("bus", "")}


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", cats_and_dogs())
    before = [picture.stamp for picture in open_folder(root).pictures]
    assert before == [picture.stamp for picture in open_folder(root).pictures]
    (root / "cat" / "0.jpg").write_bytes(encode(photo(77), "JPEG"))
    after = list(open_folder(root).pictures)
    assert [i for i, picture in enumerate(after) if picture.stamp != before[i]] == [0]
    assert isinstance(audit_picture(after[0]), Audited)


@pytest.mark.parametrize("name", ["cat\x1b[31m", "cat\ndog", "\u202ecat"])
def test_a_class_whose_name_acts_on_a_terminal_is_refused(tmp_path: Path, name: str) -> None:
    for label in ("dog", name):
        make_folder(tmp_path, {f"{label}/{i}.jpg": b"x" for i in range(3)})
    with pytest.raises(InputError, match="Names of class folders must be printable") as caught:
        check_folder(tmp_path)
    assert str(caught.value).isprintable()
