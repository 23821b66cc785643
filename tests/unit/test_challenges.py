"""A challenge on real pictures: what is known looks known, what is alien looks alien, and the page says so."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graftflow import datasets, features, heads, training
from graftflow.challenge_pictures import stratified
from graftflow.challenges import answers_of, write_challenge
from graftflow.embedded import open_closeups
from graftflow.errors import InputError
from graftflow.report.challenges import key_figures, text_summary, verdict_of, write_page

CLASSES = ("brick", "coffee", "gravel", "rocket")


class Run:
    """A model of four classes of tiles, and a folder of tiles that it never saw."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dataset, self.model, self.unseen = root / "dataset", root / "model", root / "unseen"
        counts = dict.fromkeys(CLASSES, 0)
        for picture in open_closeups().pictures:
            if picture.label in counts:
                # Of neighbouring tiles one half is for the model, the other one for the challenge.
                half = "seen" if counts[picture.label] % 3 else "unseen"
                name = picture.label.upper() if half == "unseen" else picture.label
                (root / half / name).mkdir(parents=True, exist_ok=True)
                (root / half / name / f"{counts[picture.label]:02}.png").write_bytes(picture.read())
                counts[picture.label] += 1
        for path in (self.dataset, root / "features", root / "head", self.model):
            path.mkdir()
        datasets.write_dataset(
            self.dataset,
            source=f"directory:{root / 'seen'}",
            seed=0,
            validation_fraction=0.25,
            test_fraction=0.25,
        )
        features.write_features(
            root / "features",
            dataset_path=self.dataset,
            backbone="efficientnet_lite0",
            weights="imagenet",
        )
        heads.write_head(root / "head", features_path=root / "features")
        training.write_model(
            self.model,
            dataset_path=self.dataset,
            head_path=root / "head",
            weights="imagenet",
            num_blocks=0,
        )

    def challenge(self, destination: Path, source: str, **settings: Any) -> dict[str, Any]:
        destination.mkdir()
        settings = {"dataset_path": self.dataset, "model_path": self.model, **settings}
        return write_challenge(destination, source=source, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("challenge"))


def test_unseen_pictures_of_the_same_kind_are_familiar_and_mostly_right(run: Run, tmp_path: Path) -> None:
    found = run.challenge(tmp_path / "alike", f"directory:{run.unseen}")
    assert found["pictures"] == found["accuracy"]["pictures"] > 60
    assert found["accuracy"]["value"] > 0.9  # though the folders are called BRICK and not brick
    assert sum(found["in_dataset"].values()) == 0
    assert 0.3 < found["scores"]["mahalanobis"]["auc"]["value"] < 0.7
    assert found["scores"]["mahalanobis"]["rejected"]["challenge"]["value"] < 0.3
    assert found["verdict"]["passed"]
    assert "holds up" in text_summary(tmp_path / "alike")
    assert key_figures(tmp_path / "alike")["accuracy"] == found["accuracy"]["value"]
    for row in found["scores"].values():
        for part in ("test", "challenge"):
            assert sum(row["histogram"][part]) == pytest.approx(1)


def test_noise_is_alien_and_the_page_shows_it(run: Run, tmp_path: Path) -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    (tmp_path / "noise").mkdir()
    for i in range(20):
        pixels = generator.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "noise" / f"<b>{i}.png")
    (tmp_path / "noise" / "notes.txt").write_text("no picture")
    found = run.challenge(tmp_path / "alien", f"directory:{tmp_path / 'noise'}")
    assert found["pictures"] == 20
    assert not found["labelled"]
    assert found["accuracy"] is None
    assert [row["path"] for row in found["left_out"]] == ["notes.txt"]
    # 76 training pictures are few for a covariance of 1,280 features: here the energy leads.
    assert found["scores"]["mahalanobis"]["auc"]["value"] > 0.8
    score = found["scores"][found["lead"]]
    assert score["auc"]["value"] > 0.95
    assert score["fpr_at_95_tpr"]["value"] < 0.1
    assert score["rejected"]["challenge"]["value"] > 0.8
    assert score["rejected"]["test"]["value"] < 0.3
    assert found["verdict"]["headline"] == "The model has not learned these pictures"
    assert found["alien"][0]["score"] >= found["alien"][-1]["score"] >= found["familiar"][-1]["score"]
    assert found == json.loads((tmp_path / "alien" / "challenge.json").read_text(encoding="utf-8"))
    assert len((tmp_path / "alien" / "scores.csv").read_text().splitlines()) == 21
    assert sorted(p.name for p in (tmp_path / "alien").iterdir()) == [
        "challenge.html",
        "challenge.json",
        "pictures",
        "scores.csv",
    ]
    page = (tmp_path / "alien" / "challenge.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("data:image/webp") == len(found["alien"]) + len(found["familiar"]) == 20
    assert "<script" not in page
    assert "<b>" not in page  # names of files are escaped
    assert "the pictures have no labels" in page
    assert len(page) < 2_000_000


def test_a_sample_is_seeded_and_a_model_s_own_pictures_are_no_challenge(run: Run, tmp_path: Path) -> None:
    source = f"directory:{run.root / 'seen'}"
    first, again, other = (
        run.challenge(tmp_path / name, source, num_pictures=12, seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert {row["path"] for row in first["alien"]} != {row["path"] for row in other["alien"]}
    assert {row["pictures"] for row in first["by_class"].values()} == {3}
    assert first["available"] > 100
    assert sum(first["in_dataset"].values()) == 12
    assert "no challenge" in first["verdict"]["headline"]
    assert not first["verdict"]["passed"]


def test_a_sample_gives_every_class_its_share() -> None:
    labels = ["a"] * 700 + ["b"] * 290 + ["c"] * 10
    chosen = stratified(labels, 100, seed=3)
    assert Counter(labels[i] for i in chosen) == {"a": 70, "b": 29, "c": 1}
    assert chosen == stratified(labels, 100, seed=3) != stratified(labels, 100, seed=4)
    assert stratified(labels, 5000, seed=0) == set(range(1000))
    assert {labels[i] for i in stratified(labels, 2, seed=0, every_class=True)} == {"a", "b", "c"}


def test_the_function_gives_the_model_s_own_answer(run: Run) -> None:
    model = training.load_classifier(run.model)
    pixels = np.random.default_rng(0).random((2, 224, 224, 3)).astype(np.float32)
    pooled, logits = answers_of(model)(pixels)
    assert pooled.shape == (2, 1280)
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = model(pixels, training=False).numpy()
    np.testing.assert_allclose(exponent / exponent.sum(axis=1, keepdims=True), expected, atol=1e-4)


def test_what_is_wrong_is_said_in_one_line(run: Run, artifacts, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"no picture")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("digit", {}, "source must be one of .*Received: 'digit'. Did you mean 'digits'"),
        ("digits", {"num_pictures": 0}, "num_pictures must be at least 1. Received: 0"),
        (f"directory:{empty}", {}, "at least one picture. Received: .*empty"),
        (f"directory:{broken}", {}, "has none among 1. First: 'a.jpg' is no JPEG"),
        (f"directory:{tmp_path / 'gone'}", {}, "gone"),
        ("digits", {"dataset_path": artifacts.dataset}, "brick, coffee, gravel, rocket. Received: .*dataset"),
        ("digits", {"model_path": empty}, "A model must be a folder with model.keras and model.json"),
    ]
    for number, (source, settings, message) in enumerate(cases):
        with pytest.raises(InputError, match=message) as caught:
            run.challenge(tmp_path / f"{number}", source, **settings)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / f"{number}").iterdir())
    with pytest.raises(InputError, match="A challenge must be a folder with challenge.json"):
        write_page(tmp_path / "page.html", challenge_path=empty)


def test_the_verdict_counts_right_answers_where_the_model_has_the_classes() -> None:
    score = {"auc": {"value": 0.8}, "rejected": {"challenge": {"value": 0.4}}}
    said = {
        "lead": "mahalanobis",
        "scores": {"mahalanobis": score},
        "pictures": 10,
        "in_dataset": {"train": 0},
        "accuracy": {"value": 0.6, "low": 0.5, "high": 0.7},
        "own_accuracy": {"value": 0.95, "low": 0.9, "high": 1.0},
        "confidence": {"challenge": 0.91, "test": 0.97},
    }
    worse = verdict_of(said)
    assert worse["headline"] == "The model does worse on these pictures"
    assert not worse["passed"]
    assert verdict_of({**said, "accuracy": None})["headline"] == "Some of these pictures are new to the model"
    assert "still 91" in verdict_of({**said, "accuracy": None})["details"]
