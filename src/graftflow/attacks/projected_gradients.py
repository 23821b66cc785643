"""PGD: repeated steps inside the ball from random starts (Madry et al. 2018)."""

from typing import Any

import tensorflow as tf

from graftflow.attacks import results
from graftflow.attacks.balls import Norm
from graftflow.attacks.networks import Logits
from graftflow.attacks.results import Attacked, Batch, Problem
from graftflow.errors import InputError

# A look costs half of a gradient, which is spared wherever it finds a picture fooled: most of a network that was not
# trained against attacks fall in the first steps.
_LOOKS = 2


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
    norm: Norm = "linf",
    restarts: int = 1,
    batch_size: int = results.BATCH,
) -> tf.Tensor:
    """Return the pixels of :func:`projected_gradient`, ``float32 (n, h, w, 3)``, rounded if ``eight_bits``."""
    found = projected_gradient(
        logits_of,
        pixels,
        labels,
        epsilon=epsilon,
        steps=steps,
        seed=seed,
        step_size=step_size,
        norm=norm,
        restarts=restarts,
        targeted=targeted,
        eight_bits=eight_bits,
        batch_size=batch_size,
    )
    return tf.constant(found.pixels)


def projected_gradient(
    logits_of: Logits,
    pixels: Any,
    labels: Any,
    *,
    epsilon: float,
    steps: int,
    seed: int,
    step_size: float | None = None,
    norm: Norm = "linf",
    restarts: int = 1,
    targeted: bool = False,
    eight_bits: bool = False,
    batch_size: int = results.BATCH,
) -> Attacked:
    """Repeat steps inside the ε ball from a random start (Madry et al. 2018, section 2.1).

    x⁰ = clip(x + U(ball of ε)); xᵗ⁺¹ = Π(xᵗ ± α · steepest ∇ₓ L(xᵗ, y)), + away from the label, − towards the
    target; steepest is the sign in L-infinity, g / ‖g‖₂ in L2. On pictures that are not fooled it tries the one step of
    FGSM last, so that it is never weaker. A picture is left alone once it is fooled, or if it was from the start; of
    one that never is, the candidate with the highest loss is kept. With ``eight_bits`` the gradient is that at the
    rounded picture, the one that a server would receive, and the steps are taken from the unrounded one.

    Args:
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: the true classes, or with ``targeted`` the classes to be predicted.
        epsilon: radius, in [0, 1] for ``linf``, at least 0 for ``l2``.
        steps: from each start; ≥ 1.
        seed: fixes the random starts; that of a picture depends on its position, not on its batch.
        step_size: α; by default 2.5 · ε / steps, so that the far side of the ball can be reached.
        norm: ``linf`` or ``l2``.
        restarts: random starts, ≥ 1; a later one attacks what the earlier ones did not fool.
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
    for setting, value in (("steps", steps), ("restarts", restarts)):
        if value < 1:
            raise InputError(f"{setting} must be at least 1. Received: {value}.")
    alpha = 2.5 * epsilon / steps if step_size is None else step_size
    if not alpha >= 0:
        raise InputError(f"step_size must be at least 0. Received: {alpha}.")

    def attack(batch: Batch) -> None:
        batch.look(batch.pixels)
        for restart in range(restarts):
            x = batch.random_start(seed, restart)
            for t in range(steps):
                _, g, x = batch.ascend(x)
                x = batch.step(x, g, alpha)
                if t < _LOOKS or t == steps - 1:
                    _, x = batch.look(x)
        _, g, x = batch.ascend(batch.pixels)
        batch.look(batch.step(x, g, epsilon))  # FGSM's answer

    return problem.run(attack, name="PGD", batch_size=batch_size)
