"""Pictures under attack are held as bytes, and worked on a few at a time."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from graftflow import attack_curves, triplets
from graftflow.attack_curves import Attack, Curve
from graftflow.attacked_pictures import AttackedPictures
from graftflow.predictions import BATCH

SIDE = 32


def pictures_of(probabilities: np.ndarray, side: int = SIDE) -> AttackedPictures:
    """Random pictures, classified right with these probabilities, ``(n, k)``."""
    count, classes = probabilities.shape
    levels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    labels = probabilities.argmax(axis=1)
    paths = tuple(str(number) for number in range(count))
    return AttackedPictures(levels, labels, (labels + 1) % classes, probabilities, probabilities, paths)


def logits_of(pixels: tf.Tensor) -> tf.Tensor:
    """The second of two classes, always."""
    return tf.stack([0.0 * pixels[:, 0, 0, 0], 1.0 + 0.0 * pixels[:, 0, 0, 0]], axis=1)


def darker(shot: attack_curves.Shot, pixels: Any, _labels: Any, _signs: Any) -> Any:
    assert len(pixels) <= BATCH
    return np.clip(pixels - np.float32(shot.epsilon), 0, 1)


def peak(count: int, attack: Attack, shown: int) -> int:
    """Bytes that Python and NumPy held at most while so many pictures were attacked, and all of them fell."""
    pictures = pictures_of(np.tile(np.float32([[0.9, 0.1]]), (count, 1)))
    tracemalloc.start()
    curve = attack_curves.measure(
        attack, logits_of, pictures, [4 / 255, 8 / 255], steps=1, seed=0, shown=shown
    )
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert curve.reached.all()
    return held


@pytest.mark.parametrize(
    ("attack", "shown", "bytes_a_channel"),
    [
        (Attack("darker", darker), triplets.MOST, 0.1),
        # Its step is the same at every radius: the signs are kept, a byte each.
        (attack_curves.FGSM, 0, 1.1),
    ],
)
def test_memory_does_not_grow_by_pictures_of_floats(
    attack: Attack, shown: int, bytes_a_channel: float
) -> None:
    peak(BATCH, attack, shown)  # what is compiled and imported first
    few, many = (peak(count, attack, shown) for count in (2 * BATCH, 12 * BATCH))
    assert (many - few) / (10 * BATCH) < bytes_a_channel * SIDE * SIDE * 3


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 40])
def test_strips_are_chosen_as_among_all_that_fell(classes: int) -> None:
    generator = np.random.default_rng(classes)
    # Few different values, so that some pictures are as sure as others.
    probabilities = np.float32(generator.integers(1, 9, (200, classes)))
    pictures = pictures_of(probabilities, side=2)
    radii = [1 / 255, 2 / 255, 4 / 255]
    at = generator.integers(0, len(radii), 200)
    every = {number: (radii[radius], pictures.levels[number]) for number, radius in enumerate(at)}
    kept = attack_curves._Kept(pictures, triplets.MOST)
    for radius, epsilon in enumerate(radii):
        for some in np.array_split(np.flatnonzero(at == radius), 3):
            kept.add(epsilon, some, pictures.pixels_at(some))
    assert len(kept.first) <= len(radii) * triplets.MOST**2
    chosen = triplets._telling(pictures, curve_with(kept.first))
    assert chosen == triplets._telling(pictures, curve_with(every))
    for number in chosen:
        assert kept.first[number][0] == every[number][0]
        assert np.array_equal(kept.first[number][1], every[number][1])


def curve_with(first: dict[int, tuple[float, np.ndarray]]) -> Curve:
    nothing = np.zeros(0)
    return Curve(attack_curves.PGD, False, (), *[nothing] * 6, first)


def test_a_picture_that_fell_at_a_smaller_radius_is_not_shown_at_a_larger() -> None:
    pictures = pictures_of(np.float32(np.random.default_rng(0).uniform(size=(20, 2))), side=2)
    kept = attack_curves._Kept(pictures, 1)
    for epsilon in (1 / 255, 2 / 255):
        kept.add(epsilon, np.arange(20), pictures.pixels)
    assert {epsilon for epsilon, _ in kept.first.values()} == {1 / 255}
