"""What one training needs, and two trainings side by side, to see what robustness costs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from graftflow import datasets, distribution, heads
from graftflow.activations import ViewSource, validation_activations, views_that_fit
from graftflow.adversarial_training import WATCH_STEPS, Adversary, has_collapsed, is_worth_it
from graftflow.cuts import Cut
from graftflow.fine_tuning import Trainer, score
from graftflow.passes import frozen_function
from graftflow.recipes import Recipe

Logits = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Lesson:
    """All that one training needs; values are activations at the cut, with an adversary pixels."""

    trainer: Trainer
    source: ViewSource
    validation: tuple[Any, Any]
    num_views: int
    workplace: Path
    adversary: Adversary | None

    def logits(self) -> Logits:
        """Return the validation pictures' logits."""
        return self.trainer.logits(self.validation[0])

    def learn(self, least_accuracy: float = 0.0) -> tuple[list[dict[str, float]], Logits]:
        """Train, and return the history and the validation pictures' logits after it."""
        history = self.trainer.fit(
            self.source,
            self.validation,
            checkpoint=self.workplace / "checkpoint.npz",
            least_accuracy=least_accuracy,
        )
        return history, self.logits()


def prepare_lesson(
    tail: Any,
    parts: Cut,
    depths: dict[str, int],
    head: dict[str, Any],
    size: int,
    dataset_path: str | Path,
    recipe: Recipe,
    workplace: Path,
) -> Lesson:
    """Make ready what trains a tail by a recipe.

    Args:
        tail: from activations at the cut to logits; see :func:`graftflow.training.tail_of`.
        parts: of the feature extractor.
        depths: see :func:`graftflow.cuts.unfreeze_last_blocks`.
        head: ``head.json``.
        size: side of the network's input, in pixels.
        dataset_path: a ``dataset`` artifact.
        recipe: how.
        workplace: a folder for views and checkpoints; made where it is missing.
    """
    workplace.mkdir(exist_ok=True)
    num_views, num_pictures = 0, datasets.split_size(dataset_path, "train")
    if recipe.adversarial_training == "none":
        adversary, shape = None, parts.shape
        trunk = distribution.spread(frozen_function(parts.trunk, size))
        num_views = views_that_fit(num_pictures, shape, recipe.num_views, input_size=size)
    else:
        # What is attacked are pixels: nothing can be computed once for all epochs.
        num_steps = recipe.epochs * -(-num_pictures // recipe.batch_size)
        adversary, shape = Adversary(parts.trunk, tail, recipe, num_steps=num_steps), (size, size, 3)
        trunk = tf.identity
    validation = validation_activations(
        dataset_path,
        trunk,
        shape=shape,
        input_size=size,
        batch_size=recipe.batch_size,
        path=workplace / "validation.npy",
    )
    source = ViewSource(
        dataset_path,
        trunk,
        shape=shape,
        input_size=size,
        num_views=num_views,
        folder=workplace,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        augmentation=recipe.augmentation,
    )
    counts = np.bincount(source.labels, minlength=len(head["classes"])).tolist()
    trainer = Trainer(
        tail,
        recipe,
        block_depths=depths,
        class_weights=heads.class_weights(counts, head.get("class_weight", "none")),
        num_batches=source.num_batches,
        adversary=adversary,
    )
    return Lesson(trainer, source, validation, num_views, workplace, adversary)


def trade(
    lesson: Lesson, adversary: Adversary, usual: Lesson, tail: Any, least_accuracy: float
) -> tuple[list[dict[str, float]], Logits, bool, dict[str, Any]]:
    """Train as usual, to compare with, and then against the adversary, both from the weights that ``tail`` has.

    Returns:
        History and validation logits of the adversarial training, whether it is delivered, and what ``model.json``
        tells as ``trade``.
    """
    start, labels = tail.get_weights(), lesson.validation[1]
    candidates = {"head": (lesson.logits(), adversary.withstood(*lesson.validation))}
    _, logits = usual.learn()
    candidates["standard"] = (logits, adversary.withstood(*lesson.validation))
    tail.set_weights(start)
    history, logits = lesson.learn(least_accuracy)
    candidates["adversarial"] = (logits, adversary.withstood(*lesson.validation))
    models = [
        {
            "name": name,
            "accuracy": score(of_it, labels)["accuracy"],
            "robust_accuracy": float(withstood.mean()),
        }
        for name, (of_it, withstood) in candidates.items()
    ]
    better = is_worth_it(
        candidates["head"][1],
        candidates["adversarial"][1],
        accuracy=score(logits, labels)["accuracy"],
        least_accuracy=least_accuracy,
    )
    told = {
        "attack": "PGD",
        "steps": WATCH_STEPS,
        "epsilon": round(255 * adversary.epsilon, 6),
        "pictures": len(candidates["head"][1]),
        "models": models,
        "least_accuracy": least_accuracy,
        "collapsed_epoch": len(history) if has_collapsed(history) else None,
    }
    return history, logits, better, told
