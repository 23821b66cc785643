"""Adversarial training: the pictures that a network learns from are attacked first, and validation is watched.

Madry et al. 2018, equation 2.1: the weights minimise what the worst change within ε makes of the loss.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from graftflow import attacks, distribution
from graftflow.epsilons import parse_epsilon, whole_levels
from graftflow.recipes import Recipe

Array = npt.NDArray[Any]
Row = Mapping[str, float]

# Validation pictures are attacked after every epoch, each by as many gradients as ten epochs of training need for it.
WATCH_STEPS = 10
MOST_WATCHED = 128
# Part of all steps in which ε rises to its full size. At full size from the first step 280 photographs of cats and dogs
# drove the network to one class for all of them within two epochs.
RISE = 0.5
# A network that withstood fewer pictures than this part has nothing to lose.
_WORTH_LOSING = 0.1


class Adversary:
    """Attacks a network while it trains, and measures what it withstands.

    ``epsilon`` is the recipe's L-infinity radius as a fraction of the pixel range, ``trunk`` the part that it was made
    with.

    Args:
        trunk: ``keras.Model`` from pixels ``float32 (n, s, s, 3)`` in [0, 1] to activations; stays frozen.
        tail: ``keras.Model`` from these to logits ``(n, k)``, which is being trained.
        recipe: its ``adversarial_training`` is ``fgsm`` or ``pgd``.
        num_steps: of the whole training, in whose first half ε rises from 0 in a line; 0 begins with all of it.
    """

    def __init__(self, trunk: Any, tail: Any, recipe: Recipe, *, num_steps: int = 0) -> None:
        self.trunk, self._batch_size, self._seed = trunk, recipe.batch_size, recipe.seed
        self.epsilon = parse_epsilon(recipe.adversarial_epsilon)
        self._steps = 1 if recipe.adversarial_training == "fgsm" else recipe.adversarial_steps
        # Wong et al. 2020, section 4.1: 1.25 ε is the best single step, larger ones overfit to it. In units of ε.
        self._step_size = 1.25 if self._steps == 1 else 2.5 / self._steps
        self._rise = max(1.0, RISE * num_steps)
        pixels = keras.Input(trunk.input_shape[1:], name="pixels")
        # One object for all calls: attacks are compiled once for it. Without dropout, so that they aim well.
        self._logits_of = keras.Model(pixels, tail(trunk(pixels, training=False), training=False))

    def attack(self, pixels: tf.Tensor, targets: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Return the pictures of a training step, changed by at most ε so that their loss grows.

        x ← Π(x + α · sign ∇ₓ L(x, y)) from x + U(−ε, ε), for the loss that training lowers.

        Args:
            pixels: ``float32 (n, s, s, 3)`` in [0, 1].
            targets: class probabilities ``float32 (n, k)``.
            number: of the step, from 0, a scalar; it says how far ε has risen, and with the recipe's seed it fixes the
                random start.

        Returns:
            The same shape and range.
        """
        epsilon = self.epsilon * tf.minimum((tf.cast(number, tf.float32) + 1.0) / self._rise, 1.0)
        low, high = tf.maximum(pixels - epsilon, 0.0), tf.minimum(pixels + epsilon, 1.0)
        seed = tf.stack([tf.constant(self._seed, tf.int64), tf.cast(number, tf.int64)])
        noise = distribution.drawn(
            lambda shape: tf.random.stateless_uniform(shape, seed, -epsilon, epsilon), tf.shape(pixels)
        )
        x = tf.clip_by_value(pixels + noise, low, high)
        for _ in range(self._steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                # In 32 bits a picture that leads by 17 has no gradient along its own logit: the sign would be wrong.
                logits = tf.cast(self._logits_of(x), tf.float64)
                loss = tf.nn.softmax_cross_entropy_with_logits(tf.cast(targets, tf.float64), logits)
            x = tf.clip_by_value(x + self._step_size * epsilon * tf.sign(tape.gradient(loss, x)), low, high)
        return tf.stop_gradient(x)

    def withstood(self, pixels: Array, labels: Array) -> npt.NDArray[np.bool_]:
        """Return which pictures the network names right before and after PGD with 10 steps at ε.

        Args:
            pixels: ``float32 (n, s, s, 3)`` in [0, 1]; of more than 128 a random part is tried, always the same.
            labels: ``int64 (n,)``.

        Returns:
            ``bool (min(n, 128),)``, counted on pictures of 8 bits, unless ε is below 1/255.
        """
        generator = np.random.Generator(np.random.PCG64([self._seed, 4]))
        chosen = np.sort(generator.permutation(len(labels))[:MOST_WATCHED])
        parts = [
            chosen[start : start + self._batch_size] for start in range(0, len(chosen), self._batch_size)
        ]
        return np.concatenate([self._withstood(np.asarray(pixels[part]), labels[part]) for part in parts])

    def _withstood(self, pixels: Array, labels: Array) -> npt.NDArray[np.bool_]:
        pixels = np.round(pixels * np.float32(255)) / np.float32(255)
        right: npt.NDArray[np.bool_] = self._predicted(pixels) == labels
        if not right.any():
            return right
        attacked = attacks.pgd(
            self._logits_of,
            tf.constant(pixels[right]),
            tf.constant(labels[right]),
            epsilon=self.epsilon,
            steps=WATCH_STEPS,
            seed=self._seed,
            eight_bits=whole_levels(self.epsilon) > 0,
        )
        right[right] = self._predicted(attacked) == labels[right]
        return right

    def _predicted(self, pixels: Any) -> Array:
        logits = attacks.predict_logits(self._logits_of, tf.convert_to_tensor(pixels))
        return np.asarray(logits.numpy().argmax(axis=1))


def preference(row: Row, least_accuracy: float) -> tuple[float, ...]:
    """Return what orders epochs, the best highest: accuracy under attack where enough is left without one.

    Args:
        row: of the history: ``validation_accuracy``, ``validation_robust_accuracy``, ``validation_log_loss``.
        least_accuracy: epochs with less, without attack, come behind all others, and among themselves count by it.
    """
    clean, robust = row["validation_accuracy"], row["validation_robust_accuracy"]
    enough = clean >= least_accuracy
    return (float(enough), robust if enough else clean, -row["validation_log_loss"])


def has_collapsed(history: Sequence[Row]) -> bool:
    """Return whether the last epoch withstands less than half of what an earlier one did.

    Catastrophic overfitting (Wong et al. 2020, section 5.4): a network learns to withstand the one step that it is
    trained on, and loses within an epoch what it withstood of others. It does not come back from there.
    """
    robust = [row["validation_robust_accuracy"] for row in history]
    return len(robust) > 1 and max(robust) >= _WORTH_LOSING and robust[-1] < max(robust[:-1]) / 2


def is_worth_it(before: Array, after: Array, *, accuracy: float, least_accuracy: float) -> bool:
    """Return whether the adversarially trained network is delivered instead of the head alone.

    Args:
        before: which validation pictures the head withstood, ``bool (n,)``.
        after: which of the same the trained network did.
        accuracy: of the trained network on validation pictures without attack.
        least_accuracy: how much of it must be left.

    Returns:
        Whether enough is left, and more pictures are withstood by more than two standard errors of the difference.
    """
    gains = after.astype(float) - before.astype(float)
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(accuracy >= least_accuracy and gains.mean() > 2 * error)
