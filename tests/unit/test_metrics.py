"""Metrics equal scikit-learn's, and their intervals behave as intervals."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from sklearn import metrics as exact

from graftflow import evaluation, metrics
from graftflow.errors import InputError


def sample(num_classes: int, count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, count)
    logits = generator.normal(size=(count, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.round(probabilities, 2) + 1e-6, labels  # rounded: ties occur


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_figures_equal_those_of_scikit_learn(num_classes: int) -> None:
    probabilities, labels = sample(num_classes)
    counts = metrics.bootstrap_counts(len(labels), resamples=3, seed=0)
    predicted = probabilities.argmax(axis=1)
    assert metrics.accuracy(counts, probabilities, labels)[0] == pytest.approx(
        exact.accuracy_score(labels, predicted)
    )
    true = probabilities[np.arange(len(labels)), labels]
    assert metrics.log_loss(counts, probabilities, labels)[0] == pytest.approx(-np.log(true).mean())
    areas = [exact.roc_auc_score(labels == c, probabilities[:, c]) for c in range(num_classes)]
    expected = areas[1] if num_classes == 2 else np.mean(areas)
    assert metrics.area_under_roc(counts, probabilities, labels)[0] == pytest.approx(expected)
    for c in range(num_classes):
        assert metrics.precision(counts, predicted, labels, of=c)[0] == pytest.approx(
            exact.precision_score(labels == c, predicted == c)
        )
        assert metrics.recall(counts, predicted, labels, of=c)[0] == pytest.approx(
            exact.recall_score(labels == c, predicted == c)
        )
    assert metrics.confusion_matrix(probabilities, labels) == (
        exact.confusion_matrix(labels, predicted).tolist()
    )


def test_every_resample_is_the_figure_of_the_pictures_it_drew() -> None:
    probabilities, labels = sample(3)
    counts = metrics.bootstrap_counts(len(labels), resamples=5, seed=1)
    assert (counts.sum(axis=1) == len(labels)).all()
    for row, drawn in enumerate(counts.astype(int)):
        repeated = np.repeat(np.arange(len(labels)), drawn)
        p, y = probabilities[repeated], labels[repeated]
        whole = np.ones((1, len(y)))
        for metric in (
            metrics.accuracy,
            metrics.log_loss,
            metrics.area_under_roc,
            metrics.calibration_error,
        ):
            assert metric(counts, probabilities, labels)[row] == pytest.approx(metric(whole, p, y)[0])


def test_resamples_are_draws_that_a_seed_fixes() -> None:
    counts = metrics.bootstrap_counts(40, resamples=300, seed=3)
    assert counts.shape == (301, 40)
    assert (counts[0] == 1).all()
    assert (counts[1:] != 1).any(axis=1).all()
    assert counts[1:].mean(axis=0) == pytest.approx(np.ones(40), abs=0.3)  # five deviations
    assert np.array_equal(counts, metrics.bootstrap_counts(40, resamples=300, seed=3))
    assert not np.array_equal(counts, metrics.bootstrap_counts(40, resamples=300, seed=4))
    assert metrics.bootstrap_counts(1, resamples=1, seed=0).tolist() == [[1], [1]]


def test_a_figure_does_not_tell_how_many_rows_were_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, labels = sample(3)
    predicted = probabilities.argmax(axis=1)
    whole = metrics.bootstrap_counts(len(labels), resamples=99, seed=5)
    monkeypatch.setattr(metrics, "_HELD", 48 * len(labels))
    measures = {
        "counts": lambda counts: counts,
        "auc": metrics.roc_area(probabilities, labels),
        "precision": partial(metrics.precision, predicted=predicted, labels=labels, of=1),
        "accuracy": partial(metrics.accuracy, probabilities=probabilities, labels=labels),
        "log_loss": partial(metrics.log_loss, probabilities=probabilities, labels=labels),
        "error": partial(metrics.calibration_error, probabilities=probabilities, labels=labels),
    }
    rows = []
    measures["rows"] = lambda counts: rows.append(len(counts)) or counts[:, 0]
    found = metrics.bootstrap(measures, len(labels), resamples=99, seed=5)
    assert rows == [48, 48, 4]
    for name in ("counts", "auc", "precision", "accuracy"):
        assert np.array_equal(found[name], measures[name](whole)), name
    for name in ("log_loss", "error"):  # BLAS of another processor may add in another order
        np.testing.assert_allclose(found[name], measures[name](whole), rtol=1e-14, err_msg=name)


def test_memory_does_not_grow_with_resamples_times_pictures() -> None:
    probabilities, labels = sample(2, 20_000)
    tracemalloc.start()
    evaluation.summarise(probabilities, labels, ["cat", "dog"], resamples=400)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 8 MB for each of the block's counts and what is made of them; all the counts alone are 64 MB.
    assert peak < 48e6


def test_a_class_that_is_not_there_is_left_out_of_the_area() -> None:
    probabilities, labels = sample(4)
    kept = labels < 2
    p, y = probabilities[kept], labels[kept]
    expected = np.mean([exact.roc_auc_score(y == c, p[:, c]) for c in (0, 1)])
    # The second row draws class 0 alone: it has no area.
    counts = np.stack([np.ones(len(y)), y == 0])
    assert metrics.area_under_roc(counts, p, y) == pytest.approx([expected, np.nan], nan_ok=True)


def test_calibration_is_that_of_fifteen_bins() -> None:
    probabilities, labels = sample(3, 2000)
    probabilities = probabilities.astype(np.float32)
    top, right = probabilities.max(axis=1).astype(float), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, 16)
    bins = [(low < top) & (top <= high) for low, high in zip(edges[:-1], [*edges[1:-1], 2], strict=True)]
    expected = sum(abs(right[b].mean() - top[b].mean()) * b.mean() for b in bins if b.any())
    counts = np.ones((1, len(labels)))
    assert metrics.calibration_error(counts, probabilities, labels)[0] == pytest.approx(expected)
    curve = metrics.calibration_curve(probabilities, labels)
    assert [part["count"] for part in curve] == [b.sum() for b in bins if b.any()]
    assert [part["accuracy"] for part in curve] == pytest.approx([right[b].mean() for b in bins if b.any()])
    assert [part["confidence"] for part in curve] == pytest.approx([top[b].mean() for b in bins if b.any()])
    # Of many classes even the likeliest may be unlikely: bins 1 and 2.
    unsure = np.full((2, 30), 0.03)
    unsure[1, 0] = 0.1
    parts = metrics.calibration_curve(unsure, np.zeros(2, int))
    assert [part["count"] for part in parts] == [1, 1]


def test_calibration_error_of_a_known_case() -> None:
    # Ten pictures at confidence 0.8, six of them right: a gap of 0.2.
    probabilities = np.tile([0.8, 0.2], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    counts = np.ones((1, 10))
    assert metrics.calibration_error(counts, probabilities, labels)[0] == pytest.approx(0.2)
    curve = metrics.calibration_curve(probabilities, labels)
    assert curve == [{"confidence": pytest.approx(0.8), "accuracy": 0.6, "count": 10}]


def test_an_interval_is_made_of_percentiles_of_the_defined_resamples() -> None:
    values = np.array([7.0, *range(101), np.nan, np.inf])
    assert metrics.with_interval(values, confidence=0.9) == pytest.approx({"value": 7, "low": 5, "high": 95})
    nothing = metrics.with_interval(np.array([np.nan, np.nan]), confidence=0.9)
    assert nothing == {"value": None, "low": None, "high": None}
    assert metrics.with_interval(np.array([0.5, np.nan]), confidence=0.9)["low"] is None


def test_interval_holds_the_value_and_shrinks_with_more_pictures() -> None:
    widths = []
    for count in (50, 5000):
        probabilities, labels = sample(3, count)
        summary = evaluation.summarise(probabilities, labels, ["a", "b", "c"], resamples=300)
        # Not the calibration error, which resampling biases upwards.
        for name in ("accuracy", "log_loss", "auc"):
            metric = summary["metrics"][name]
            assert metric["low"] < metric["value"] < metric["high"], name
        accuracy = summary["metrics"]["accuracy"]
        widths.append(accuracy["high"] - accuracy["low"])
    assert widths[1] < widths[0] / 5  # one over the root of 100, with room


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(150) < 0.8
        probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
        counts = metrics.bootstrap_counts(150, resamples=400, seed=seed)
        values = metrics.accuracy(counts, probabilities, np.zeros(150, int))
        interval = metrics.with_interval(values, confidence=0.95)
        covered += interval["low"] <= 0.8 <= interval["high"]
    assert 0.88 <= covered / 200 <= 1.0


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    probabilities, labels = np.tile([0.9, 0.1], (4, 1)), np.array([0, 0, 1, 1])
    summary = evaluation.summarise(probabilities, labels, ["cat", "dog"], resamples=50)
    dog = summary["per_class"]["dog"]
    assert dog["precision"]["value"] is None
    assert dog["recall"]["value"] == 0.0
    assert dog["support"] == 2


@pytest.mark.parametrize("num_classes", [2, 5])
def test_roc_curve_is_finite_and_bounded(num_classes: int) -> None:
    probabilities, labels = sample(num_classes, 3000)
    curve = metrics.roc_curve(probabilities, labels)
    assert len(curve["threshold"]) <= 200
    for name in ("false_positive_rate", "true_positive_rate"):
        assert curve[name][0] == 0.0
        assert curve[name][-1] == 1.0
        assert curve[name] == sorted(curve[name])
    assert all(np.isfinite(curve["threshold"]))
    assert curve["threshold"] == sorted(curve["threshold"], reverse=True)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_roc_curve_is_that_of_scikit_learn(num_classes: int) -> None:
    probabilities, labels = sample(num_classes)
    if num_classes == 2:
        false_positive, true_positive, threshold = exact.roc_curve(labels, probabilities[:, 1])
    else:
        decisions = (labels[:, None] == np.arange(num_classes)).ravel()
        false_positive, true_positive, threshold = exact.roc_curve(decisions, probabilities.ravel())
    curve = metrics.roc_curve(probabilities, labels, points=1000)
    assert curve["false_positive_rate"] == false_positive.tolist()
    assert curve["true_positive_rate"] == true_positive.tolist()
    assert curve["threshold"] == [1.0, *np.minimum(threshold[1:], 1)]
    few = metrics.roc_curve(probabilities, labels, points=10)
    assert len(few["threshold"]) == 10
    assert (few["threshold"][0], few["threshold"][-1]) == (1.0, threshold[-1])
    assert set(few["threshold"]) <= set(curve["threshold"])
    scores = np.random.default_rng(0).random((2000, num_classes))
    assert len(metrics.roc_curve(scores, np.arange(2000) % num_classes)["threshold"]) == 200


def test_no_pictures_is_refused() -> None:
    with pytest.raises(InputError, match="at least one picture"):
        metrics.bootstrap_counts(0, resamples=10, seed=0)
    with pytest.raises(InputError, match="resamples must be at least 1. Received: 0"):
        metrics.bootstrap_counts(10, resamples=0, seed=0)
