"""The learning curve: how good the head is with fewer training pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graftflow.logistic import Floats, Labels, log_softmax
from graftflow.progress import Progress

# Pictures a class, on average, below half of them.
LADDER = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
# Repeats of one size see at most so many pictures together, but one repeat there always is.
_MOST_PICTURES = 2500
_RESAMPLES = 500

Refit = Callable[[Floats, Labels, int], Callable[[Floats], Floats]]


def measure(
    train: tuple[Floats, Labels],
    validation: tuple[Floats, Labels],
    *,
    num_classes: int,
    refit: Refit,
    whole: Callable[[Floats], Floats],
    seeds: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measure accuracy and log loss on the validation pictures with growing parts of the training pictures.

    A part has the classes in the proportions of the whole, at least one picture each, and holds the smaller parts of
    its repeat. There are 5, 10, 25, 50, 100, … pictures a class, then half of all, then all.

    Args:
        train: features ``float32 (n, d)`` and labels ``(n,)`` in [0, num_classes), each occurring.
        validation: the same for the pictures that measure.
        num_classes: number of classes, k.
        refit: fits a head on features and labels, with a seed; returns what gives logits ``(m, k)`` of features.
        whole: the same for the head that was fitted on all of ``train``.
        seeds: repeats of a size, each with other pictures; fewer where a size exceeds 500 pictures, 1 from 2,500.
        seed: fixes which pictures a part has, and the intervals.

    Returns:
        For each size, smallest first: ``{"per_class": mean pictures a class, "pictures", "repeats", "accuracy":
        {"mean", "low", "high"}, "log_loss": {…}, "gain": {…} or None}``. ``gain`` is the accuracy above that of the
        size before, on the same pictures. ``low`` and ``high`` are the ends of the 95 % bootstrap interval over the
        validation pictures and the repeats.
    """
    (x, y), generator = train, np.random.Generator(np.random.PCG64(seed))
    counts = np.bincount(y, minlength=num_classes)
    ranks = [_ranks(y, generator) for _ in range(seeds)]
    points: list[dict[str, Any]] = []
    before: npt.NDArray[np.float64] | None = None
    fractions = _fractions(len(y) / num_classes)
    progress = Progress("learning curve", total=len(fractions), unit="sizes")
    for fraction in fractions:
        quota = np.maximum(1, np.round(fraction * counts)).astype(int)
        repeats = max(1, min(seeds, _MOST_PICTURES // int(quota.sum()))) if fraction < 1 else 1
        right, losses = [], []
        for repeat in range(repeats):
            part = ranks[repeat] < quota[y]
            logits = (whole if fraction == 1 else refit(x[part], y[part], repeat))(validation[0])
            right.append((logits.argmax(axis=1) == validation[1]).astype(np.float64))
            losses.append(-log_softmax(logits)[np.arange(len(logits)), validation[1]].astype(np.float64))
        accuracy = np.stack(right)
        points.append(
            {
                "per_class": round(float(quota.mean()), 1),
                "pictures": int(quota.sum()),
                "repeats": repeats,
                "accuracy": _interval(accuracy, generator),
                "log_loss": _interval(np.stack(losses), generator),
                "gain": None if before is None else _interval(accuracy - before.mean(axis=0), generator),
            }
        )
        before = accuracy
        progress.advance()
    return points


def _fractions(per_class: float) -> list[float]:
    """Return the parts to measure, ending with half and all; steps too near to half are left out."""
    halves = [0.5] if per_class >= 2 else []
    return [*(size / per_class for size in LADDER if size <= 0.4 * per_class), *halves, 1.0]


def _ranks(labels: Labels, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return each picture's place ``(n,)`` in a random order of its class."""
    ranks = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        ranks[places] = generator.permutation(len(places))
    return ranks


def _interval(values: npt.NDArray[np.float64], generator: np.random.Generator) -> dict[str, float]:
    """Return the mean of ``(repeats, n)`` values and the 95 % interval of the mean, resampling both axes."""
    repeats, count = values.shape
    means = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        rows = generator.integers(repeats, size=repeats)
        drawn = np.bincount(generator.integers(count, size=count), minlength=count)
        means[i] = values[rows].mean(axis=0) @ drawn / count
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def growth(points: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Return what the last step of the curve, from half of the pictures to all, added to the accuracy; or None."""
    gain: dict[str, float] | None = points[-1]["gain"] if points else None
    return gain
