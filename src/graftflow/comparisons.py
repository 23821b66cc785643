"""Two models on the same test pictures: what differs, and whether so many pictures can show it.

Every figure is paired: a picture that both models find easy, or both find hard, says nothing about which is better.
"""

import csv
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftflow.errors import InputError

Array = npt.NDArray[Any]
CONFIDENCE = 0.95
# A difference whose p lies below it counts as shown.
SIGNIFICANCE = 0.05
# Drawn at once by the bootstrap: 16 MB of indices.
_DRAWS = 2_000_000


@dataclass(frozen=True)
class Predictions:
    """What a model answered to the test pictures.

    Attributes:
        paths: of the ``n`` pictures.
        labels: ``int64 (n,)`` in [0, k), the true classes.
        classes: the ``k`` names.
        probabilities: ``float64 (n, k)``.
    """

    paths: tuple[str, ...]
    labels: Array
    classes: tuple[str, ...]
    probabilities: Array


def read_predictions(evaluation_path: str | Path) -> Predictions:
    """Read ``predictions.csv`` of an ``evaluation`` artifact.

    Raises:
        InputError: where there is none, or it is not laid out as evaluate writes it.
    """
    path = Path(evaluation_path) / "predictions.csv"
    paths: list[str] = []
    # Arrays take 8 bytes a number; the strings of many pictures and classes, 60.
    labels, probabilities = array("q"), array("d")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            head = next(rows, [])
            if head[:3] != ["path", "label", "predicted"]:
                raise ValueError("its columns are missing")
            classes = tuple(head[3:])
            index = {name: number for number, name in enumerate(classes)}
            for row in rows:
                if len(row) != len(head):
                    raise ValueError("a row has other columns than its first line")
                paths.append(row[0])
                labels.append(index[row[1]])
                probabilities.extend(map(float, row[3:]))
        if not paths:
            raise ValueError("its rows are missing")
        table = np.array(probabilities).reshape(len(paths), len(classes))
        return Predictions(tuple(paths), np.array(labels), classes, table)
    except (OSError, ValueError, KeyError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"An evaluation must hold a readable predictions.csv. Received: '{path}' ({reason})"
        ) from error


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the p of McNemar's exact test, two-sided, from 0 to 1.

    Under the hypothesis that both models are right equally often, a picture that only one got right is as likely one
    of the first as of the second: a binomial test with probability 1/2 on those pictures (McNemar 1947; exact form:
    Fay 2010, section 2).

    Args:
        only_first: pictures that only the first model got right, 0 or more.
        only_second: pictures that only the second got right, 0 or more.
    """
    if min(only_first, only_second) < 0:
        raise InputError(f"Counts must be 0 or more. Received: {only_first} and {only_second}")
    from scipy.stats import binomtest

    total = only_first + only_second
    return float(binomtest(only_first, total).pvalue) if total else 1.0


def compare_predictions(
    first: Array,
    second: Array,
    labels: Array,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    names: tuple[str, str] = ("the first", "the second"),
) -> dict[str, Any]:
    """Compare two models on the same pictures.

    Intervals are percentiles of a paired bootstrap: whole pictures are drawn, with the answers of both models
    (Efron and Tibshirani 1993, chapter 13).

    Args:
        first: probabilities ``(n, k)`` of the first model.
        second: probabilities ``(n, k)`` of the second, of the same pictures in the same order.
        labels: ``int (n,)`` in [0, k), the true classes.
        resamples: bootstrap resamples, at least 1.
        seed: fixes the resamples.
        names: what the sentence calls the models.

    Returns:
        ``{"pictures", "accuracy": {"first", "second", "difference", "low", "high"}, "log_loss": {the same, in nats},
        "both", "only_first", "only_second", "neither" (pictures that are classified right), "p": McNemar's exact p of
        the accuracies, "confidence", "resamples", "sentence"}``; differences are the first model's figure less the
        second's.

    Raises:
        InputError: for shapes that do not fit, labels that are no class, or no pictures.
    """
    _check(first, second, labels, resamples)
    right = [p.argmax(axis=1) == labels for p in (first, second)]
    losses = [_losses(p, labels) for p in (first, second)]
    both, neither = int((right[0] & right[1]).sum()), int((~right[0] & ~right[1]).sum())
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    apart = np.stack([right[0].astype(np.float64) - right[1], losses[0] - losses[1]])
    intervals = _paired_intervals(apart, resamples=resamples, seed=seed)
    figures = {
        name: {
            "first": float(values[0].mean()),
            "second": float(values[1].mean()),
            "difference": float(difference.mean()),
            "low": low,
            "high": high,
        }
        for name, values, difference, (low, high) in zip(
            ("accuracy", "log_loss"), (right, losses), apart, intervals, strict=True
        )
    }
    p = mcnemar_p(only_first, only_second)
    return {
        "pictures": len(labels),
        **figures,
        "both": both,
        "only_first": only_first,
        "only_second": only_second,
        "neither": neither,
        "p": p,
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "sentence": _sentence(len(labels), only_first, only_second, p, names),
    }


def compare_evaluations(
    first: str | Path,
    second: str | Path,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    names: tuple[str, str] = ("the first", "the second"),
) -> dict[str, Any]:
    """Compare the models of two ``evaluation`` artifacts, picture by picture.

    Args:
        first: folder of an ``evaluation`` artifact (or of anything else with its ``predictions.csv``).
        second: the same of the other model.
        resamples: see :func:`compare_predictions`, also for ``seed`` and ``names``.

    Returns:
        What :func:`compare_predictions` returns.

    Raises:
        InputError: where the artifacts are not of the same test pictures, labels and classes; says how many differ.
    """
    one, other = read_predictions(first), read_predictions(second)
    if one.classes != other.classes:
        apart = sorted(set(one.classes) ^ set(other.classes))
        told = f"{len(apart)} that only one of them has, e.g. '{apart[0]}'" if apart else "another order"
        raise InputError(f"Both models must have the same classes. Received: {told}")
    order = _order(one, other)
    return compare_predictions(
        one.probabilities,
        other.probabilities[order],
        one.labels,
        resamples=resamples,
        seed=seed,
        names=names,
    )


def _order(one: Predictions, other: Predictions) -> Array:
    """Return where the pictures of ``one`` stand in ``other``."""
    places = {path: place for place, path in enumerate(other.paths)}
    shared = [path for path in one.paths if path in places]
    only_first, only_second = len(one.paths) - len(shared), len(places.keys() - set(one.paths))
    relabelled = sum(
        label != other.labels[places[path]]
        for path, label in zip(one.paths, one.labels, strict=True)
        if path in places
    )
    if only_first or only_second or relabelled or len(one.paths) != len(other.paths):
        raise InputError(
            "Both models must be measured on the same test pictures (the same DATASET, SEED and fractions). "
            f"Received: {only_first} that only the first has, {only_second} that only the second has, "
            f"{relabelled} with another label, {len(shared) - relabelled} in common"
        )
    return np.array([places[path] for path in one.paths])


def _check(first: Array, second: Array, labels: Array, resamples: int) -> None:
    if not (first.ndim == 2 and first.shape == second.shape and labels.shape == first.shape[:1]):
        raise InputError(
            "Probabilities must be two arrays (n, k) and labels one of (n,). "
            f"Received: {first.shape}, {second.shape} and {labels.shape}"
        )
    if not len(labels):
        raise InputError("A comparison needs at least one picture. Received: 0")
    if labels.min() < 0 or labels.max() >= first.shape[1]:
        raise InputError(
            f"Labels must lie in [0, {first.shape[1]}). Received: {labels.min()} to {labels.max()}"
        )
    if resamples < 1:
        raise InputError(f"resamples must be at least 1. Received: {resamples}")


def _losses(probabilities: Array, labels: Array) -> Array:
    """Each picture's log loss in nats, cut as :func:`graftflow.metrics.log_loss` cuts it."""
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(-np.log(np.maximum(true, 1e-12)))


def _paired_intervals(apart: Array, *, resamples: int, seed: int) -> list[tuple[float, float]]:
    """Return the interval of each row's mean; ``apart`` is ``(rows, n)``, one column a picture."""
    count = apart.shape[1]
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.empty((len(apart), resamples))
    step = max(1, _DRAWS // count)
    for start in range(0, resamples, step):
        drawn = generator.integers(count, size=(min(step, resamples - start), count))
        for row, values in enumerate(apart):
            means[row, start : start + step] = values[drawn].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    return [(float(low), float(high)) for low, high in np.quantile(means, [tail, 1 - tail], axis=1).T]


def _sentence(pictures: int, only_first: int, only_second: int, p: float, names: tuple[str, str]) -> str:
    tested = f"{pictures:,} picture{'' if pictures == 1 else 's'}"
    if not only_first + only_second:
        return f"Both got the same pictures right: no difference on {tested} (p = 1)"
    counted = f"{only_first:,} picture{'' if only_first == 1 else 's'}"
    told = f"{counted} only {names[0]} got right, {only_second:,} only {names[1]}"
    if p >= SIGNIFICANCE:
        return f"{told}: no difference that {tested} can show ({written_p(p)})"
    better = names[0] if only_first > only_second else names[1]
    return f"{told}: {better} is better on such pictures ({written_p(p)})"


def written_p(p: float) -> str:
    """Write a p as people read it: ``p = 0.66``, ``p = 0.003``, ``p < 0.001``."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.1g}" if p < 0.1 else f"p = {p:.2g}"
