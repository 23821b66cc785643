"""How familiar a picture is to a classifier: three scores of strangeness and how well they tell two sets apart.

Each score is higher the stranger a picture is. The sources call this out-of-distribution detection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graftflow import metrics
from graftflow.errors import InputError
from graftflow.logistic import log_softmax

Array = npt.NDArray[Any]

FAMILIAR_FRACTION = 0.95
RESAMPLES = 1000
CONFIDENCE = 0.95
# Rows of bootstrap counts that are worked on at a time, so that memory stays a few times one row's.
_ROWS = 50


@dataclass(frozen=True)
class Gaussians:
    """One Gaussian a class, all with the same covariance Σ (Lee et al. 2018, section 2.1).

    Attributes:
        means: ``float64 (k, d)``, whitened.
        whitener: ``float64 (d, d)``, the transposed inverse of Σ's Cholesky factor: ``features @ whitener`` has
            Euclidean distances that are Mahalanobis distances under Σ.
        shrinkage: share in [0, 1] of the multiple of the identity in Σ.
    """

    means: Array
    whitener: Array
    shrinkage: float


def fit_gaussians(features: Array, labels: Array) -> Gaussians:
    """Fit class means and one covariance, shrunk as Ledoit and Wolf (2004) do, because d may exceed n.

    Args:
        features: ``float (n, d)`` of training pictures.
        labels: ``int (n,)``; each class that occurs gets a mean.

    Raises:
        InputError: there is no picture.
    """
    from sklearn.covariance import ledoit_wolf

    if not len(features):
        raise InputError("Class means need at least one training picture. Received: 0")
    x = features.astype(np.float64)
    present = np.unique(labels)
    means = np.stack([x[labels == label].mean(axis=0) for label in present])
    residuals = x - means[np.searchsorted(present, labels)]
    if residuals.any():
        covariance, shrinkage = ledoit_wolf(residuals, assume_centered=True)
    else:  # one picture a class says nothing about spread: plain distances are what is left
        covariance, shrinkage = np.eye(x.shape[1]), 1.0
    # Where hardly a feature varies, rounding may leave a pivot below zero.
    ridge = 1e-9 * np.trace(covariance) / len(covariance)
    whitener = np.linalg.inv(np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))).T
    return Gaussians(means @ whitener, whitener, float(shrinkage))


def mahalanobis_distance(gaussians: Gaussians, features: Array) -> Array:
    """Return the distance to the nearest class mean, ``float64 (n,)``, ≥ 0 (Lee et al. 2018, equation 2).

    The paper takes the squared distance; its root has the same order and a histogram that can be read.
    """
    white = features.astype(np.float64) @ gaussians.whitener
    squares = (
        (white**2).sum(axis=1)[:, None] - 2 * white @ gaussians.means.T + (gaussians.means**2).sum(axis=1)
    )
    return np.asarray(np.sqrt(np.maximum(squares.min(axis=1), 0.0)))


def energy(logits: Array, *, temperature: float = 1.0) -> Array:
    """Return the energy −T·logsumexp(logits / T), ``float64 (n,)`` (Liu et al. 2020, section 3, equation 4)."""
    scaled = logits.astype(np.float64) / temperature
    top = scaled.max(axis=1)
    return np.asarray(-temperature * (top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))))


def uncertainty(logits: Array) -> Array:
    """Return one minus the largest softmax probability, ``float64 (n,)`` (Hendrycks and Gimpel 2017, section 3).

    Computed from the other classes' shares, so that pictures on which the model is very sure keep their order.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64)
    others = np.exp(np.sort(shifted, axis=1)[:, :-1]).sum(axis=1)
    return np.asarray(others / (1.0 + others))


def probabilities_of(logits: Array) -> Array:
    """Return the softmax of logits, ``float64 (n, k)``."""
    return np.asarray(np.exp(log_softmax(logits.astype(np.float64))))


def familiarity_threshold(validation: Array, *, fraction: float = FAMILIAR_FRACTION) -> float:
    """Return the least score that at least ``fraction`` of validation scores ``(n,)`` do not exceed."""
    return float(np.quantile(validation, fraction, method="higher"))


def rejected(scores: Array, threshold: float, *, seed: int) -> dict[str, float | None]:
    """Return the share of scores ``(n,)`` above a threshold, with a bootstrap interval: value, low, high."""
    counts = metrics.bootstrap_counts(len(scores), resamples=RESAMPLES, seed=seed)
    values = counts @ (scores > threshold).astype(np.float64) / len(scores)
    return metrics.with_interval(values, confidence=CONFIDENCE)


def leading(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the score that speaks for all: the first, unless another one's AUC is clearly higher.

    Args:
        rows: name → what :func:`separation` returned; clearly higher is an interval wholly above the first one's AUC.
    """
    first = next(iter(rows))
    better = [name for name, row in rows.items() if row["auc"]["low"] > rows[first]["auc"]["value"]]
    return max(better, key=lambda name: rows[name]["auc"]["value"], default=first)


def separation(own: Array, challenge: Array, *, seed: int) -> dict[str, dict[str, float | None]]:
    """Tell how well a score separates challenge pictures from the model's own test pictures.

    Args:
        own: scores ``(n,)`` of own test pictures.
        challenge: scores ``(m,)`` of challenge pictures.
        seed: fixes the resamples, which draw from both sets separately.

    Returns:
        ``auc``: chance that a challenge picture is stranger than an own one, ties one half; 0.5 means that the two
        cannot be told apart. ``fpr_at_95_tpr``: share of challenge pictures that pass as familiar where the threshold
        lets 95 % of own test pictures pass; lower is better. Each with value, low and high end.
    """
    drawn_own = metrics.bootstrap_counts(len(own), resamples=RESAMPLES, seed=seed)
    drawn = metrics.bootstrap_counts(len(challenge), resamples=RESAMPLES, seed=seed + 1)
    scores = np.concatenate([own, challenge])
    both = np.stack([-scores, scores], axis=1)
    is_challenge = np.repeat([0, 1], [len(own), len(challenge)])
    areas, passing = [], []
    for start in range(0, len(drawn), _ROWS):
        rows = slice(start, start + _ROWS)
        counts = np.concatenate([drawn_own[rows], drawn[rows]], axis=1)
        areas.append(metrics.area_under_roc(counts, both, is_challenge))
        passing.append(_passing(own, challenge, drawn_own[rows], drawn[rows]))
    return {
        "auc": metrics.with_interval(np.concatenate(areas), confidence=CONFIDENCE),
        "fpr_at_95_tpr": metrics.with_interval(np.concatenate(passing), confidence=CONFIDENCE),
    }


def _passing(own: Array, challenge: Array, drawn_own: Array, drawn: Array) -> Array:
    """Return, row by row, the share of challenge pictures below the threshold that 95 % of own ones keep to."""
    order, other = np.argsort(own, kind="stable"), np.argsort(challenge, kind="stable")
    reached = np.cumsum(drawn_own[:, order], axis=1) >= FAMILIAR_FRACTION * len(own) - 1e-9
    thresholds = own[order][reached.argmax(axis=1)]
    below = np.cumsum(drawn[:, other], axis=1)
    places = np.searchsorted(challenge[other], thresholds, side="right")
    found = np.where(places > 0, below[np.arange(len(below)), places - 1], 0.0)
    return np.asarray(found / len(challenge))
