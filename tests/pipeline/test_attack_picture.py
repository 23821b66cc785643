"""One picture is attacked from the command line, with a run's own model."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from graftflow import preprocessing
from graftflow.training import load_classifier
from pipelines import attack_picture
from pipelines.run_index import Run, Step
from tests.unit.small_classifier import SIDE, write_small_dataset, write_small_model


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("attacked")
    dataset = write_small_dataset(root)
    model = write_small_model(root / "model", dataset)
    return {"model": model, "image": root / "pictures" / "red" / "3.png"}


@pytest.fixture
def run(small, tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "one", {})
    run.steps["fine_tune"] = Step("done", 1.0, {"model": {"uri": str(small["model"]), "metadata": {}}})
    run.save()
    return run


def arguments(run: Run, small: dict[str, Path], *more: str) -> list[str]:
    return [f"--image={small['image']}", f"--run={run.folder}", "--epsilon=40/255", *more]


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd", "square"])
def test_the_files_show_what_was_printed(run, small, attack, capsys) -> None:
    assert attack_picture.main(arguments(run, small, "--target=blue", f"--attack={attack}")) == 0
    printed = capsys.readouterr().out
    (folder,) = (run.folder / "attacks").iterdir()
    assert folder.name.startswith("3-")
    assert str(folder / "adversarial.png") in printed
    assert str(folder / "side_by_side.png") in printed
    found = json.loads((folder / "attack.json").read_text(encoding="utf-8"))
    assert found["fooled"]
    assert "Fooled towards 'blue'" in printed
    # The figures are those of the files, decoded as a server decodes them.
    files = [small["image"].read_bytes(), (folder / "adversarial.png").read_bytes()]
    pixels = preprocessing.decode_batch(tf.constant(files), SIDE)
    before, after = np.round(255 * pixels.numpy()).astype(int)
    assert np.abs(after - before).max() == found["largest_change"] <= 40
    told = load_classifier(small["model"])(pixels)[1].numpy()
    assert ("blue", "green", "red")[int(told.argmax())] == "blue" == found["adversarial"]["label"]
    np.testing.assert_allclose([p[1] for p in found["probabilities"].values()], told, atol=1e-6)
    for name in ("blue", "green", "red"):
        assert f"{found['probabilities'][name][1]:.4f}" in printed


def test_without_a_target_any_other_class_will_do(run, small, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert attack_picture.main(arguments(run, small, f"--output={output}")) == 0
    found = json.loads((output / "attack.json").read_text(encoding="utf-8"))
    assert found["target"] == ""
    assert found["fooled"] == (found["adversarial"]["label"] != "red")
    assert not (run.folder / "attacks").exists()
    with Image.open(output / "side_by_side.png") as picture:
        assert picture.size[0] == 1080


def test_the_ensemble_goes_without_a_target(run, small, tmp_path: Path, capsys) -> None:
    more = ("--attack=ensemble", "--steps=5", f"--output={tmp_path / 'out'}")
    assert attack_picture.main(arguments(run, small, *more)) == 0
    assert json.loads((tmp_path / "out" / "attack.json").read_text(encoding="utf-8"))["fooled"]
    assert attack_picture.main(arguments(run, small, *more, "--target=blue")) == 1
    assert "a target must go with one of the attacks fgsm, pgd, apgd, square" in capsys.readouterr().err


def test_a_picture_that_resists_is_told_plainly(run, small, tmp_path: Path, capsys) -> None:
    more = ("--epsilon=1/255", "--target=blue", f"--output={tmp_path / 'out'}")
    assert attack_picture.main(arguments(run, small, *more)) == 0
    assert "Not fooled towards 'blue' by pgd within 1/255" in capsys.readouterr().out
    assert not json.loads((tmp_path / "out" / "attack.json").read_text(encoding="utf-8"))["fooled"]


def test_the_same_seed_gives_the_same_picture(run, small, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert attack_picture.main(arguments(run, small, "--seed=5", f"--output={tmp_path / name}")) == 0
    one, two = ((tmp_path / name / "adversarial.png").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (["--epsilon=4"], "Did you mean '4/255'?"),
        (["--epsilon=0.5/255"], "epsilon must lie between 1/255"),
        (["--target=bleu"], "Did you mean 'blue'?"),
        (["--target=red"], "target must be another class than the model predicts already"),
        (["--attack=pdg"], "Did you mean 'pgd'?"),
        (["--steps=0"], "steps must be at least 1"),
        (["--image=/nowhere.jpg"], "IMAGE must be a picture file that can be read"),
        (["--image=/dev/null"], "Received: one that is an empty file"),
        (["--run=/nowhere"], "RUN must be the folder of a run"),
    ],
)
def test_a_bad_setting_is_one_line_and_leaves_nothing(run, small, change, rule, capsys) -> None:
    assert attack_picture.main(arguments(run, small, *change)) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: attack: ")
    assert rule in errors
    assert errors.count("\n") == 1
    assert not (run.folder / "attacks").exists()


def test_a_run_without_a_model_names_the_step_that_makes_one(run, small, capsys) -> None:
    del run.steps["fine_tune"]
    run.save()
    assert attack_picture.main(arguments(run, small)) == 1
    assert "make fine-tune" in capsys.readouterr().err


def test_nothing_is_opened_where_there_is_no_display(monkeypatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr(attack_picture.webbrowser, "open", opened.append)
    monkeypatch.setattr(attack_picture.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    attack_picture.show(tmp_path / "a.png")
    assert not opened
    monkeypatch.setenv("DISPLAY", ":0")
    attack_picture.show(tmp_path / "a.png")
    assert opened == [(tmp_path / "a.png").resolve().as_uri()]
