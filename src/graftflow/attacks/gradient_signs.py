"""FGSM: one step along the sign of the gradient (Goodfellow et al. 2015)."""

from typing import Any

import tensorflow as tf

from graftflow.attacks import results
from graftflow.attacks.balls import Norm, project
from graftflow.attacks.networks import Logits, signed_gradient
from graftflow.attacks.results import Attacked, Batch, Problem


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

    x' = clip(x ± ε · sign ∇ₓ L(x, y)), + away from the label, − towards the target. The step is taken whatever comes
    of it; :func:`fast_gradient` looks.

    Args:
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: the true classes, or with ``targeted`` the classes to be predicted.
        epsilon: L-infinity radius, in [0, 1].
        targeted: whether ``labels`` are targets.
        signs: what :func:`signed_gradient` returned for these pictures, if it is known already:
            it is the same for every ε.

    Returns:
        ``float32 (n, h, w, 3)`` in [0, 1].

    Raises:
        InputError: where ε or a label is out of range.
    """
    problem = Problem.checked(logits_of, pixels, labels, epsilon=epsilon, targeted=targeted)
    if signs is None:
        signs = signed_gradient(logits_of, problem.pixels, problem.labels, targeted=targeted)
    return project(problem.pixels + epsilon * signs, problem.pixels, tf.constant(epsilon, tf.float32), "linf")


def fast_gradient(
    logits_of: Logits,
    pixels: Any,
    labels: Any,
    *,
    epsilon: float,
    norm: Norm = "linf",
    targeted: bool = False,
    eight_bits: bool = False,
    batch_size: int = results.BATCH,
) -> Attacked:
    """Take FGSM's step, or in L2 the step of length ε along the gradient, and see whom it fools.

    A picture that is fooled as it is stays as it is.

    Args:
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: the true classes, or with ``targeted`` the classes to be predicted.
        epsilon: radius, in [0, 1] for ``linf``, at least 0 for ``l2``.
        norm: ``linf`` or ``l2``.
        targeted: whether ``labels`` are targets.
        eight_bits: whether pictures are rounded to multiples of 1/255 inside the ball before the network sees them.
        batch_size: pictures a pass, at most.

    Raises:
        InputError: where a setting or label is out of range.
    """
    problem = Problem.checked(
        logits_of,
        pixels,
        labels,
        epsilon=epsilon,
        norm=norm,
        targeted=targeted,
        eight_bits=eight_bits,
    )

    def attack(batch: Batch) -> None:
        _, g, x = batch.ascend(batch.pixels)
        batch.look(batch.step(x, g, epsilon))

    return problem.run(attack, name="FGSM", batch_size=batch_size)
