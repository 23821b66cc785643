"""The pictures that are attacked: drawn from the test split, at the size of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from graftflow import datasets
from graftflow.errors import InputError
from graftflow.predictions import BATCH, Array, decode, predict


@dataclass(frozen=True)
class AttackedPictures:
    """What is attacked: pixels of whole 1/255, as a PNG carries them.

    They are held as levels, a byte a channel: floats are made of the pictures that are at work.

    Attributes:
        levels: ``uint8 (n, s, s, 3)``.
        labels: ``int64 (n,)``.
        targets: ``int64 (n,)``, what targeted attacks aim at.
        probabilities: ``float32 (n, k)`` of the levels, before any attack.
        file_probabilities: the same before the pixels were rounded, as the server sees the files of the test split.
        paths: names of the pictures in the data set.
    """

    levels: Array
    labels: Array
    targets: Array
    probabilities: Array
    file_probabilities: Array
    paths: tuple[str, ...]

    @property
    def pixels(self) -> Array:
        """All pictures as ``float32 (n, s, s, 3)`` in [0, 1], made anew each time: four bytes a channel."""
        return self.pixels_at(slice(None))

    def pixels_at(self, chosen: Array | slice | int) -> Array:
        """Return the pictures at some positions, ``float32 (m, s, s, 3)`` in [0, 1]."""
        return np.asarray(self.levels[chosen] / np.float32(255))

    @property
    def right(self) -> Array:
        """Which are classified right before any attack, bool (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)

    def surest(self, numbers: Sequence[int], most: int) -> list[int]:
        """Return among which of some pictures to look for ``most`` of different classes, the surest first.

        They are the ``most`` surest of each class, of the ``most`` classes with the surest pictures: one that is left
        out has as many before it, of its own class or each of another.
        """
        found: dict[int, list[int]] = {}
        for number in sorted(numbers, key=lambda number: (-self.probabilities[number].max(), number)):
            label = int(self.labels[number])
            if label in found or len(found) < most:
                found.setdefault(label, []).append(number)
        return [number for own in found.values() for number in own[:most]]

    def take(self, chosen: Array) -> "AttackedPictures":
        """Return the pictures at some positions, ``int (m,)``."""
        return AttackedPictures(
            self.levels[chosen],
            self.labels[chosen],
            self.targets[chosen],
            self.probabilities[chosen],
            self.file_probabilities[chosen],
            tuple(self.paths[i] for i in chosen),
        )


def load(
    logits_of: Any, dataset: Path, num_pictures: int, target: int | None, size: int, seed: int
) -> AttackedPictures:
    """Draw and decode test pictures, a batch at a time.

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
    examples = (
        example for position, example in enumerate(datasets.read_split(dataset, "test")) if position in wanted
    )
    found, paths = [], []
    while some := list(islice(examples, BATCH)):
        decoded = decode([example["image"].numpy() for example in some], size)
        levels = np.round(decoded * np.float32(255)).astype(np.uint8)
        found.append((levels, predict(logits_of, levels / np.float32(255)), predict(logits_of, decoded)))
        paths += [example["path"].numpy().decode() for example in some]
    levels, probabilities, of_files = (np.concatenate(parts) for parts in zip(*found, strict=True))
    own = np.array([labels[position] for position in chosen], np.int64)
    targets = (own + 1) % probabilities.shape[1] if target is None else np.full_like(own, target)
    return AttackedPictures(levels, own, targets, probabilities, of_files, tuple(paths))


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
