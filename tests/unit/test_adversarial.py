"""The adversarial artifact counts honestly and its pictures are what it counts."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from graftflow import attack_curves, believability
from graftflow.adversarial import robust_accuracy, stratified, write_adversarial
from graftflow.attacked_pictures import AttackedPictures
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
    aimed = {(name, aim) for name in ("FGSM", "PGD") for aim in (False, True)}
    assert set(rows(result)) == aimed | {(name, False) for name in ("APGD-CE", "APGD-DLR", "Square")}
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


CHECKS = {
    "Unchanged pictures are predicted as evaluated",
    "Changes stay within ε",
    "Worst case never rises with ε",
    "PGD is never weaker than FGSM",
    "Everything falls at a large ε",
    "Without gradients no more is found",
    "Noise of the same size is harmless",
}


def holds(result: dict[str, Any]) -> dict[str, bool | None]:
    return {row["name"]: row["holds"] for row in result["checks"]}


@keras.saving.register_keras_serializable(package="tests")
class Steps(keras.layers.Layer):
    """Rounds its input, so that no gradient comes through and hardly an answer changes."""

    def call(self, x: Any) -> Any:
        return keras.ops.round(x * 30) / 30 + 0 * x


@pytest.fixture
def masked(tmp_path: Path, model: Path) -> Path:
    """The small model behind pixels rounded to steps: as fragile as before, its gradients are zero."""
    small = keras.models.load_model(model / "model.keras")
    pixels = keras.Input((SIDE, SIDE, 3))
    x = small.get_layer("backbone")(small.get_layer("preprocessing")(Steps(name="steps")(pixels)))
    logits = small.get_layer("logits")(x)
    hidden = keras.Model(pixels, small.get_layer("probabilities")(logits))
    (tmp_path / "masked").mkdir()
    hidden.save(tmp_path / "masked" / "model.keras")
    return tmp_path / "masked"


def test_every_check_is_made_and_an_honest_attack_passes(result: dict[str, Any]) -> None:
    assert set(holds(result)) == CHECKS
    assert [name for name, held in holds(result).items() if held is False] == []
    assert holds(result)["Unchanged pictures are predicted as evaluated"] is None
    assert all(row["seen"] and row["why"] for row in result["checks"])
    assert result["believable"] is True


def test_a_model_that_hides_its_gradients_is_not_believed(
    tmp_path: Path, masked: Path, dataset: Path
) -> None:
    found = write(tmp_path / "a", masked, dataset)
    assert rows(found)["APGD-DLR", False]["accuracy"][2] > 0.5
    assert holds(found)["Without gradients no more is found"] is False
    assert found["believable"] is False
    assert robust_accuracy(found, 16 / 255) == 0


def test_the_gate_gets_the_worst_case_at_a_radius_that_was_tried(result: dict[str, Any]) -> None:
    assert robust_accuracy(result, 4 / 255) == result["worst_case"]["accuracy"][1]
    assert robust_accuracy(result) == result["worst_case"]["accuracy"][-1]
    with pytest.raises(InputError, match=r"known at 0\.5/255, 4/255, .*Received: 5/255"):
        robust_accuracy(result, 5 / 255)


def test_intervals_hold_their_figures_and_have_a_width(result: dict[str, Any]) -> None:
    rows = [result["worst_case"], result["noise"], *result["attacks"], *result["corruptions"]["rows"]]
    for row in rows:
        for low, value, high in zip(row["low"], row["accuracy"], row["high"], strict=True):
            assert 0 <= low <= value <= high <= 1
            assert high - low > 0.1  # nine pictures say little


def test_each_attack_on_the_rest_leaves_no_more_than_those_before_it(result: dict[str, Any]) -> None:
    order = [rows(result)[name, False] for name in ("APGD-CE", "APGD-DLR", "Square")]
    for before, after in zip([rows(result)["PGD", False], *order], order, strict=False):
        assert all(a <= b for a, b in zip(after["accuracy"], before["accuracy"], strict=True))
    assert order[-1]["accuracy"] == result["worst_case"]["accuracy"]


def test_changes_of_bounded_length_have_radii_of_their_own(result: dict[str, Any]) -> None:
    lengths = result["l2"]["epsilons"]
    assert lengths == sorted(lengths)
    assert lengths[-1] == pytest.approx(np.sqrt(SIDE * SIDE * 3) / 255, abs=1e-4)
    (row,) = result["l2"]["attacks"]
    assert row["norm"] == "l2"
    assert row["accuracy"] == sorted(row["accuracy"], reverse=True)
    assert row["rounded"] == [True] * 4


def test_minimal_radii_agree_with_the_curve(result: dict[str, Any]) -> None:
    found = result["minimal"]["epsilons"]
    assert len(found) == result["minimal"]["pictures"] == round(9 * result["clean_accuracy"])
    radii, worst = result["epsilons"], result["worst_case"]["success"]
    for epsilon, success in zip(radii, worst, strict=True):
        assert np.mean([x is not None and x <= epsilon for x in found]) <= success + 1e-9
    assert all(x is None or x == round(x) or x < 1 for x in found)


def test_an_attack_that_leaves_its_ball_is_caught() -> None:
    pictures, logits_of = some_pictures()
    too_far = attack_curves.Attack("cheat", lambda shot, x, y, s: np.clip(x + 3 * shot.epsilon, 0, 1))
    for attack, held in ((too_far, False), (attack_curves.PGD, True)):
        curve = attack_curves.measure(attack, logits_of, pictures, [4 / 255], steps=2, seed=0)
        found = believability.within_radius([curve])
        assert found["holds"] is held
    assert believability.within_radius([])["holds"] is None


def test_an_attack_without_gradients_that_finds_more_is_told() -> None:
    pictures, logits_of = some_pictures()

    def idle(shot: Any, x: Any, y: Any, s: Any) -> Any:
        return x

    def oracle(shot: Any, x: Any, y: Any, s: Any) -> Any:
        return np.clip(x - shot.epsilon * (2 * y[:, None, None, None] - 1), 0, 1).astype(np.float32)

    weak = attack_curves.Attack("weak", idle)
    blind = attack_curves.Attack("blind", oracle, on_the_rest=True, follows_gradients=False)
    first = attack_curves.measure(weak, logits_of, pictures, [64 / 255], steps=1, seed=0)
    then = attack_curves.measure(blind, logits_of, pictures, [64 / 255], steps=1, seed=0, before=[first])
    assert then.reached.all()
    assert believability.gradients_are_open([first, then])["holds"] is False
    after = attack_curves.measure(blind, logits_of, pictures, [64 / 255], steps=1, seed=0, before=[then])
    assert not after.tried.any()
    assert believability.gradients_are_open([first, after])["holds"] is True
    assert believability.gradients_are_open([first])["holds"] is None


def some_pictures() -> tuple[AttackedPictures, Any]:
    """Eight grey pictures told apart by their brightness, and what tells them apart."""
    import tensorflow as tf

    bright = np.round(np.linspace(90, 160, 8)).astype(np.uint8)
    levels = np.tile(bright[:, None, None, None], (1, 4, 4, 3))
    labels = np.int64(bright > 127)

    def logits_of(x: Any) -> Any:
        bright = tf.reduce_mean(x, axis=(1, 2, 3)) - 0.5
        return tf.stack([-9 * bright, 9 * bright], axis=1)

    probabilities = tf.nn.softmax(logits_of(levels / np.float32(255))).numpy()
    paths = tuple(str(i) for i in range(8))
    return AttackedPictures(levels, labels, 1 - labels, probabilities, probabilities, paths), logits_of


def test_random_noise_that_fools_is_told() -> None:
    pictures, logits_of = some_pictures()
    noise = attack_curves.measure(attack_curves.NOISE, logits_of, pictures, [1 / 255], steps=1, seed=0)
    worst = np.ones((1, 8), bool)
    assert believability.noise_is_harmless(noise, worst)["holds"] is True
    loud = attack_curves.Attack("loud", lambda shot, x, y, s: 1 - x, grows=False)
    curve = attack_curves.measure(loud, logits_of, pictures, [1 / 255], steps=1, seed=0)
    assert believability.noise_is_harmless(curve, worst)["holds"] is False


def test_the_evaluation_of_the_same_model_agrees_and_of_another_does_not(
    tmp_path: Path, model: Path, dataset: Path
) -> None:
    from graftflow import evaluation, export

    for folder in ("saved", "evaluation"):
        (tmp_path / folder).mkdir()
    export.write_saved_model(tmp_path / "saved", model_path=model, dataset_path=dataset, version=1)
    evaluation.write_evaluation(
        tmp_path / "evaluation", saved_model_path=tmp_path / "saved", dataset_path=dataset
    )
    settings: dict[str, Any] = {"epsilons": [4 / 255], "steps": 1, "evaluation_path": tmp_path / "evaluation"}
    name = "Unchanged pictures are predicted as evaluated"
    assert holds(write(tmp_path / "a", model, dataset, **settings))[name] is True
    table = tmp_path / "evaluation" / "predictions.csv"
    lines = table.read_text().splitlines()
    # Columns of two classes change places: another model would differ like this.
    turned = [lines[0].replace("blue,green", "green,blue"), *lines[1:]]
    table.write_text("\n".join(turned) + "\n")
    found = write(tmp_path / "b", model, dataset, **settings)
    assert holds(found)[name] is False
    assert found["believable"] is False
    table.unlink()
    with pytest.raises(InputError, match="An evaluation must be a folder with evaluation.json"):
        write(tmp_path / "c", model, dataset, **settings)


def test_attacks_on_a_model_transfer_to_its_copy(tmp_path: Path, model: Path, dataset: Path) -> None:
    found = write(tmp_path / "a", model, dataset, epsilons=[64 / 255], other_model_path=model)["transfer"]
    assert found["models"] == ["fine-tuned", "other model, efficientnet_lite0"]
    shares = [[cell["value"] for cell in row] for row in found["fooled"]]
    assert shares[0] == shares[1] == [shares[0][0]] * 2
    assert shares[0][0] == 1


def test_the_head_alone_is_a_model_of_its_own_in_the_matrix(tmp_path: Path, artifacts: Any) -> None:
    found = write(
        tmp_path / "a",
        artifacts.model,
        artifacts.dataset,
        epsilons=[4 / 255],
        steps=4,
        num_pictures=6,
        head_path=artifacts.head,
        evaluation_path=artifacts.evaluation,
    )
    assert holds(found)["Unchanged pictures are predicted as evaluated"] is True
    if json.loads((artifacts.model / "model.json").read_text())["chosen"] == "head":
        assert found["transfer"] is None
    else:
        assert found["transfer"]["models"] == ["fine-tuned", "features only"]
        assert found["transfer"]["fooled"][0][0]["value"] > 0.5
