"""The adversarial artifact counts honestly and its pictures are what it counts."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from graftflow.adversarial import stratified, write_adversarial
from graftflow.errors import InputError
from tests.unit.small_classifier import SIDE, write_small_dataset, write_small_model

EPSILONS = [0.5 / 255, 4 / 255, 16 / 255, 64 / 255]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model") / "model", dataset)


def write(folder: Path, model: Path, dataset: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    defaults = {"num_pictures": 9, "epsilons": EPSILONS, "steps": 6, "target_class": "", "seed": 0}
    return write_adversarial(folder, model_path=model, dataset_path=dataset, **{**defaults, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Path, dataset: Path) -> Path:
    path = tmp_path_factory.mktemp("adversarial")
    write(path, model, dataset)
    return path


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adversarial.json").read_text())


def rows(result: dict[str, Any]) -> dict[tuple[str, bool], dict[str, Any]]:
    return {(row["name"], row["targeted"]): row for row in result["attacks"]}


def test_the_artifact_holds_every_attack_at_every_radius(result: dict[str, Any]) -> None:
    assert result["epsilons"] == [0.5, 4, 16, 64]
    assert result["pictures"] == 9
    assert set(rows(result)) == {(name, aim) for name in ("FGSM", "PGD") for aim in (False, True)}
    for row in result["attacks"]:
        assert row["norm"] == "linf"
        assert row["rounded"] == [False, True, True, True]
        assert len(row["accuracy"]) == len(row["success"]) == 4
        assert all(0 <= value <= 1 for value in row["accuracy"] + row["success"])


def test_the_small_model_is_good_and_falls_to_large_radii(result: dict[str, Any]) -> None:
    assert result["clean_accuracy"] >= 0.8
    assert rows(result)["PGD", False]["accuracy"][-1] == 0
    assert rows(result)["PGD", True]["success"][-1] == 1


def test_accuracy_and_success_of_an_untargeted_attack_agree(result: dict[str, Any]) -> None:
    for name in ("FGSM", "PGD"):
        row = rows(result)[name, False]
        for accuracy, success in zip(row["accuracy"], row["success"], strict=True):
            assert accuracy == pytest.approx(result["clean_accuracy"] * (1 - success))


def test_the_worst_case_is_monotone_and_below_every_attack(result: dict[str, Any]) -> None:
    worst = result["worst_case"]["accuracy"]
    assert worst == sorted(worst, reverse=True)
    for name in ("FGSM", "PGD"):
        assert all(w <= a + 1e-9 for w, a in zip(worst, rows(result)[name, False]["accuracy"], strict=True))


def test_triplets_show_what_was_counted(folder: Path, result: dict[str, Any], model: Path) -> None:
    classifier = keras.models.load_model(model / "model.keras")
    classes = ["blue", "green", "red"]
    assert 1 <= len(result["triplets"]) <= 4
    for row in result["triplets"]:
        strip = np.asarray(Image.open(folder / row["file"])).astype(int)
        assert strip.shape == (SIDE, 3 * SIDE, 3)
        original, grey, adversarial = (strip[:, i * SIDE : (i + 1) * SIDE] for i in range(3))
        assert np.abs(adversarial - original).max() <= row["epsilon"]
        expected = np.clip(127.5 + 10 * (adversarial - original), 0, 255)
        assert np.abs(grey - expected).max() <= 1
        for picture, told in ((original, row["original"]), (adversarial, row["adversarial"])):
            probabilities = classifier.predict(picture[None] / np.float32(255), verbose=0)[0]
            assert told["label"] == classes[probabilities.argmax()]
            assert told["probability"] == pytest.approx(probabilities.max(), abs=1e-4)
        assert row["original"]["label"] == row["label"] != row["adversarial"]["label"]


def test_the_same_seed_gives_the_same_figures(
    tmp_path: Path, model: Path, dataset: Path, result: dict[str, Any]
) -> None:
    assert write(tmp_path / "again", model, dataset) == result


def test_below_one_level_a_png_cannot_differ(tmp_path: Path, model: Path, dataset: Path) -> None:
    found = write(tmp_path / "a", model, dataset, epsilons=[0.0])
    for row in found["attacks"]:
        if not row["targeted"]:
            assert row["accuracy"] == [found["clean_accuracy"]]
        assert row["success"] == [0]
    assert found["triplets"] == []


def test_a_target_class_leaves_its_own_pictures_out(tmp_path: Path, model: Path, dataset: Path) -> None:
    found = write(tmp_path / "a", model, dataset, target_class="red", epsilons=[1.0], steps=20)
    assert found["descent"]["target"] == "red"
    assert found["descent"]["success"] == 1
    assert found["descent"]["mean_linf"] > 0
    assert rows(found)["PGD", True]["pictures"] == 6
    assert rows(found)["PGD", True]["success"] == [1]


def test_of_two_classes_a_targeted_attack_is_the_untargeted_one(tmp_path: Path) -> None:
    two = write_small_dataset(tmp_path / "two", classes=("blue", "red"))
    small = write_small_model(tmp_path / "small", two)
    found = write(tmp_path / "a", small, two, epsilons=[1.0, 0.1])
    for name in ("FGSM", "PGD"):
        away, towards = rows(found)[name, False], rows(found)[name, True]
        assert {**towards, "targeted": False} == away
    aimed = write(tmp_path / "b", small, two, epsilons=[1.0, 0.1], target_class="red")
    row = rows(aimed)["PGD", True]
    assert 0 < row["attacked"] < found["pictures"]
    assert row["success"][-1] == 1


def test_a_model_that_is_always_wrong_gives_numbers(tmp_path: Path, model: Path, dataset: Path) -> None:
    classifier = keras.models.load_model(model / "model.keras")
    kernel, bias = classifier.get_layer("logits").get_weights()
    classifier.get_layer("logits").set_weights([np.roll(kernel, 1, axis=1), np.roll(bias, 1)])
    (tmp_path / "wrong").mkdir()
    classifier.save(tmp_path / "wrong" / "model.keras")
    found = write(tmp_path / "a", tmp_path / "wrong", dataset, num_pictures=3)
    assert found["clean_accuracy"] < 0.5
    json.dumps(found, allow_nan=False)


def test_more_pictures_than_there_are_takes_all(tmp_path: Path, model: Path, dataset: Path) -> None:
    assert write(tmp_path / "a", model, dataset, num_pictures=500, steps=1)["pictures"] == 12


def test_pictures_are_stratified_and_seeded() -> None:
    labels = [0] * 50 + [1] * 5 + [2] * 2
    chosen = stratified(labels, 12, seed=1)
    assert [sum(labels[i] == k for i in chosen) for k in range(3)] == [5, 5, 2]
    assert chosen == stratified(labels, 12, seed=1) == sorted(set(chosen))
    assert chosen != stratified(labels, 12, seed=2)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"num_pictures": 0}, "num_pictures must be at least 1. Received: 0"),
        ({"steps": 0}, "steps must be at least 1. Received: 0"),
        ({"epsilons": []}, "epsilons must be radii"),
        ({"epsilons": [-0.1]}, "epsilons must be radii"),
        ({"epsilons": [float("nan")]}, "epsilons must be radii"),
        ({"target_class": "gren"}, "target_class must be one of blue, green, red.*Did you mean 'green'"),
    ],
)
def test_settings_out_of_range_are_refused(
    settings: dict[str, Any], rule: str, tmp_path: Path, dataset: Path
) -> None:
    # The model's folder does not exist: the settings are looked at first.
    with pytest.raises(InputError, match=rule):
        write(tmp_path / "a", tmp_path / "no-model", dataset, **settings)


def test_a_missing_model_and_another_number_of_classes_are_refused(tmp_path: Path, model: Path) -> None:
    other = write_small_dataset(tmp_path / "other", classes=("blue", "red"))
    with pytest.raises(InputError, match=r"model\.keras"):
        write(tmp_path / "a", tmp_path / "no-model", other)
    with pytest.raises(InputError, match=r"2 classes\. Received: 3 outputs"):
        write(tmp_path / "a", model, other)
