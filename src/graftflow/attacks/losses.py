"""Losses of attacks: an untargeted attack RAISES them for the true label, a targeted attack LOWERS them for its target.

Each takes logits ``float32 (n, k)``, labels ``int64 (n,)`` in 0 … k − 1 and targets of the same kind, which only
:func:`targeted_dlr` reads, and returns ``float32 (n,)``.
"""

from collections.abc import Callable

import tensorflow as tf

Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor | None], tf.Tensor]


def log_odds_against(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None = None) -> tf.Tensor:
    """Return log((1 − p) / p) of the labels' probabilities p: logsumexp of the others minus own.

    The papers' cross-entropy −log p is the softplus of this, so both gradients have one direction;
    but the cross-entropy's is lost in float32 once the label leads by 17, and then an attack looks
    weaker than it is.

    Args:
        logits: ``float32 (n, k)``.
        labels: ``int64 (n,)`` in 0 … k − 1.
        targets: not read.

    Returns:
        ``float32 (n,)``; negative where the label holds more than half of the probability.
    """
    return tf.reduce_logsumexp(_others(logits, labels), axis=1) - _own(logits, labels)


def margin_against(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None = None) -> tf.Tensor:
    """Return max of the others minus own, ``float32 (n,)``; negative where the label is predicted."""
    return tf.reduce_max(_others(logits, labels), axis=1) - _own(logits, labels)


def dlr(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None = None) -> tf.Tensor:
    """Return the difference of logits ratio (Croce & Hein 2020, equation 6), at most 1.

    −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3): neither a shift nor a scale of the logits changes it. Needs k ≥ 3.
    """
    z = tf.math.top_k(logits, 3).values
    return margin_against(logits, labels) / (z[:, 0] - z[:, 2] + _TINY)


def targeted_dlr(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tf.Tensor:
    """Return the ratio that rises from the label to one other class (Croce & Hein 2020, equation 7).

    −(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2). Needs k ≥ 4.
    """
    z = tf.math.top_k(logits, 4).values
    return (_own(logits, targets) - _own(logits, labels)) / (z[:, 0] - (z[:, 2] + z[:, 3]) / 2 + _TINY)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def total_variation(pixels: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Return the mean absolute difference of neighbours, down plus across, ``float32 (n,)``.

    Its gradient is written out: TensorFlow's own, the same to the last bit, takes ten times as long.
    """
    changes = pixels[:, 1:] - pixels[:, :-1], pixels[:, :, 1:] - pixels[:, :, :-1]
    down, across = (tf.reduce_mean(tf.abs(change), axis=(1, 2, 3)) for change in changes)

    def gradient(of_variation: tf.Tensor) -> tf.Tensor:
        total = tf.zeros_like(pixels)
        for axis, change in enumerate(changes, start=1):
            count = tf.cast(tf.reduce_prod(tf.shape(change)[1:]), pixels.dtype)
            signs = tf.sign(change) * (of_variation / count)[:, None, None, None]
            # Each pixel is the later one of a pair, and the earlier one of the next.
            total += _shifted(signs, axis, 1) - _shifted(signs, axis, 0)
        return total

    return down + across, gradient


_TINY = 1e-12  # As in the authors' code: where all logits are equal there is nothing to divide.


def _shifted(pixels: tf.Tensor, axis: int, before: int) -> tf.Tensor:
    """Return pixels with a row of zeros along an axis: ``before`` of them before, the others behind."""
    rows = [[0, 0] for _ in range(4)]
    rows[axis] = [before, 1 - before]
    return tf.pad(pixels, rows)


def _own(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.gather(logits, labels, batch_dims=1)


def _others(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    own = tf.one_hot(labels, tf.shape(logits)[1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.where(own, tf.constant(-float("inf"), logits.dtype), logits)
