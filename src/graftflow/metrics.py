"""Metrics of a classifier with bootstrap confidence intervals, and the curves behind them.

Every metric is written as a function of how often each picture counts, so that one matrix of bootstrap counts
(Efron and Tibshirani 1993, chapter 13: percentile intervals) gives all intervals at once. Of many pictures
:func:`bootstrap` makes that matrix some rows at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from graftflow.errors import InputError

Array = npt.NDArray[Any]
# Values of a metric, one a row of counts.
Measure = Callable[[Array], Array]
NUM_BINS = 15
# Counts that are held at once: 8 MB, and the products of a metric as much again each.
_HELD = 1_000_000
# BLAS adds the last rows of a matrix in another order where they are no multiple of 16 (with AVX-512), so blocks are
# such a multiple: the last bits of a figure then do not tell how many pictures fit into one.
_ROWS = 16


def bootstrap(
    measures: Mapping[str, Measure], num_pictures: int, *, resamples: int, seed: int
) -> dict[str, Array]:
    """Return what each measure gives of :func:`bootstrap_counts`, which are never all in memory.

    Args:
        measures: by name, what gives a value a row of counts ``float64 (rows, n)``.
        num_pictures: n, at least 1.
        resamples: at least 1.
        seed: fixes the resamples.

    Returns:
        By name ``float64 (resamples + 1,)``; value 0 is that of the sample itself.
    """
    found: dict[str, list[Array]] = {name: [] for name in measures}
    for counts in _blocks(num_pictures, resamples=resamples, seed=seed):
        for name, measure in measures.items():
            found[name].append(measure(counts))
    return {name: np.concatenate(values) for name, values in found.items()}


def bootstrap_counts(num_pictures: int, *, resamples: int, seed: int) -> Array:
    """Return how often each picture is drawn: ``float64 (resamples + 1, n)``; row 0 is the sample itself."""
    return np.concatenate([*_blocks(num_pictures, resamples=resamples, seed=seed)])


def _blocks(num_pictures: int, *, resamples: int, seed: int) -> Iterator[Array]:
    """Yield the rows of :func:`bootstrap_counts` in order, some at a time."""
    if num_pictures < 1:
        raise InputError(f"Metrics need at least one picture. Received: {num_pictures}")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1. Received: {resamples}")
    generator = np.random.Generator(np.random.PCG64(seed))
    chances = np.full(num_pictures, 1 / num_pictures)
    step = max(_ROWS, _HELD // num_pictures // _ROWS * _ROWS)
    for start in range(0, resamples + 1, step):
        counts = np.ones((min(step, resamples + 1 - start), num_pictures))
        drawn = counts[1:] if start == 0 else counts
        drawn[:] = generator.multinomial(num_pictures, chances, len(drawn))
        yield counts


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
    return roc_area(probabilities, labels)(counts)


def roc_area(probabilities: Array, labels: Array) -> Measure:
    """Return what gives :func:`area_under_roc` of counts: the pictures are sorted once for all of them."""
    num_classes = probabilities.shape[1]
    classes = [1] if num_classes == 2 else range(num_classes)
    measures = [_one_area(probabilities[:, c], np.flatnonzero(labels == c)) for c in classes]

    def mean(counts: Array) -> Array:
        areas = np.stack([measure(counts) for measure in measures])
        filled = np.isfinite(areas)
        total = np.where(filled, areas, 0.0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return np.asarray(total / filled.sum(axis=0))

    return mean


def _one_area(scores: Array, positives: Array) -> Measure:
    """The area as Mann and Whitney (1947) count it: how many negatives lie below each positive."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    # Where the pictures begin and end that score as a positive does.
    begin, end = (np.searchsorted(ordered, scores[positives], side) for side in ("left", "right"))
    order = order.astype(np.int32)  # half of the memory, which is that of every class

    def area(counts: Array) -> Array:
        below = np.zeros((len(counts), len(scores) + 1))
        np.cumsum(np.take(counts, order, axis=1), axis=1, out=below[:, 1:])
        weights = np.take(counts, positives, axis=1)
        num_positives = weights.sum(axis=1)
        # Among all pictures, less the pairs of positives. Multiples of 1/2, which float64 adds without rounding.
        wins = (weights * (np.take(below, begin, axis=1) + np.take(below, end, axis=1))).sum(axis=1) / 2
        wins -= num_positives**2 / 2
        with np.errstate(invalid="ignore"):
            return np.asarray(wins / (num_positives * (counts.sum(axis=1) - num_positives)))

    return area


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


def precision(counts: Array, predicted: Array, labels: Array, *, of: int) -> Array:
    """Return the fraction of pictures predicted as class ``of`` that are of it; NaN where none is."""
    among = np.flatnonzero(predicted == of)
    return _mean(np.take(counts, among, axis=1), labels[among] == of)


def recall(counts: Array, predicted: Array, labels: Array, *, of: int) -> Array:
    """Return the fraction of pictures of class ``of`` that are predicted as it; NaN where none is."""
    return precision(counts, labels, predicted, of=of)


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
