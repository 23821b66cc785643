"""APGD: PGD with momentum that halves its step where the loss stops rising (Croce & Hein 2020)."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from graftflow.attacks import results
from graftflow.attacks.balls import Norm, project
from graftflow.attacks.losses import dlr, log_odds_against, targeted_dlr
from graftflow.attacks.networks import Logits
from graftflow.attacks.results import Attacked, Batch, Problem
from graftflow.errors import InputError

LossName = Literal["ce", "dlr", "targeted-dlr"]
LOSSES = {"ce": log_odds_against, "dlr": dlr, "targeted-dlr": targeted_dlr}
_LEAST_CLASSES = {"ce": 2, "dlr": 3, "targeted-dlr": 4}
_ALPHA, _RHO = 0.75, 0.75


def apgd(
    logits_of: Logits,
    pixels: Any,
    labels: Any,
    *,
    epsilon: float,
    steps: int,
    seed: int,
    loss: LossName = "ce",
    norm: Norm = "linf",
    restarts: int = 1,
    targets: Any = None,
    targeted: bool = False,
    eight_bits: bool = False,
    batch_size: int = results.BATCH,
) -> Attacked:
    """Climb with momentum and a step that halves itself (Croce & Hein 2020, algorithm 1).

    zᵏ⁺¹ = Π(xᵏ + η · steepest ∇f(xᵏ)); xᵏ⁺¹ = Π(xᵏ + α (zᵏ⁺¹ − xᵏ) + (1 − α)(xᵏ − xᵏ⁻¹)), from η = 2 ε, α = 0.75 (1 in
    the first step). At the checkpoints η is halved and x goes back to the best so far where f rose in less than
    ρ = 0.75 of the steps since the last one, or where neither η nor the best f changed since then.

    Args:
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: the true classes, or with ``targeted`` the classes to be predicted.
        epsilon: radius, in [0, 1] for ``linf``, at least 0 for ``l2``.
        steps: from each start; ≥ 1.
        seed: fixes the random starts; that of a picture depends on its position, not on its batch.
        loss: ``ce``, :func:`graftflow.attacks.log_odds_against`, which rises as the cross-entropy does; ``dlr``, which
            no scale of the logits changes, needs 3 classes (with 2 the logits differ by the log odds: ``ce`` climbs
            the same); ``targeted-dlr`` goes from each label to a class of ``targets`` and needs 4.
        norm: ``linf`` or ``l2``.
        restarts: random starts, ≥ 1; a later one attacks what the earlier ones did not fool.
        targets: of ``targeted-dlr``: ``int64 (n,)``, the class whose logit is to pass the label's. The picture counts
            as fooled whatever other class is predicted.
        targeted: whether ``labels`` are targets; with ``ce`` only.
        eight_bits: whether pictures are rounded to multiples of 1/255 inside the ball before the network sees them.
        batch_size: pictures a pass, at most.

    Raises:
        InputError: where a setting or label is out of range, or the loss needs more classes.
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
    chosen = _checked_targets(problem, loss, targets)
    for setting, value in (("steps", steps), ("restarts", restarts)):
        if value < 1:
            raise InputError(f"{setting} must be at least 1. Received: {value}.")
    f_of = LOSSES[loss]
    name = {"ce": "APGD-CE", "dlr": "APGD-DLR", "targeted-dlr": "APGD-targeted-DLR"}[loss]

    def attack(batch: Batch) -> None:
        batch.look(batch.pixels)
        for restart in range(restarts):
            x = batch.random_start(seed, restart)
            f, g, x = batch.ascend(x, loss=f_of)
            s = _State.first(x, f, g, epsilon)
            last = 0
            for k in range(steps):
                z = batch.step(s.x, s.g, s.eta)
                alpha = _ALPHA if k else 1.0
                x = _momentum(s.x, s.x_before, z, alpha, batch.pixels, batch.radius.epsilon, norm)
                f, g, x, *rest = batch.ascend(x, *s, loss=f_of)
                s = _moved(_State(*rest), x, f, g)
                if k + 1 in checkpoints(steps):
                    s = _halved(s, tf.constant(_RHO * (k + 1 - last), tf.float32))
                    last = k + 1

    return problem.run(attack, name=name, targets=chosen, batch_size=batch_size)


def checkpoints(steps: int) -> list[int]:
    """Return after how many steps the step size is judged: ⌈pⱼ · steps⌉ (Croce & Hein 2020, section 3.2).

    p₀ = 0, p₁ = 0.22, pⱼ₊₁ = pⱼ + max(pⱼ − pⱼ₋₁ − 0.03, 0.06).
    """
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return sorted({math.ceil(round(share * steps, 6)) for share in p[1:] if share <= 1})


class _State(NamedTuple):
    """Of each picture: where it is, was, and was best; ``(n, …)``."""

    x: tf.Tensor
    x_before: tf.Tensor
    g: tf.Tensor
    f: tf.Tensor
    x_max: tf.Tensor
    g_max: tf.Tensor
    f_max: tf.Tensor
    eta: tf.Tensor  # (n, 1, 1, 1)
    rises: tf.Tensor  # steps since the last checkpoint in which f rose
    halved: tf.Tensor  # bool: whether η was halved at the last checkpoint
    f_max_then: tf.Tensor  # the best f at the last checkpoint

    @classmethod
    def first(cls, x: tf.Tensor, f: tf.Tensor, g: tf.Tensor, epsilon: float) -> "_State":
        eta = tf.fill((len(x), 1, 1, 1), tf.constant(2 * epsilon, tf.float32))
        # As if η had been halved before: the second condition waits for a whole interval.
        return cls(x, x, g, f, x, g, f, eta, tf.zeros_like(f), tf.ones_like(f, tf.bool), f)


@tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
def _momentum(
    x: tf.Tensor,
    x_before: tf.Tensor,
    z: tf.Tensor,
    alpha: tf.Tensor,
    centre: tf.Tensor,
    epsilon: tf.Tensor,
    norm: Norm,
) -> tf.Tensor:
    return project(x + alpha * (z - x) + (1.0 - alpha) * (x - x_before), centre, epsilon, norm)


@tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
def _moved(s: _State, x: tf.Tensor, f: tf.Tensor, g: tf.Tensor) -> _State:
    better = f > s.f_max
    return s._replace(
        x=x,
        x_before=s.x,
        g=g,
        f=f,
        x_max=_where(better, x, s.x_max),
        g_max=_where(better, g, s.g_max),
        f_max=tf.maximum(f, s.f_max),
        rises=s.rises + tf.cast(f > s.f, tf.float32),
    )


@tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
def _halved(s: _State, enough: tf.Tensor) -> _State:
    halve = (s.rises < enough) | (~s.halved & (s.f_max <= s.f_max_then))
    return s._replace(
        x=_where(halve, s.x_max, s.x),
        g=_where(halve, s.g_max, s.g),
        f=tf.where(halve, s.f_max, s.f),
        eta=_where(halve, s.eta / 2.0, s.eta),
        rises=tf.zeros_like(s.rises),
        halved=halve,
        f_max_then=s.f_max,
    )


def _where(condition: tf.Tensor, yes: tf.Tensor, no: tf.Tensor) -> tf.Tensor:
    return tf.where(condition[:, None, None, None], yes, no)


def _checked_targets(problem: Problem, loss: str, targets: Any) -> Any:
    """Return the targets as NumPy or None, or raise InputError."""
    if loss not in LOSSES:
        raise InputError(f"loss must be one of {', '.join(LOSSES)}. Received: '{loss}'.")
    if problem.classes < _LEAST_CLASSES[loss]:
        raise InputError(
            f"loss '{loss}' needs logits of at least {_LEAST_CLASSES[loss]} classes. Received: {problem.classes}; "
            "'ce' takes any number."
        )
    if problem.targeted and loss != "ce":
        raise InputError(f"a targeted attack needs the loss 'ce'. Received: '{loss}'.")
    if (targets is None) != (loss != "targeted-dlr"):
        raise InputError(f"targets belong to the loss 'targeted-dlr', which needs them. Received: '{loss}'.")
    if targets is None:
        return None
    chosen = np.asarray(targets, np.int64)
    if chosen.shape != tuple(problem.labels.shape) or not ((chosen >= 0) & (chosen < problem.classes)).all():
        raise InputError(
            f"targets must be a class in 0 … {problem.classes - 1} for each picture. Received: {targets}."
        )
    return chosen
