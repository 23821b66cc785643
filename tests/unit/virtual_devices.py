"""Trains the small tails of the other tests on one or several virtual CPUs: ``virtual_devices.py FOLDER DEVICES CASE``.

A process of its own, since TensorFlow takes its devices once. Writes ``CASE-DEVICES.npz``: weights, history, logits.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from graftflow import distribution, training
from graftflow.adversarial_training import Adversary
from graftflow.recipes import Recipe
from tests.unit import test_adversarial_training as attacked
from tests.unit import test_fine_tuning as plain

# Batches of 7 do not come out even on two devices, and 48 pictures not in batches of 7.
CASES = {
    "even": {},
    "uneven": {"batch_size": 7},
    "mixup": {"batch_size": 7, "mixup": 0.3, "label_smoothing": 0.1},
    "clipped": {"clip_norm": 0.01, "weight_decay": 0.1, "ema_decay": 0.0},
    "float16": {"precision": "mixed_float16"},
    "fgsm": {"batch_size": 7, "adversarial_training": "fgsm"},
    "pgd": {"batch_size": 7, "adversarial_training": "pgd"},
}


class Uneven:
    """A source of the other tests, in batches of another size."""

    def __init__(self, source, size: int) -> None:
        self._source, self._size = source, size
        self.labels, self.validation = source.labels, source.validation
        self.num_batches = -(-len(self.labels) // size)

    def epoch(self, number: int):
        order = np.random.default_rng(number).permutation(len(self.labels))
        for start in range(0, len(order), self._size):
            chosen = order[start : start + self._size]
            yield self._source.values[chosen], self.labels[chosen]


def with_own_dropout(tail: keras.Model) -> keras.Model:
    inputs = x = keras.Input(tail.input_shape[1:])
    for layer in tail.layers[1:]:
        x = distribution.whole_batch(layer)(x)
    return keras.Model(inputs, x)


def train(folder: Path, changes: dict) -> tuple[keras.Model, list[dict], np.ndarray]:
    adversary = None
    if "adversarial_training" in changes:
        tail, source = with_own_dropout(attacked.build_tail()), attacked.Pictures()
        recipe = attacked.recipe_of(**changes)
        adversary = Adversary(attacked.build_trunk(), tail, recipe)
        weights, depths = np.ones(2), {}
    else:
        tail, source = with_own_dropout(plain.build_tail()), plain.Clusters()
        own = {"epochs": 4, "learning_rate": 0.01, "batch_size": 8, "patience": 99}
        recipe, weights = Recipe(**{**own, **changes}), np.array([2.0, 1.0, 0.5])
        if "precision" in changes:
            # Larger gradients overflow 16 bits in the sum of 8 rows and not in that of 4: then one skips a step.
            weights = np.ones(3)
        depths = {v.path: {"early": 2, "late": 1}.get(v.path.split("/")[0], 0) for v in tail.weights}
    source = Uneven(source, recipe.batch_size)
    trainer = plain.Trainer(
        tail,
        recipe,
        block_depths=depths,
        class_weights=weights,
        num_batches=source.num_batches,
        adversary=adversary,
    )
    history = trainer.fit(source, source.validation, checkpoint=folder / "checkpoint.npz")
    return tail, history, trainer.logits(source.validation[0])


def main(folder: Path, count: int, case: str) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
    tf.config.set_logical_device_configuration(cpu, parts)
    devices = [f"CPU:{number}" for number in range(count)]
    if case == "model":
        given = json.loads((folder / "given.json").read_text())
        recipe = Recipe(**given.pop("recipe"))
        destination = folder / f"model-{count}"
        destination.mkdir()
        training.write_model(destination, recipe=recipe, devices=devices, **given)
        return
    for name in CASES if case == "all" else [case]:
        work = folder / f"{name}-{count}"
        work.mkdir(exist_ok=True)
        with distribution.strategy_of(devices).scope():
            tail, history, logits = train(work, CASES[name])
        arrays = {f"weight-{number}": value for number, value in enumerate(tail.get_weights())}
        np.savez(folder / f"{name}-{count}.npz", logits=logits, history=json.dumps(history), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
