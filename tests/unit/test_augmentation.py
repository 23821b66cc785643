"""Views stay pictures, repeat by seed, and differ from each other."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from graftflow.augmentation import augment, mix
from graftflow.errors import InputError
from graftflow.preprocessing import decode


@pytest.fixture(scope="module")
def pixels(picture_folder: Path) -> tf.Tensor:
    picture = next(picture_folder.rglob("*.png")).read_bytes()
    return decode(tf.constant(picture), 64)


@pytest.mark.parametrize("augmentation", ["light", "strong"])
def test_views_stay_in_range_and_repeat_by_seed(pixels: tf.Tensor, augmentation: str) -> None:
    def view(i: int) -> np.ndarray:
        return augment(pixels, tf.constant([0, i], tf.int64), augmentation=augmentation).numpy()

    views = [view(i) for i in range(20)]
    assert all(v.shape == (64, 64, 3) for v in views)
    assert min(v.min() for v in views) >= 0.0
    assert max(v.max() for v in views) <= 1.0
    assert len({v.tobytes() for v in views}) == 20
    np.testing.assert_array_equal(views[7], view(7))


def test_strong_views_are_farther_from_their_picture(pixels: tf.Tensor) -> None:
    def distance(augmentation: str) -> float:
        seeds = [tf.constant([1, i], tf.int64) for i in range(30)]
        views = [augment(pixels, seed, augmentation=augmentation) for seed in seeds]
        return float(np.mean([np.abs(v - pixels).mean() for v in views]))

    assert distance("none") == 0.0
    assert distance("strong") > 1.1 * distance("light") > 0.0


def test_an_unknown_augmentation_is_refused(pixels: tf.Tensor) -> None:
    with pytest.raises(InputError, match="must be one of light, none, strong. Received: 'wild'"):
        augment(pixels, tf.constant([0, 0], tf.int64), augmentation="wild")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_mixing_keeps_targets_probabilities_and_the_larger_part(share: float) -> None:
    generator = np.random.default_rng(0)
    values = generator.random((6, 4, 2), dtype="f4")
    targets = np.eye(3, dtype="f4")[[0, 1, 2, 0, 1, 2]]
    order = np.array([1, 2, 3, 4, 5, 0])
    weights = np.ones(6, "f4")
    mixed, mixed_targets, mixed_weights = mix(values, targets, weights, share=share, order=order)
    np.testing.assert_allclose(mixed_targets.numpy().sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(mixed_targets.numpy().argmax(axis=1), targets.argmax(axis=1))
    np.testing.assert_allclose(mixed_weights, weights, atol=1e-6)
    kept = max(share, 1 - share)
    np.testing.assert_allclose(mixed, kept * values + (1 - kept) * values[order], atol=1e-6)
