"""One class is drawn from the command line: of a run's model, or of ImageNet."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from graftflow import preprocessing
from graftflow.training import load_classifier
from pipelines import draw_ideal
from pipelines.run_index import Run, Step
from tests.unit.small_classifier import SIDE, write_small_dataset, write_small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    return write_small_model(root / "model", write_small_dataset(root))


@pytest.fixture
def run(model, tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "one", {"backbone": "efficientnet_lite0", "weights": "none"})
    run.steps["fine_tune"] = Step("done", 1.0, {"model": {"uri": str(model), "metadata": {}}})
    run.save()
    return run


def arguments(run: Run, name: str, *more: str) -> list[str]:
    return [f"--class={name}", f"--run={run.folder}", "--size=32", "--steps=12", *more]


def test_a_trained_class_is_drawn_by_the_trained_model(run, model, capsys) -> None:
    assert draw_ideal.main(arguments(run, "red")) == 0
    printed = capsys.readouterr().out
    (folder,) = run.folder.parent.glob("ideal-red-*")
    assert str(folder / "ideal.png") in printed
    assert str(folder / "ideal.webp") in printed
    found = json.loads((folder / "ideal.json").read_text(encoding="utf-8"))
    assert found["network"] == "trained"
    assert f"red (trained): probability {found['probability']:.4f}" in printed
    # What is told holds for the file.
    pixels = preprocessing.decode_batch(tf.constant([(folder / "ideal.png").read_bytes()]), SIDE)
    assert found["probability"] == pytest.approx(float(load_classifier(model)(pixels)[0, 2]), abs=1e-3)
    assert found["probability"] > 0.5
    with Image.open(folder / "ideal.webp") as film:
        assert film.n_frames > 1


def test_the_seed_fixes_the_picture(run, tmp_path: Path) -> None:
    pictures = []
    for seed in (1, 1, 2):
        output = tmp_path / "out"
        assert draw_ideal.main(arguments(run, "red", f"--seed={seed}", f"--output={output}")) == 0
        with Image.open(output / "ideal.png") as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()


def test_imagenets_classes_are_drawn_without_a_run(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(draw_ideal, "LATEST", tmp_path / "runs" / "latest")
    settings = ["--class=siamese cat", "--weights=none", "--size=32", "--steps=1"]
    assert draw_ideal.main(settings) == 0
    assert "siamese cat (ImageNet efficientnet_lite0): probability 0." in capsys.readouterr().out
    (folder,) = (tmp_path / "runs").glob("ideal-siamese-cat-*")
    assert (folder / "ideal.png").is_file()


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("zebraa", [], "Near it: 'zebra'"),
        ("cat", [], "'Siamese cat'"),
        ("zebraa", [], "The trained model has: blue, green, red."),
        ("red", ["--steps=0"], "steps must be at least 1"),
        ("red", ["--size=4"], "size must lie in"),
        ("zebra", ["--backbone=lite"], "backbone must be one of"),
        ("red", ["--run=/nowhere"], "RUN must be the folder of a run"),
    ],
)
def test_a_bad_setting_is_one_line_and_leaves_nothing(run, name, change, rule, capsys) -> None:
    assert draw_ideal.main(arguments(run, name, *change)) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ideal: ")
    assert rule in errors
    assert errors.count("\n") == 1
    assert not list(run.folder.parent.glob("ideal-*"))
