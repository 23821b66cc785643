"""The components between data and report, run as KFP runs them: artifacts in, artifacts, metrics and metadata out."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from kfp import dsl

from components.evaluate import evaluate
from components.export_model import export_model
from components.extract_features import extract_features
from components.fine_tune import fine_tune
from components.merge_features import merge_features
from components.train_head import train_head
from graftflow import seals
from graftflow.errors import InputError

RECIPE = {
    "num_views": 1,
    "layer_decay": 0.7,
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "ema_decay": 0.99,
    "augmentation": "light",
    "precision": "auto",
}


def output(kind: type, path: Path):
    return kind(name=path.name, uri=str(path), metadata={})


def plain(metadata: dict) -> dict:
    """What survives KFP's own JSON: numpy numbers and NaN do not."""
    return json.loads(json.dumps(metadata, allow_nan=False))


def test_extract_features_names_its_backbone(artifacts, tmp_path: Path) -> None:
    shard = output(dsl.Dataset, tmp_path / "feature_shard")
    extract_features.python_func(
        dataset=dsl.Dataset(uri=str(artifacts.dataset)),
        backbone="efficientnet_lite0",
        weights="imagenet",
        shard=0.0,  # as KFP hands over an item of a list
        num_shards=1,
        feature_shard=shard,
        cache=str(tmp_path / "cache"),
    )
    assert (plain(shard.metadata)["shard"], plain(shard.metadata)["num_shards"]) == (0, 1)
    features = output(dsl.Dataset, tmp_path / "features")
    merge_features.python_func(feature_shards=[shard], features=features)
    metadata = plain(features.metadata)
    assert metadata["name"] == "efficientnet_lite0"
    assert (metadata["computed"], metadata["cached"]) == (48, 0)
    assert len(metadata["weights_sha256"]) == 64
    assert metadata["input_size"] == 224
    assert metadata["preprocessing"] == "(x-127)/128"
    assert metadata["pictures"] == 48
    for split in ("train", "validation", "test"):
        with (
            np.load(tmp_path / "features" / f"{split}.npz") as ours,
            np.load(artifacts.features / f"{split}.npz") as before,
        ):
            np.testing.assert_array_equal(ours["features"], before["features"])
            assert ours["features"].dtype == np.float32
            assert ours["features"].shape == (len(ours["labels"]), 1280)


def test_train_head_logs_its_validation_figures(artifacts, tmp_path: Path) -> None:
    head, figures = (
        output(dsl.Model, tmp_path / "head"),
        output(dsl.Metrics, tmp_path / "head_metrics"),
    )
    train_head.python_func(features=dsl.Dataset(uri=str(artifacts.features)), head=head, head_metrics=figures)
    assert plain(figures.metadata) == json.loads((tmp_path / "head_metrics").read_text())
    assert 0.5 < figures.metadata["validation_accuracy"] <= 1.0
    assert plain(head.metadata) == {
        "backbone": "efficientnet_lite0",
        "type": "linear",
        "class_weight": "none",
        "chosen_c": json.loads((tmp_path / "head" / "head.json").read_text())["chosen_c"],
    }


def test_train_head_fits_what_it_is_asked_for(artifacts, tmp_path: Path) -> None:
    given = {
        "features": dsl.Dataset(uri=str(artifacts.features)),
        "head": output(dsl.Model, tmp_path / "head"),
        "head_metrics": output(dsl.Metrics, tmp_path / "head_metrics"),
    }
    with pytest.raises(InputError, match="head_type must be one of linear, mlp. Received: 'tree'"):
        train_head.python_func(**given, head_type="tree")
    assert not list(tmp_path.iterdir())
    train_head.python_func(**given, head_type="mlp", class_weight="balanced", seed=2)
    assert given["head"].metadata["type"] == "mlp"
    assert given["head"].metadata["class_weight"] == "balanced"
    with np.load(tmp_path / "head" / "head.npz") as arrays:
        assert set(arrays) == {"kernel", "bias", "hidden_kernel", "hidden_bias"}


def test_fine_tune_logs_both_candidates(artifacts, tmp_path: Path) -> None:
    model, figures = output(dsl.Model, tmp_path / "model"), output(dsl.Metrics, tmp_path / "m")
    fine_tune.python_func(
        dataset=dsl.Dataset(uri=str(artifacts.dataset)),
        head=dsl.Model(uri=str(artifacts.head)),
        weights="imagenet",
        num_blocks=1,
        epochs=1,
        learning_rate=1e-4,
        seed=0,
        **RECIPE,
        cache=str(artifacts.dataset.parent / "cache"),
        model=model,
        fine_tune_metrics=figures,
    )
    assert set(plain(figures.metadata)) == {
        "head_accuracy",
        "head_log_loss",
        "fine_tuned_accuracy",
        "fine_tuned_log_loss",
    }
    assert model.metadata["chosen"] in ("head", "fine-tuned")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "model"]


def test_a_model_that_finds_no_room_for_its_seal_is_not_trained_again(
    artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train() -> str:
        fine_tune.python_func(
            dataset=dsl.Dataset(uri=str(artifacts.dataset)),
            head=dsl.Model(uri=str(artifacts.head)),
            weights="imagenet",
            num_blocks=1,
            epochs=2,
            learning_rate=1e-4,
            seed=0,
            **RECIPE,
            cache=str(tmp_path / "cache"),
            model=output(dsl.Model, tmp_path / "model"),
            fine_tune_metrics=output(dsl.Metrics, tmp_path / "m"),
        )
        return capsys.readouterr().out

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(seals, "seal", full)
        with pytest.raises(InputError, match="room for 'model'"):
            train()
    assert not (tmp_path / "model").exists()
    assert "fine-tuning, epoch 2" in capsys.readouterr().out
    assert "fine-tuning, epoch" not in train()
    history = json.loads((tmp_path / "model" / "model.json").read_text())["history"]
    assert [row["epoch"] for row in history] == [1, 2]
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())


def test_a_failing_component_leaves_no_artifact(artifacts, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_blocks must be between"):
        fine_tune.python_func(
            dataset=dsl.Dataset(uri=str(artifacts.dataset)),
            head=dsl.Model(uri=str(artifacts.head)),
            weights="imagenet",
            num_blocks=50,
            epochs=1,
            learning_rate=1e-4,
            seed=0,
            **RECIPE,
            cache=str(artifacts.dataset.parent / "cache"),
            model=output(dsl.Model, tmp_path / "model"),
            fine_tune_metrics=output(dsl.Metrics, tmp_path / "m"),
        )
    assert not list(tmp_path.iterdir())


def test_export_then_evaluate(artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RUN_ID", "run-7"), ("COMMIT", "c0ffee"), ("IMAGE", "graftflow:1")):
        monkeypatch.setenv(f"GRAFTFLOW_{name}", value)
    saved_model = output(dsl.Model, tmp_path / "saved_model")
    export_model.python_func(
        dataset=dsl.Dataset(uri=str(artifacts.dataset)),
        model=dsl.Model(uri=str(artifacts.model)),
        version=7,
        saved_model=saved_model,
    )
    metadata = plain(saved_model.metadata)
    assert metadata["version"] == "7"
    lineage = json.loads((tmp_path / "saved_model" / "7" / "assets.extra" / "lineage.json").read_text())
    for name, value in (("run_id", "run-7"), ("commit", "c0ffee"), ("image", "graftflow:1")):
        assert metadata[name] == lineage[name] == value
    described = json.loads((artifacts.dataset / "dataset.json").read_text())
    assert metadata["dataset_digest"] == lineage["dataset"]["digest"] == described["digest"]
    made = json.loads((artifacts.model / "model.json").read_text())
    assert metadata["backbone_weights_sha256"] == made["backbone"]["weights_sha256"]
    assert lineage["parameters"]["recipe"] == made["recipe"]
    head = json.loads((artifacts.head / "head.json").read_text())
    assert lineage["parameters"]["head_settings"]["chosen_c"] == head["chosen_c"]
    assert lineage["validation"]["head_accuracy"] == made["head"]["accuracy"]
    assert (tmp_path / "saved_model" / "7" / "saved_model.pb").is_file()

    evaluation = output(dsl.Artifact, tmp_path / "evaluation")
    test_metrics = output(dsl.Metrics, tmp_path / "test_metrics")
    classification = output(dsl.ClassificationMetrics, tmp_path / "classification")
    accuracy = evaluate.python_func(
        dataset=dsl.Dataset(uri=str(artifacts.dataset)),
        saved_model=saved_model,
        seed=0,
        evaluation=evaluation,
        test_metrics=test_metrics,
        classification=classification,
    )
    assert type(accuracy) is float
    assert accuracy == test_metrics.metadata["accuracy"]
    assert {"accuracy", "log_loss", "auc", "calibration_error"} == set(plain(test_metrics.metadata))
    shown = plain(classification.metadata)
    names = [spec["displayName"] for spec in shown["confusionMatrix"]["annotationSpecs"]]
    assert names == ["brick", "coffee", "rocket"]
    rows = [row["row"] for row in shown["confusionMatrix"]["rows"]]
    assert sum(map(sum, rows)) == 12
    points = shown["confidenceMetrics"]
    assert points
    assert all(0 <= p["confidenceThreshold"] <= 1 for p in points)
    for artifact in (test_metrics, classification):
        assert Path(artifact.path).is_file()  # else KFP's cache never hits
