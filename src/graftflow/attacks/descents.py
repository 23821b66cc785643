"""Plain gradient descent towards a class, with a total-variation term: no ball, only a picture in [0, 1]."""

import tensorflow as tf

from graftflow.attacks import balls
from graftflow.attacks.losses import log_odds_against, total_variation
from graftflow.attacks.networks import Logits, ascend, predict_logits
from graftflow.attacks.results import Problem
from graftflow.errors import InputError


def descend(
    logits_of: Logits,
    pixels: tf.Tensor,
    targets: tf.Tensor,
    *,
    steps: int,
    probability: float = 0.9,
    step_size: float = 0.25,
    total_variation_weight: float = 0.0,
    eight_bits: bool = False,
) -> tf.Tensor:
    """Walk down the loss of the target class until it is predicted; no ball, pixels stay in [0, 1].

    x ← clip(x − η · g / ‖g‖₂), g = ∇ₓ(L(x, target) + w · TV(x)); steps of one length, so that one η
    serves every model. With ``eight_bits`` L's gradient is that at the rounded picture.

    Args:
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        targets: ``int64 (n,)``: the classes to be predicted.
        steps: gradient evaluations a picture, at most; ≥ 1.
        probability: a picture is left alone when its target's probability reaches this; in (0, 1).
        step_size: η, the L2 length of a step over the whole picture, > 0.
        total_variation_weight: w ≥ 0, in log odds per unit of :func:`total_variation`.
        eight_bits: whether the probability must hold after rounding to 8 bits.

    Returns:
        ``float32 (n, h, w, 3)``, rounded if ``eight_bits``.

    Raises:
        InputError: where a setting or target is out of range.
    """
    problem = Problem.checked(logits_of, pixels, targets, epsilon=1.0)
    if steps < 1:
        raise InputError(f"steps must be at least 1. Received: {steps}.")
    if not 0 < probability < 1:
        raise InputError(f"probability must lie between 0 and 1. Received: {probability}.")
    if not step_size > 0:
        raise InputError(f"step_size must be above 0. Received: {step_size}.")
    if not total_variation_weight >= 0:
        raise InputError(f"total_variation_weight must be at least 0. Received: {total_variation_weight}.")

    def sent(adversarial: tf.Tensor) -> tf.Tensor:
        return balls.round_to_eight_bits(adversarial, adversarial, 1.0) if eight_bits else adversarial

    adversarial, left = problem.pixels, tf.range(tf.shape(problem.pixels)[0])
    for step in range(steps + 1):
        x, target = tf.gather(adversarial, left), tf.gather(problem.labels, left)
        if step < steps:
            logits, _, gradient = ascend(logits_of, log_odds_against, sent(x), target, target)
        else:
            logits, gradient = predict_logits(logits_of, sent(x)), x
        unsure = tf.gather(tf.nn.softmax(logits), target, batch_dims=1) < probability
        left, x, gradient = (tf.boolean_mask(t, unsure) for t in (left, x, gradient))
        if step == steps or not len(left):
            break
        if total_variation_weight:
            gradient += total_variation_weight * _total_variation_gradient(x)
        x = tf.clip_by_value(x - step_size * balls.steepest(gradient, "l2"), 0.0, 1.0)
        adversarial = tf.tensor_scatter_nd_update(adversarial, left[:, None], x)
    return sent(adversarial)


@tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
def _total_variation_gradient(pixels: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        variation = total_variation(pixels)
    return tape.gradient(variation, pixels)
