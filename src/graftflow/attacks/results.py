"""What an attack found, picture by picture, and the batches in which it looks."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from graftflow.attacks import balls
from graftflow.attacks.balls import Norm
from graftflow.attacks.losses import Loss, log_odds_against
from graftflow.attacks.networks import Logits, ascend, num_classes, predict_logits
from graftflow.errors import InputError

Array = np.ndarray[Any, Any]

# Lite0 on 2 cores: 51 to 57 gradients a second of one core's time at 4 to 32; the larger empties more slowly.
BATCH = 32


@dataclass(frozen=True)
class Attacked:
    """What an attack found for each of n pictures."""

    pixels: Array  # float32 (n, h, w, 3) in [0, 1]: the first that fooled, else the one with the highest loss
    fooled: Array  # bool (n,): another class than the label is predicted, or with targets the target
    evaluations: Array  # int64 (n,): pictures that the network judged for it, the original among them
    names: Array  # str (n,): the attack that gave the pixels

    @property
    def rate(self) -> float:
        """The fraction of pictures that are fooled; 0 of none."""
        return float(self.fooled.mean()) if len(self.fooled) else 0.0


@dataclass(frozen=True)
class Problem:
    """What is attacked, checked, and what an attack may do."""

    logits_of: Logits
    pixels: tf.Tensor  # float32 (n, h, w, 3)
    labels: tf.Tensor  # int64 (n,)
    classes: int
    epsilon: float
    norm: Norm
    targeted: bool
    eight_bits: bool

    @classmethod
    def checked(
        cls,
        logits_of: Logits,
        pixels: Any,
        labels: Any,
        *,
        epsilon: float,
        norm: Norm = "linf",
        targeted: bool = False,
        eight_bits: bool = False,
    ) -> "Problem":
        """Return pixels as float32 and labels as int64, or raise InputError."""
        balls.radius(epsilon, norm)
        pixels = tf.convert_to_tensor(pixels, tf.float32)
        labels = tf.cast(tf.convert_to_tensor(labels), tf.int64)
        if len(pixels.shape) != 4 or labels.shape != pixels.shape[:1]:
            raise InputError(
                "pixels must have the shape (n, h, w, 3) and labels (n,). "
                f"Received: {tuple(pixels.shape)} and {tuple(labels.shape)}."
            )
        classes = num_classes(logits_of, pixels)
        if classes < 2:
            raise InputError(f"an attack needs logits of at least 2 classes. Received: {classes}.")
        if any(not 0 <= label < classes for label in labels.numpy()):
            raise InputError(f"labels must lie in 0 … {classes - 1}. Received: {labels.numpy()}.")
        return cls(logits_of, pixels, labels, classes, float(epsilon), norm, targeted, eight_bits)

    def run(
        self, attack: Callable[["Batch"], None], *, name: str, targets: Array | None = None, batch_size: int
    ) -> Attacked:
        """Attack batches of at most ``batch_size`` pictures and put what they found together."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1. Received: {batch_size}.")
        numbers = np.arange(len(self.labels))
        batches = []
        for start in range(0, len(numbers), batch_size):
            batches.append(Batch(self, numbers[start : start + batch_size], targets))
            with suppress(AllFooledError):
                attack(batches[-1])
        if not batches:
            return Attacked(self.pixels.numpy(), *(np.zeros(0, kind) for kind in (bool, np.int64, str)))
        pixels, fooled, evaluations = (
            np.concatenate([getattr(batch.found, field) for batch in batches])
            for field in ("pixels", "fooled", "evaluations")
        )
        return Attacked(pixels, fooled, evaluations, np.full(len(fooled), name))


class AllFooledError(Exception):
    """Ends an attack on a batch: no picture of it is left."""


class Batch:
    """Pictures that an attack still has to fool, and what it found for these and the others of the batch.

    ``pixels``, ``labels`` and ``rows`` are those of the pictures that are left; :meth:`ascend` and :meth:`look` judge
    one candidate for each, and return what they know only of those that are left after it. They raise
    :class:`AllFooledError` when none is, so that an attack need not ask.
    """

    def __init__(self, problem: Problem, numbers: Array, targets: Array | None = None) -> None:
        self.problem = problem
        self.rows = np.arange(len(numbers))  # of the pictures left, in the batch
        self.pixels = tf.gather(problem.pixels, numbers)
        self.labels = tf.gather(problem.labels, numbers)
        self.targets = self.labels if targets is None else tf.constant(targets[numbers], tf.int64)
        self.radius = balls.radius(problem.epsilon, problem.norm)
        self.found = Attacked(
            np.array(self.pixels), np.zeros(len(numbers), bool), np.zeros(len(numbers), np.int64), np.empty(0)
        )
        self._highest = np.full(len(numbers), -np.inf, np.float32)
        self._numbers = numbers

    @property
    def numbers(self) -> Array:
        """Of the pictures left, in the whole problem: what their random numbers depend on, and not on the batch."""
        return self._numbers[self.rows]

    def ascend(self, x: tf.Tensor, *state: tf.Tensor, loss: Loss = log_odds_against) -> list[tf.Tensor]:
        """Judge x; return of the pictures left the raised loss, its gradient, x and what else is held of them."""
        seen, problem = self._sent(x), self.problem
        logits, raised, gradient = ascend(
            problem.logits_of, loss, seen, self.labels, self.targets, targeted=problem.targeted
        )
        return self._record(seen, logits, raised, gradient, x, *state)

    def look(self, x: tf.Tensor, *state: tf.Tensor, loss: Loss = log_odds_against) -> list[tf.Tensor]:
        """Judge x without a gradient; return of the pictures left the raised loss, x and what else is held."""
        seen = self._sent(x)
        logits = predict_logits(self.problem.logits_of, seen)
        raised = loss(logits, self.labels, self.targets)
        return self._record(seen, logits, -raised if self.problem.targeted else raised, x, *state)

    def step(self, x: tf.Tensor, gradient: tf.Tensor, size: float | tf.Tensor) -> tf.Tensor:
        """Return Π(x + size · steepest(g))."""
        size = tf.convert_to_tensor(size, tf.float32)
        return balls.step(x, self.pixels, gradient, size, self.radius.epsilon, self.problem.norm)

    def random_start(self, *seed: int) -> tf.Tensor:
        """Return a random point in the ball of each picture left."""
        problem = self.problem
        return balls.random_start(self.pixels, problem.epsilon, problem.norm, seed=seed, numbers=self.numbers)

    def _sent(self, x: tf.Tensor) -> tf.Tensor:
        """What the server would receive: the network is asked about nothing else."""
        if not self.problem.eight_bits:
            return x
        return balls.round_within(x, self.pixels, self.radius.levels, self.problem.norm)

    def _record(
        self, seen: tf.Tensor, logits: tf.Tensor, raised: tf.Tensor, *state: tf.Tensor
    ) -> list[tf.Tensor]:
        fooled = (np.argmax(logits, axis=1) == self.labels.numpy()) == self.problem.targeted
        found, value = self.found, raised.numpy()
        better = fooled | (value > self._highest[self.rows])
        rows = self.rows[better]
        found.pixels[rows] = seen.numpy()[better]
        self._highest[rows] = value[better]
        found.fooled[self.rows] |= fooled
        found.evaluations[self.rows] += 1
        kept = [raised, *state]
        if not fooled.any():
            return kept
        if fooled.all():
            raise AllFooledError
        left = np.flatnonzero(~fooled)
        self.rows = self.rows[left]
        self.pixels, self.labels, self.targets, *kept = (
            tf.gather(tensor, left) for tensor in (self.pixels, self.labels, self.targets, *kept)
        )
        return kept
