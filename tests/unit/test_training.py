"""Fine-tuning trains what it says, keeps what validation prefers, and repeats itself."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from graftflow import backbones, files, training
from graftflow.errors import InputError


def settings(artifacts, **changes) -> dict:
    return {
        "dataset_path": artifacts.dataset,
        "head_path": artifacts.head,
        "weights": "imagenet",
        "num_blocks": 1,
        "epochs": 1,
        "learning_rate": 1e-4,
        "batch_size": 8,
        **changes,
    }


def weights_by_layer(model: keras.Model) -> dict[str, list[np.ndarray]]:
    layers = model.get_layer("backbone").layers
    return {layer.name: layer.get_weights() for layer in layers if layer.weights}


def test_only_the_last_block_changes_and_batchnorm_never(artifacts) -> None:
    summary = files.read_json(artifacts.model / "model.json")
    model = training.load_classifier(artifacts.model)
    before = weights_by_layer(backbones.build("efficientnet_lite0"))
    after = weights_by_layer(model)
    changed = {
        name
        for name, old in before.items()
        if any(not np.array_equal(a, b) for a, b in zip(old, after[name], strict=True))
    }
    if summary["chosen"] == "head":
        assert not changed
    else:
        assert changed
    assert all(name.startswith(("block7a", "top")) for name in changed)
    assert not [name for name in changed if name.endswith("_bn")]
    assert model.get_layer("backbone").trainable is False


def test_unfreezing_leaves_normalisation_in_inference_mode() -> None:
    features = backbones.build("mobilenetv2", weights="none")
    model = training.build_classifier(features, np.zeros((1280, 2), "f4"), np.zeros(2, "f4"))
    training.unfreeze_last_blocks(model, "mobilenetv2", 2)
    layers = model.get_layer("backbone").layers
    trainable = [layer.name for layer in layers if layer.trainable and layer.weights]
    assert trainable
    assert all(name.startswith(("block_15", "block_16", "Conv_1")) for name in trainable)
    assert not [x for x in layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]
    statistics = [w.numpy() for w in model.get_layer("backbone").non_trainable_weights]
    model(np.random.default_rng(0).random((2, 224, 224, 3), dtype="f4"), training=True)
    for old, new in zip(statistics, model.get_layer("backbone").non_trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_result_is_never_worse_than_the_head_on_validation(artifacts, tmp_path: Path) -> None:
    # A learning rate that ruins the network: what comes back is the head alone.
    ruined = training.write_model(tmp_path, **settings(artifacts, learning_rate=1.0, num_blocks=3))
    assert ruined["chosen"] == "head"
    assert ruined["fine_tuned"]["log_loss"] > ruined["head"]["log_loss"]
    delivered = training.load_classifier(tmp_path)
    features = backbones.build("efficientnet_lite0")
    with np.load(artifacts.head / "head.npz") as arrays:
        head_alone = training.build_classifier(features, arrays["kernel"], arrays["bias"])
    pixels = np.random.default_rng(0).random((2, 224, 224, 3), dtype="f4")
    np.testing.assert_allclose(delivered(pixels), head_alone(pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("candidate", "incumbent", "better"),
    [
        ((0.9, 0.2), (0.9, 0.3), True),
        ((0.95, 0.2), (0.9, 0.3), True),
        ((0.89, 0.1), (0.9, 0.3), False),
        ((0.95, 0.4), (0.9, 0.3), False),
        ((0.9, 0.3), (0.9, 0.3), False),
        ((0.9, float("nan")), (0.9, 0.3), False),
    ],
)
def test_better_means_no_less_accuracy_and_a_smaller_loss(candidate, incumbent, better) -> None:
    names = ("accuracy", "log_loss")
    assert (
        training.is_better(dict(zip(names, candidate, strict=True)), dict(zip(names, incumbent, strict=True)))
        is better
    )


def test_the_same_seed_gives_the_same_model(artifacts, tmp_path: Path) -> None:
    histories = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        summary = training.write_model(tmp_path / name, **settings(artifacts, seed=5))
        histories.append(summary["history"] + [summary["fine_tuned"]])
    assert histories[0] == histories[1]


def test_no_block_means_the_head_alone(artifacts, tmp_path: Path) -> None:
    summary = training.write_model(tmp_path, **settings(artifacts, num_blocks=0))
    assert summary["chosen"] == "head"
    assert summary["fine_tuned"] is None
    assert summary["history"] == []
    head = files.read_json(artifacts.head / "head.json")
    assert summary["head"]["log_loss"] == pytest.approx(head["validation_log_loss"], abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.keras"]


def test_augmentation_stays_in_range_and_repeats_by_seed(picture_folder: Path) -> None:
    from graftflow.preprocessing import decode

    picture = next(picture_folder.rglob("*.png")).read_bytes()
    pixels = decode(tf.constant(picture), 64)
    views = [training.augment(pixels, tf.constant([0, i], tf.int64)).numpy() for i in range(20)]
    assert all(view.shape == (64, 64, 3) for view in views)
    assert min(view.min() for view in views) >= 0.0
    assert max(view.max() for view in views) <= 1.0
    assert len({view.tobytes() for view in views}) == 20
    again = training.augment(pixels, tf.constant([0, 7], tf.int64)).numpy()
    np.testing.assert_array_equal(views[7], again)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_blocks": -1}, "num_blocks must be at least 0. Received: -1"),
        ({"num_blocks": 99}, "between 0 .* and 16"),
        ({"epochs": 0}, "epochs must be at least 1. Received: 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"weights": "none"}, "weights that the head was trained on"),
        ({"weights": "/missing.h5"}, "is no file"),
    ],
)
def test_bad_settings_are_refused(artifacts, tmp_path: Path, change: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        training.write_model(tmp_path, **settings(artifacts, **change))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_unreadable_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"nonsense")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="readable model.keras"):
            training.load_classifier(path)
