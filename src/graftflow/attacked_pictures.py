"""The pictures that are attacked: drawn from the test split, at the size of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftflow import datasets
from graftflow.errors import InputError
from graftflow.predictions import Array, decode, predict


@dataclass(frozen=True)
class AttackedPictures:
    """What is attacked: pixels of whole 1/255, as a PNG carries them.

    Attributes:
        pixels: ``float32 (n, s, s, 3)``.
        decoded: the same before they were rounded, as the server sees the files of the test split.
        labels: ``int64 (n,)``.
        targets: ``int64 (n,)``, what targeted attacks aim at.
        probabilities: ``float32 (n, k)`` of ``pixels``, before any attack.
        paths: names of the pictures in the data set.
    """

    pixels: Array
    decoded: Array
    labels: Array
    targets: Array
    probabilities: Array
    paths: tuple[str, ...]

    @property
    def right(self) -> Array:
        """Which are classified right before any attack, bool (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)

    def take(self, chosen: Array) -> "AttackedPictures":
        """Return the pictures at some positions, ``int (m,)``."""
        return AttackedPictures(
            self.pixels[chosen],
            self.decoded[chosen],
            self.labels[chosen],
            self.targets[chosen],
            self.probabilities[chosen],
            tuple(self.paths[i] for i in chosen),
        )


def load(
    logits_of: Any, dataset: Path, num_pictures: int, target: int | None, size: int, seed: int
) -> AttackedPictures:
    """Draw and decode test pictures.

    Args:
        logits_of: the classifier, from pixels to logits.
        dataset: a ``dataset`` artifact.
        num_pictures: how many at most, in turn from every class.
        target: the class that targeted attacks aim at; ``None`` takes each label's next class.
        size: side of the network's input, in pixels.
        seed: fixes the choice.

    Raises:
        InputError: where the test split is empty.
    """
    # Two passes: the labels first, so that only the chosen pictures are held in memory.
    labels = [int(example["label"]) for example in datasets.read_split(dataset, "test")]
    if not labels:
        raise InputError(f"the test split must hold pictures. Received: none in '{dataset}'.")
    chosen = stratified(labels, num_pictures, seed)
    wanted = set(chosen)
    examples = [
        (example["image"].numpy(), example["path"].numpy().decode())
        for position, example in enumerate(datasets.read_split(dataset, "test"))
        if position in wanted
    ]
    decoded = decode([image for image, _ in examples], size)
    pixels = np.round(decoded * np.float32(255)) / np.float32(255)
    own = np.array([labels[position] for position in chosen], np.int64)
    probabilities = predict(logits_of, pixels)
    count = probabilities.shape[1]
    targets = (own + 1) % count if target is None else np.full_like(own, target)
    return AttackedPictures(pixels, decoded, own, targets, probabilities, tuple(path for _, path in examples))


def stratified(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Choose up to ``count`` positions, in turn from every label, at random within a label.

    Args:
        labels: label of each position.
        count: how many to choose.
        seed: fixes the choice.

    Returns:
        Positions, ascending.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    turn: dict[int, int] = {}
    ranked = []
    for position in shuffled:
        label = int(labels[position])
        ranked.append((turn.get(label, 0), label, int(position)))
        turn[label] = turn.get(label, 0) + 1
    return sorted(position for _, _, position in sorted(ranked)[:count])
