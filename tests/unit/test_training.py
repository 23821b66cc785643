"""Fine-tuning trains what it says, keeps what validation prefers, and repeats itself."""

from pathlib import Path

import keras
import numpy as np
import pytest

from graftflow import activations, backbones, files, fine_tuning, heads, training
from graftflow.calibration import with_temperature
from graftflow.errors import InputError
from graftflow.recipes import Recipe
from tests.unit.damages import damage


def settings(artifacts, **changes) -> dict:
    """Arguments of write_model; changes of fields of the recipe go into it."""
    own = {"weights": "imagenet", "num_blocks": 1, "cache": None}
    given = {name: changes.pop(name, value) for name, value in own.items()}
    recipe = Recipe(**{"epochs": 1, "learning_rate": 1e-4, "batch_size": 8, **changes})
    return {"dataset_path": artifacts.dataset, "head_path": artifacts.head, "recipe": recipe, **given}


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


def test_the_result_is_never_worse_than_the_head_on_validation(artifacts, tmp_path: Path) -> None:
    # A learning rate that ruins the network: what comes back is the head alone.
    ruined = training.write_model(tmp_path, **settings(artifacts, learning_rate=1.0, num_blocks=3))
    assert ruined["chosen"] == "head"
    assert ruined["fine_tuned"]["log_loss"] > ruined["head"]["log_loss"]
    delivered = training.load_classifier(tmp_path)
    features = backbones.build("efficientnet_lite0")
    head_alone = training.build_classifier(features, heads.read_layers(artifacts.head))
    pixels = np.random.default_rng(0).random((2, 224, 224, 3), dtype="f4")
    expected = with_temperature(head_alone(pixels).numpy(), ruined["temperature"])
    np.testing.assert_allclose(delivered(pixels), expected, atol=1e-5)


def logits_of(*certainties: float) -> np.ndarray:
    """Logits of two classes whose difference says how sure the model is of class 0; negative is a mistake."""
    return np.array([[c, 0.0] for c in certainties])


@pytest.mark.parametrize(
    ("candidate", "incumbent", "better"),
    [
        ((2.0, 2.1, 1.9, 2.0), (1.0, 1.1, 0.9, 1.2), True),
        ((2.0, 2.0, 2.0, -0.1), (1.0, 1.0, 1.0, 0.1), False),  # a mistake more
        ((2.0, 2.0, 2.0, 2.0), (2.0, 2.0, 2.0, 2.0), False),
        ((3.0, 0.1, 0.1, 0.1), (0.1, 0.2, 0.2, 0.2), False),  # one picture alone is no evidence
        ((float("nan"),) * 4, (1.0,) * 4, False),
    ],
)
def test_better_means_no_less_accuracy_and_a_loss_smaller_beyond_noise(candidate, incumbent, better) -> None:
    labels = np.zeros(4, int)
    assert training.is_better(logits_of(*candidate), logits_of(*incumbent), labels) is better


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


def test_the_temperature_is_folded_in_and_told(artifacts, tmp_path: Path) -> None:
    summary = training.write_model(tmp_path, **settings(artifacts, num_blocks=0))
    layers = heads.read_layers(artifacts.head)
    kernel = training.load_classifier(tmp_path).get_layer("logits").get_weights()[0]
    np.testing.assert_allclose(kernel * summary["temperature"], layers[-1][0], rtol=1e-5)
    assert summary["calibrated"]["accuracy"] == summary["head"]["accuracy"]


@pytest.mark.parametrize("num_views", [0, 2])
def test_views_are_kept_or_made_anew_and_both_train(artifacts, tmp_path: Path, num_views: int) -> None:
    changes = {"num_views": num_views, "epochs": 3, "patience": 9}
    summary = training.write_model(tmp_path, **settings(artifacts, **changes))
    assert summary["views"] == num_views
    assert len(summary["history"]) == 3
    assert summary["fine_tuned"]["log_loss"] <= summary["head"]["log_loss"] * 1.05


def test_a_killed_step_computes_no_view_again(artifacts, tmp_path: Path, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    changes = {"num_views": 1, "epochs": 2, "cache": tmp_path / "cache"}
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(fine_tuning, "_write_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.write_model(tmp_path / "model", **settings(artifacts, **changes))
    monkeypatch.undo()
    assert len(list((tmp_path / "cache").rglob("view-0.npy"))) == 1
    seen = []
    monkeypatch.setattr(activations.ViewSource, "_pixels", lambda *a, **k: seen.append(a))
    summary = training.write_model(tmp_path / "model", **settings(artifacts, **changes))
    assert not seen
    assert len(summary["history"]) == 2
    # Done: nothing waits for another try.
    assert not list((tmp_path / "cache").rglob("*.np[yz]"))


@pytest.mark.parametrize("kind", ["cut", "flip", "empty"])
def test_a_damaged_view_is_told_of_and_computed_again(artifacts, tmp_path: Path, kind: str, capsys) -> None:
    source = activations.ViewSource(
        artifacts.dataset,
        lambda pixels: pixels[:, ::32, ::32],
        shape=(7, 7, 3),
        input_size=224,
        num_views=1,
        folder=tmp_path,
        batch_size=8,
        seed=0,
        augmentation="light",
    )
    before = [values.copy() for values, _ in source.epoch(0)]
    (view,) = tmp_path.iterdir()
    intact = view.read_bytes()
    damage(view, kind, seed=2)
    vars(source)["_intact"].clear()  # as a later process, which has written none
    for one, other in zip(before, (values for values, _ in source.epoch(0)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert view.read_bytes() == intact
    assert f"The view '{view}' is cut or altered, and is computed again." in capsys.readouterr().out


def test_large_views_are_not_kept() -> None:
    assert activations.views_that_fit(1000, (7, 7, 192), 4, input_size=224) == 4
    assert activations.views_that_fit(1_000_000, (7, 7, 192), 4, input_size=224) == 0
    assert activations.views_that_fit(200_000, (7, 7, 192), 4, input_size=224) == 2
    assert activations.views_that_fit(10, (112, 112, 32), 4, input_size=224) == 0


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_blocks": -1}, "num_blocks must be at least 0. Received: -1"),
        ({"num_blocks": 99}, "between 0 .* and 16"),
        ({"epochs": 0}, "epochs must be a whole number from 1. Received: 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
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
