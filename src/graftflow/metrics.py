"""Metrics of a classifier with bootstrap confidence intervals, and the curves behind them.

Every metric is written as a function of how often each picture counts, so that one matrix of bootstrap counts
(Efron and Tibshirani 1993, chapter 13: percentile intervals) gives all intervals at once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from graftflow.errors import InputError

Array = npt.NDArray[Any]
NUM_BINS = 15


def bootstrap_counts(num_pictures: int, *, resamples: int, seed: int) -> Array:
    """Return how often each picture is drawn: ``float64 (resamples + 1, n)``; row 0 is the sample itself."""
    if num_pictures < 1:
        raise InputError(f"Metrics need at least one picture. Received: {num_pictures}")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1. Received: {resamples}")
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.multinomial(num_pictures, np.full(num_pictures, 1 / num_pictures), resamples)
    return np.concatenate([np.ones((1, num_pictures)), drawn])


def accuracy(counts: Array, probabilities: Array, labels: Array) -> Array:
    """Return the fraction predicted right, one value a row of ``counts``."""
    return _mean(counts, probabilities.argmax(axis=1) == labels)


def log_loss(counts: Array, probabilities: Array, labels: Array) -> Array:
    """Return the mean negative log probability of the true class, in nats; probabilities are cut at 1e-12."""
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return _mean(counts, -np.log(np.maximum(true, 1e-12)))


def area_under_roc(counts: Array, probabilities: Array, labels: Array) -> Array:
    """Return the area under the ROC curve, one class against the rest, averaged over the classes.

    Classes without positives or without negatives in a row are left out of that row's average; NaN where none is
    left. Ties count one half.
    """
    num_classes = probabilities.shape[1]
    classes = [1] if num_classes == 2 else range(num_classes)
    areas = np.stack([_one_area(counts, probabilities[:, c], labels == c) for c in classes])
    filled = np.isfinite(areas)
    total = np.where(filled, areas, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / filled.sum(axis=0))


def _one_area(counts: Array, scores: Array, positive: Array) -> Array:
    order = np.argsort(scores, kind="stable")
    weights, hits = counts[:, order], positive[order]
    _, start = np.unique(scores[order], return_index=True)
    positives = np.add.reduceat(weights * hits, start, axis=1)
    negatives = np.add.reduceat(weights * ~hits, start, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / (positives.sum(axis=1) * negatives.sum(axis=1)))


def calibration_error(counts: Array, probabilities: Array, labels: Array) -> Array:
    """Return the expected calibration error of the top class, 15 equal bins (Guo et al. 2017, section 2)."""
    bins = _bins(probabilities)
    gap = (probabilities.argmax(axis=1) == labels) - probabilities.max(axis=1).astype(np.float64)
    return np.asarray(np.abs(counts @ (bins * gap[:, None])).sum(axis=1) / counts.sum(axis=1))


def calibration_curve(probabilities: Array, labels: Array) -> list[dict[str, float]]:
    """Return mean confidence, accuracy and count of each bin that holds a picture."""
    bins = _bins(probabilities)
    correct, top = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    return [
        {
            "confidence": float(top[inside].mean()),
            "accuracy": float(correct[inside].mean()),
            "count": int(inside.sum()),
        }
        for inside in bins.T.astype(bool)
        if inside.any()
    ]


def _bins(probabilities: Array) -> Array:
    """One-hot membership ``(n, 15)`` of each picture's top probability."""
    index = np.clip(np.ceil(probabilities.max(axis=1) * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return np.asarray(np.eye(NUM_BINS)[index])


def precision(counts: Array, probabilities: Array, labels: Array, *, of: int) -> Array:
    """Return the fraction of pictures predicted as class ``of`` that are of it; NaN where none is."""
    predicted = probabilities.argmax(axis=1) == of
    return _mean(counts * predicted, labels == of)


def recall(counts: Array, probabilities: Array, labels: Array, *, of: int) -> Array:
    """Return the fraction of pictures of class ``of`` that are predicted as it; NaN where none is."""
    return _mean(counts * (labels == of), probabilities.argmax(axis=1) == of)


def _mean(counts: Array, values: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(counts @ values.astype(np.float64) / counts.sum(axis=1))


def with_interval(values: Array, *, confidence: float) -> dict[str, float | None]:
    """Turn a metric's values (row 0 the sample, the rest resamples) into value, low and high end.

    What is undefined (the precision of a class that is never predicted) is None.
    """
    rest = values[1:][np.isfinite(values[1:])]
    tail = (1 - confidence) / 2
    low, high = np.quantile(rest, [tail, 1 - tail]) if len(rest) else (np.nan, np.nan)
    named = {"value": values[0], "low": low, "high": high}
    return {name: float(x) if np.isfinite(x) else None for name, x in named.items()}


def confusion_matrix(probabilities: Array, labels: Array) -> list[list[int]]:
    """Return counts ``(k, k)``: rows are true classes, columns predicted ones."""
    num_classes = probabilities.shape[1]
    matrix = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(matrix, (labels, probabilities.argmax(axis=1)), 1)
    return [[int(count) for count in row] for row in matrix]


def roc_curve(probabilities: Array, labels: Array, *, points: int = 200) -> dict[str, list[float]]:
    """Return the ROC curve: of class 1 for two classes, else of all class decisions together (micro-average).

    Thresholds are finite and fall from 1 to 0, so that KFP can carry them; at most ``points`` are kept.
    """
    from sklearn.metrics import roc_curve as exact

    if probabilities.shape[1] == 2:
        scores, positive = probabilities[:, 1], labels == 1
    else:
        scores = probabilities.ravel()
        positive = np.eye(probabilities.shape[1], dtype=bool)[labels].ravel()
    false_positive, true_positive, threshold = exact(positive, scores)
    keep = np.unique(np.linspace(0, len(threshold) - 1, min(points, len(threshold))).astype(int))
    threshold = np.clip(threshold, 0.0, 1.0)
    return {
        "false_positive_rate": [float(x) for x in false_positive[keep]],
        "true_positive_rate": [float(x) for x in true_positive[keep]],
        "threshold": [float(x) for x in threshold[keep]],
    }
