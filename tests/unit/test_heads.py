"""The head: found by validation, equal to the logistic regression it stands for."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from graftflow import files, heads
from graftflow.errors import InputError


def clusters(num_classes: int, count: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(9).normal(size=(num_classes, 20))
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    x = centres[labels] + spread * generator.normal(size=(count, 20))
    return (5 + 3 * x).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_head_is_logistic_regression_on_standardised_features(num_classes: int) -> None:
    train, validation = clusters(num_classes, 200, 1.5, 0), clusters(num_classes, 100, 1.5, 1)
    head = heads.fit_head(train, validation, num_classes=num_classes, strengths=(0.1,))
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    model = LogisticRegression(C=0.1, max_iter=1000, tol=1e-6)
    model.fit(scaler.transform(train[0].astype(np.float64)), train[1])
    expected = model.predict_proba(scaler.transform(validation[0].astype(np.float64)))
    ours = np.exp(heads.log_softmax(validation[0] @ head.kernel + head.bias))
    np.testing.assert_allclose(ours, expected, atol=5e-3)
    assert head.kernel.shape == (20, num_classes)
    assert head.kernel.dtype == head.bias.dtype == np.float32


def test_validation_chooses_the_penalty() -> None:
    train, validation = clusters(3, 45, 3.0, 0), clusters(3, 300, 3.0, 1)
    head = heads.fit_head(train, validation, num_classes=3)
    losses = {point["c"]: point["validation_log_loss"] for point in head.path}
    assert head.chosen_c == min(losses, key=losses.get)
    assert [point["c"] for point in head.path] == list(heads.STRENGTHS)
    # Weaker penalties always fit the training pictures better; validation is what objects.
    train_losses = [point["train_log_loss"] for point in head.path]
    assert train_losses == sorted(train_losses, reverse=True)
    assert head.chosen_c < heads.STRENGTHS[-1]
    again = heads.fit_head(train, validation, num_classes=3)
    np.testing.assert_array_equal(again.kernel, head.kernel)


def test_log_loss_of_known_logits() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    assert heads.log_loss(logits, np.array([0, 1])) == pytest.approx(-np.log([0.5, 0.1]).mean())
    assert np.isfinite(heads.log_loss(np.array([[1e4, -1e4]]), np.array([1])))


def test_a_class_without_training_pictures_is_refused() -> None:
    x, y = clusters(3, 30, 1.0, 0)
    with pytest.raises(InputError, match=r"none for: \[2\]"):
        heads.fit_head((x[y < 2], y[y < 2]), (x, y), num_classes=3)


def test_written_head_carries_the_identity_of_its_features(artifacts, tmp_path: Path) -> None:
    source = files.read_json(artifacts.features / "features.json")
    head = files.read_json(artifacts.head / "head.json")
    assert head["backbone"] == source["backbone"]
    assert head["backbone"]["name"] == "efficientnet_lite0"
    assert head["classes"] == ["brick", "coffee", "rocket"]
    with np.load(artifacts.head / "head.npz") as arrays:
        assert arrays["kernel"].shape == (1280, 3)
    assert head["validation_accuracy"] >= 0.8
