"""Scores of strangeness equal their definitions, and tell sets apart as far as these differ."""

import numpy as np
import pytest
from sklearn import metrics as exact
from sklearn.covariance import LedoitWolf

from graftflow import familiarity


def blobs(count: int, width: int = 20, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(seed))
    labels = generator.integers(0, 3, count)
    mixing = np.random.Generator(np.random.PCG64(9)).normal(size=(width, width))
    return generator.normal(size=(count, width)) @ mixing + 10 * np.eye(3, width)[labels] + shift, labels


def test_the_distance_is_that_of_the_nearest_class_under_the_shared_covariance() -> None:
    features, labels = blobs(2000, width=5)
    gaussians = familiarity.fit_gaussians(features, labels)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    residuals = features - means[labels]
    shrunk = LedoitWolf(assume_centered=True).fit(residuals)
    new = blobs(7, width=5, seed=1)[0]
    expected = [min(np.sqrt((row - m) @ shrunk.precision_ @ (row - m)) for m in means) for row in new]
    assert gaussians.shrinkage == pytest.approx(shrunk.shrinkage_)
    np.testing.assert_allclose(familiarity.mahalanobis_distance(gaussians, new), expected, rtol=1e-5)


@pytest.mark.parametrize("count", [3, 30])
def test_more_features_than_pictures_still_tell_noise_apart(count: int) -> None:
    features, _ = blobs(count, width=100)
    labels = np.arange(count) % 3
    gaussians = familiarity.fit_gaussians(features, labels)
    near = familiarity.mahalanobis_distance(gaussians, features)
    far = familiarity.mahalanobis_distance(gaussians, features + 1000)
    assert np.isfinite(near).all()
    assert near.max() < far.min()


def test_energy_and_uncertainty_follow_their_definitions() -> None:
    logits = np.array([[2.0, -1.0, 0.5], [40.0, 0.0, 0.0], [800.0, 0.0, -800.0]], np.float32)
    assert familiarity.energy(logits)[0] == pytest.approx(-np.log(np.exp([2.0, -1.0, 0.5]).sum()))
    assert familiarity.energy(logits, temperature=2.0)[0] == pytest.approx(
        -2 * np.log(np.exp([1.0, -0.5, 0.25]).sum())
    )
    assert familiarity.energy(logits)[2] == pytest.approx(-800)
    unsure = familiarity.uncertainty(logits)
    assert unsure[0] == pytest.approx(1 - familiarity.probabilities_of(logits)[0].max())
    assert unsure[1] == pytest.approx(2 * np.exp(-40.0), rel=1e-6)  # 1 − p would be 0 in float32


def test_separation_equals_scikit_learn_and_its_interval_holds_it() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    own, other = generator.normal(size=200).round(1), generator.normal(1, size=150).round(1)
    found = familiarity.separation(own, other, seed=0)
    truth = np.repeat([0, 1], [200, 150])
    assert found["auc"]["value"] == pytest.approx(exact.roc_auc_score(truth, np.concatenate([own, other])))
    assert found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"]
    threshold = np.sort(own)[189]  # 190 of 200 do not exceed it
    assert found["fpr_at_95_tpr"]["value"] == pytest.approx((other <= threshold).mean())
    assert familiarity.separation(own, other, seed=0) == found


def test_the_same_distribution_cannot_be_told_apart_and_a_far_one_always() -> None:
    features, labels = blobs(500)
    gaussians = familiarity.fit_gaussians(features, labels)
    own = familiarity.mahalanobis_distance(gaussians, blobs(300, seed=1)[0])
    alike = familiarity.mahalanobis_distance(gaussians, blobs(300, seed=2)[0])
    far = familiarity.mahalanobis_distance(gaussians, blobs(300, seed=3, shift=30.0)[0])
    auc = familiarity.separation(own, alike, seed=0)["auc"]
    assert auc["low"] < 0.5 < auc["high"]
    assert familiarity.separation(own, far, seed=0) == {
        "auc": {"value": 1.0, "low": 1.0, "high": 1.0},
        "fpr_at_95_tpr": {"value": 0.0, "low": 0.0, "high": 0.0},
    }
    threshold = familiarity.familiarity_threshold(own)
    assert (own <= threshold).mean() == pytest.approx(0.95, abs=0.005)
    assert familiarity.rejected(alike, threshold, seed=0)["value"] == pytest.approx(0.05, abs=0.04)


def test_another_score_leads_only_where_it_is_clearly_better() -> None:
    def row(low: float, value: float, high: float) -> dict:
        return {"auc": {"low": low, "value": value, "high": high}}

    assert familiarity.leading({"a": row(0.7, 0.8, 0.9), "b": row(0.75, 0.95, 1.0)}) == "a"
    assert familiarity.leading({"a": row(0.7, 0.8, 1.0), "b": row(0.91, 0.95, 1.0)}) == "b"
