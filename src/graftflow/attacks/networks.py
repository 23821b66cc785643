"""One pass through the attacked network: its logits, a loss of them, and the loss's gradient, compiled once."""

from collections.abc import Callable
from functools import partial

import keras
import tensorflow as tf

from graftflow.attacks.losses import Loss, dlr, log_odds_against, targeted_dlr
from graftflow.errors import InputError

Logits = Callable[[tf.Tensor], tf.Tensor]

# Those that attacks climb, and the classes that each needs. They share one graph of a network: a loss costs next to
# nothing, and to compile EfficientNet-Lite0's gradient once more takes as long as 60 gradients.
_LOSSES: tuple[tuple[Loss, int], ...] = ((log_odds_against, 2), (dlr, 3), (targeted_dlr, 4))


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


def predict_logits(logits_of: Logits, pixels: tf.Tensor) -> tf.Tensor:
    """Return ``logits_of(pixels)``, ``float32 (n, k)``, compiled."""
    pixels = tf.convert_to_tensor(pixels, tf.float32)
    predict_pass.get_concrete_function(logits_of, _any_number(pixels))
    return predict_pass(logits_of, pixels)


def num_classes(logits_of: Logits, pixels: tf.Tensor) -> int:
    """Return how many logits ``logits_of`` gives for ``pixels``, compiled; it runs only where its graph does not say.

    Args:
        logits_of: pixels → logits.
        pixels: ``float32 (n, h, w, 3)``.
    """
    told = predict_pass.get_concrete_function(logits_of, _any_number(pixels)).output_shapes
    known = told[1] if told.rank == 2 else None
    return int(predict_logits(logits_of, pixels[:1]).shape[1] if known is None else known)


def ascend(
    logits_of: Logits,
    loss: Loss,
    pixels: tf.Tensor,
    labels: tf.Tensor,
    targets: tf.Tensor,
    *,
    targeted: bool = False,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Run forward and back once, compiled once for a network and a picture size (and a loss of the caller's own).

    Args:
        logits_of: pixels → logits.
        loss: one of :mod:`graftflow.attacks.losses`.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``.
        targets: ``int64 (n,)``, for :func:`graftflow.attacks.losses.targeted_dlr`; else the labels again.
        targeted: whether the loss is to fall: then it and its gradient are negated.

    Returns:
        Logits ``(n, k)``; what an attack raises, ``(n,)``; its gradient for the pixels ``(n, h, w, 3)``, 0 where the
        network has none.
    """
    several = tf.TensorSpec((None,), tf.int64)
    sign = tf.constant(-1.0 if targeted else 1.0)
    known = [number for number, (one, _) in enumerate(_LOSSES) if one is loss]
    own, number = (None, known[0]) if known else (loss, 0)
    which = tf.constant(number)
    gradient_pass.get_concrete_function(logits_of, own, _any_number(pixels), several, several, sign, which)
    logits, raised, gradient = gradient_pass(logits_of, own, pixels, labels, targets, sign, which)
    return logits, raised, gradient


def loss_gradient(logits_of: Logits, pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return ∇ₓ of the log odds against the labels, picture by picture, ``float32 (n, h, w, 3)``."""
    pixels = tf.convert_to_tensor(pixels, tf.float32)
    labels = tf.cast(tf.convert_to_tensor(labels), tf.int64)
    return ascend(logits_of, log_odds_against, pixels, labels, labels)[2]


def signed_gradient(
    logits_of: Logits, pixels: tf.Tensor, labels: tf.Tensor, *, targeted: bool = False
) -> tf.Tensor:
    """Return + sign ∇ₓ L, away from the label, or − sign ∇ₓ L, towards the target; −1, 0 or 1."""
    sign = tf.sign(loss_gradient(logits_of, pixels, labels))
    return -sign if targeted else sign


def _one_of(which: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tf.Tensor:
    able = [loss for loss, classes in _LOSSES if (logits.shape[1] or classes) >= classes] or [
        log_odds_against
    ]
    return tf.switch_case(which, [partial(loss, logits, labels, targets) for loss in able])


# Compiled before the first call for any number of pictures: a shrinking batch compiles nothing again.
@tf.function(autograph=False)  # type: ignore[untyped-decorator]
def gradient_pass(
    logits_of: Logits,
    loss: Loss | None,
    pixels: tf.Tensor,
    labels: tf.Tensor,
    targets: tf.Tensor,
    sign: tf.Tensor,
    which: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The graph of :func:`ascend`; without a loss of its own it takes the one of that number in the table."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(pixels)
        logits = logits_of(pixels)
        raised = sign * (loss or partial(_one_of, which))(logits, labels, targets)
    gradient = tape.gradient(raised, pixels, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return logits, raised, gradient


@tf.function(autograph=False)  # type: ignore[untyped-decorator]
def predict_pass(logits_of: Logits, pixels: tf.Tensor) -> tf.Tensor:
    """The graph of :func:`predict_logits`."""
    return logits_of(pixels)


def _any_number(pixels: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec((None, *pixels.shape[1:]), tf.float32)
