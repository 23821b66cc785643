"""Adversarial attacks: FGSM, PGD, and plain gradient descent towards a class.

Every attack takes ``logits_of``, a function from pixels ``float32 (n, h, w, 3)`` in [0, 1] to
logits ``float32 (n, k)`` with k ≥ 2 (a model with one sigmoid needs two logits: 0 and its own), and
returns pixels of the same shape and range.

Signs: :func:`log_odds_against` is the loss. An untargeted attack RAISES it for the true label, a
targeted attack LOWERS it for the target class.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from graftflow.epsilons import whole_levels
from graftflow.errors import InputError

Logits = Callable[[tf.Tensor], tf.Tensor]


def logits_model(model: keras.Model) -> keras.Model:
    """Return the part of a classifier that ends at its layer ``logits``; weights are shared.

    Args:
        model: pixels → … → ``logits`` → ``probabilities``.

    Raises:
        InputError: where the model has no layer of that name.
    """
    names = [layer.name for layer in model.layers]
    if "logits" not in names:
        raise InputError(f"a classifier must have a layer named 'logits'. Received: {names}.")
    return keras.Model(model.inputs[0], model.get_layer("logits").output, name="logits_of")


def log_odds_against(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return log((1 − p) / p) of the labels' probabilities p: logsumexp of the others minus own.

    The papers' cross-entropy −log p is the softplus of this, so both gradients have one direction;
    but the cross-entropy's is lost in float32 once the label leads by 17, and then an attack looks
    weaker than it is.

    Args:
        logits: ``float32 (n, k)``.
        labels: ``int64 (n,)`` in 0 … k − 1.

    Returns:
        ``float32 (n,)``; negative where the label holds more than half of the probability.
    """
    own = tf.one_hot(labels, tf.shape(logits)[1], on_value=True, off_value=False, dtype=tf.bool)
    others = tf.where(own, tf.constant(-float("inf"), logits.dtype), logits)
    return tf.reduce_logsumexp(others, axis=1) - tf.gather(logits, labels, batch_dims=1)


def total_variation(pixels: tf.Tensor) -> tf.Tensor:
    """Return the mean absolute difference of neighbours, down plus across, ``float32 (n,)``."""
    down = tf.abs(pixels[:, 1:] - pixels[:, :-1])
    across = tf.abs(pixels[:, :, 1:] - pixels[:, :, :-1])
    return tf.reduce_mean(down, axis=(1, 2, 3)) + tf.reduce_mean(across, axis=(1, 2, 3))


# Compiled once for a function and once more when the number of pictures varies; for no radius.
@tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
def loss_gradient(logits_of: Logits, pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return ∇ₓ of :func:`log_odds_against`, picture by picture, ``float32 (n, h, w, 3)``."""
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        loss = log_odds_against(logits_of(pixels), labels)
    return tape.gradient(loss, pixels)


@tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
def predict_logits(logits_of: Logits, pixels: tf.Tensor) -> tf.Tensor:
    """Return ``logits_of(pixels)``, compiled."""
    return logits_of(pixels)


def signed_gradient(
    logits_of: Logits, pixels: tf.Tensor, labels: tf.Tensor, *, targeted: bool = False
) -> tf.Tensor:
    """Return + sign ∇ₓ L, away from the label, or − sign ∇ₓ L, towards the target; −1, 0 or 1."""
    sign = tf.sign(loss_gradient(logits_of, pixels, labels))
    return -sign if targeted else sign


def fgsm(
    logits_of: Logits,
    pixels: tf.Tensor,
    labels: tf.Tensor,
    *,
    epsilon: float,
    targeted: bool = False,
    signs: tf.Tensor | None = None,
) -> tf.Tensor:
    """Take one step of ε along the sign of the gradient (Goodfellow et al. 2015, section 4).

    x' = clip(x ± ε · sign ∇ₓ L(x, y)), + away from the label, − towards the target.

    Args:
        logits_of: see the module.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: the true classes, or with ``targeted`` the classes to be predicted.
        epsilon: L-infinity radius, in [0, 1].
        targeted: whether ``labels`` are targets.
        signs: what :func:`signed_gradient` returned for these pictures, if it is known already:
            it is the same for every ε.

    Raises:
        InputError: where ε or a label is out of range.
    """
    pixels, labels = _checked(logits_of, pixels, labels, epsilon)
    if signs is None:
        signs = signed_gradient(logits_of, pixels, labels, targeted=targeted)
    return _project(pixels + epsilon * signs, pixels, epsilon)


def pgd(
    logits_of: Logits,
    pixels: tf.Tensor,
    labels: tf.Tensor,
    *,
    epsilon: float,
    steps: int,
    seed: int,
    step_size: float | None = None,
    targeted: bool = False,
    eight_bits: bool = False,
) -> tf.Tensor:
    """Repeat signed steps inside the ε ball from a random start (Madry et al. 2018, section 2.1).

    x⁰ = clip(x + U(−ε, ε)); xᵗ⁺¹ = Π(xᵗ ± α · sign ∇ₓ L(xᵗ, y)), + away from the label, − towards
    the target. A picture is left alone once it is fooled.

    Args:
        logits_of: see the module.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: the true classes, or with ``targeted`` the classes to be predicted.
        epsilon: L-infinity radius, in [0, 1].
        steps: gradient evaluations a picture, at most; ≥ 1.
        seed: fixes the random start.
        step_size: α; by default 2.5 · ε / steps, so that the far side of the ball can be reached.
        targeted: whether ``labels`` are targets.
        eight_bits: whether a picture counts as fooled only after :func:`round_to_eight_bits`.

    Returns:
        ``float32 (n, h, w, 3)``, rounded if ``eight_bits``.

    Raises:
        InputError: where a setting or label is out of range.
    """
    pixels, labels = _checked(logits_of, pixels, labels, epsilon)
    _check_steps(steps)
    alpha = 2.5 * epsilon / steps if step_size is None else step_size
    if not alpha >= 0:
        raise InputError(f"step_size must be at least 0. Received: {alpha}.")

    def sent(adversarial: tf.Tensor, original: tf.Tensor) -> tf.Tensor:
        return round_to_eight_bits(adversarial, original, epsilon) if eight_bits else adversarial

    noise = tf.random.stateless_uniform(tf.shape(pixels), tf.constant((seed, 0), tf.int64), -epsilon, epsilon)
    adversarial = _project(pixels + noise, pixels, epsilon)
    left = tf.range(tf.shape(pixels)[0])  # pictures not fooled yet
    for _ in range(steps):
        x, original, label = (tf.gather(t, left) for t in (adversarial, pixels, labels))
        x += alpha * signed_gradient(logits_of, x, label, targeted=targeted)
        x = _project(x, original, epsilon)
        adversarial = tf.tensor_scatter_nd_update(adversarial, left[:, None], x)
        predicted = tf.argmax(predict_logits(logits_of, sent(x, original)), axis=1)
        left = tf.boolean_mask(left, (predicted == label) != targeted)
        if not len(left):
            break
    return sent(adversarial, pixels)


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
    serves every model.

    Args:
        logits_of: see the module.
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
    pixels, targets = _checked(logits_of, pixels, targets, epsilon=1.0)
    _check_steps(steps)
    if not 0 < probability < 1:
        raise InputError(f"probability must lie between 0 and 1. Received: {probability}.")
    if not step_size > 0:
        raise InputError(f"step_size must be above 0. Received: {step_size}.")
    if not total_variation_weight >= 0:
        raise InputError(f"total_variation_weight must be at least 0. Received: {total_variation_weight}.")

    def sent(adversarial: tf.Tensor) -> tf.Tensor:
        return round_to_eight_bits(adversarial, adversarial, 1.0) if eight_bits else adversarial

    adversarial, left = pixels, tf.range(tf.shape(pixels)[0])
    for step in range(steps + 1):
        x, target = tf.gather(adversarial, left), tf.gather(targets, left)
        reached = tf.nn.softmax(predict_logits(logits_of, sent(x)))
        unsure = tf.gather(reached, target, batch_dims=1) < probability
        left, x, target = (tf.boolean_mask(t, unsure) for t in (left, x, target))
        if step == steps or not len(left):
            break
        gradient = loss_gradient(logits_of, x, target)
        if total_variation_weight:
            gradient += total_variation_weight * _total_variation_gradient(x)
        length = tf.norm(tf.reshape(gradient, (len(left), -1)), axis=1)
        x -= step_size * gradient / tf.maximum(length, 1e-30)[:, None, None, None]
        x = tf.clip_by_value(x, 0.0, 1.0)
        adversarial = tf.tensor_scatter_nd_update(adversarial, left[:, None], x)
    return sent(adversarial)


def round_to_eight_bits(adversarial: tf.Tensor, original: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Round pixels to multiples of 1/255, as a PNG carries them, without leaving the ε ball.

    Args:
        adversarial: ``float32 (n, h, w, 3)`` in [0, 1].
        original: the same shape; its own nearest multiples of 1/255 are the centre of the ball.
        epsilon: L-infinity radius; ⌊255 ε⌋ levels of it can be used, none of them when ε < 1/255.

    Returns:
        ``float32``, each k/255 with |k − 255 · original| ≤ 255 ε for an original of whole levels.
    """
    centre = tf.round(original * 255.0)
    levels = float(whole_levels(epsilon))
    rounded = tf.clip_by_value(tf.round(adversarial * 255.0), centre - levels, centre + levels)
    return tf.clip_by_value(rounded, 0.0, 255.0) / 255.0


def _project(x: tf.Tensor, centre: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Π: into the ε ball around ``centre`` and into [0, 1]."""
    return tf.clip_by_value(tf.clip_by_value(x, centre - epsilon, centre + epsilon), 0.0, 1.0)


@tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
def _total_variation_gradient(pixels: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        variation = total_variation(pixels)
    return tape.gradient(variation, pixels)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise InputError(f"steps must be at least 1. Received: {steps}.")


def _checked(logits_of: Logits, pixels: Any, labels: Any, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Return pixels as float32 and labels as int64, or raise InputError."""
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon must lie in [0, 1]. Received: {epsilon}.")
    pixels = tf.convert_to_tensor(pixels, tf.float32)
    labels = tf.cast(tf.convert_to_tensor(labels), tf.int64)
    if len(pixels.shape) != 4 or labels.shape != pixels.shape[:1]:
        raise InputError(
            "pixels must have the shape (n, h, w, 3) and labels (n,). "
            f"Received: {tuple(pixels.shape)} and {tuple(labels.shape)}."
        )
    classes = predict_logits(logits_of, pixels[:1]).shape[1]
    if classes < 2:
        raise InputError(f"an attack needs logits of at least 2 classes. Received: {classes}.")
    if any(not 0 <= label < classes for label in labels.numpy()):
        raise InputError(f"labels must lie in 0 … {classes - 1}. Received: {labels.numpy()}.")
    return pixels, labels
