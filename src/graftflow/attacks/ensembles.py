"""Several attacks, each on the pictures that those before it did not fool (as AutoAttack, Croce & Hein 2020)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from graftflow.attacks import results
from graftflow.attacks.auto_pgd import apgd
from graftflow.attacks.balls import Norm
from graftflow.attacks.networks import Logits, predict_logits
from graftflow.attacks.results import Array, Attacked, Problem
from graftflow.attacks.square_search import square
from graftflow.errors import InputError


class Attack(Protocol):
    """An attack with all its settings but the radius, such as ``partial(projected_gradient, steps=10, seed=0)``."""

    def __call__(self, logits_of: Logits, pixels: Any, labels: Any, /, *, epsilon: float) -> Attacked:
        """Attack within ``epsilon``."""


def in_turn(
    attacks: Sequence[Attack], logits_of: Logits, pixels: Any, labels: Any, *, epsilon: float
) -> Attacked:
    """Run attacks one after the other, each on the pictures that are not fooled yet.

    Args:
        attacks: at least one.
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``.
        epsilon: the radius.

    Returns:
        Of each picture what fooled it, else what the first attack found; ``evaluations`` of all attacks together.

    Raises:
        InputError: as the attacks do.
    """
    if not attacks:
        raise InputError("attacks must name at least one attack. Received: none.")
    pixels, labels = np.asarray(pixels, np.float32), np.asarray(labels, np.int64)
    total = attacks[0](logits_of, pixels, labels, epsilon=epsilon)
    names = total.names.astype(object)
    for attack in attacks[1:]:
        left = np.flatnonzero(~total.fooled)
        if not len(left):
            break
        found = attack(logits_of, pixels[left], labels[left], epsilon=epsilon)
        total.evaluations[left] += found.evaluations
        new = left[found.fooled]
        total.pixels[new], total.fooled[new] = found.pixels[found.fooled], True
        names[new] = found.names[found.fooled]
    return Attacked(total.pixels, total.fooled, total.evaluations, names.astype(str))


def ensemble(
    logits_of: Logits,
    pixels: Any,
    labels: Any,
    *,
    epsilon: float,
    steps: int,
    queries: int,
    seed: int,
    norm: Norm = "linf",
    restarts: int = 1,
    num_targets: int = 9,
    eight_bits: bool = False,
    batch_size: int = results.BATCH,
) -> Attacked:
    """Attack as AutoAttack does: APGD-CE, then APGD-DLR, then Square, each on what is left.

    With 4 classes or more APGD-DLR is the targeted one, towards the likeliest other classes in turn; with 3 it is the
    untargeted; with 2 it is left out, since it would climb the same function as APGD-CE. AutoAttack's FAB is not
    among them; in L2 neither is Square, which is written for L-infinity.

    Args:
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: the true classes.
        epsilon: radius, in [0, 1] for ``linf``, at least 0 for ``l2``.
        steps: of each APGD (AutoAttack: 100).
        queries: of Square (AutoAttack: 5,000).
        seed: fixes all that is random.
        norm: ``linf`` or ``l2``.
        restarts: of APGD-CE and untargeted APGD-DLR.
        num_targets: classes that targeted APGD-DLR tries for each picture, at most; ≥ 1.
        eight_bits: whether pictures are rounded to multiples of 1/255 inside the ball before the network sees them.
        batch_size: pictures a pass, at most.

    Raises:
        InputError: where a setting or label is out of range.
    """
    problem = Problem.checked(logits_of, pixels, labels, epsilon=epsilon, norm=norm)
    if num_targets < 1:
        raise InputError(f"num_targets must be at least 1. Received: {num_targets}.")
    climb = partial(apgd, steps=steps, seed=seed, norm=norm, eight_bits=eight_bits, batch_size=batch_size)
    attacks: list[Attack] = [partial(climb, loss="ce", restarts=restarts)]
    if problem.classes == 3:
        attacks.append(partial(climb, loss="dlr", restarts=restarts))
    if problem.classes >= 4:
        attacks += [
            partial(_towards, climb, rank) for rank in range(1, min(num_targets, problem.classes - 1) + 1)
        ]
    if norm == "linf":
        search = partial(square, queries=queries, seed=seed, eight_bits=eight_bits, batch_size=batch_size)
        attacks.append(search)
    return in_turn(attacks, logits_of, problem.pixels, problem.labels, epsilon=epsilon)


def _towards(
    climb: "partial[Attacked]", rank: int, logits_of: Logits, pixels: Array, labels: Array, *, epsilon: float
) -> Attacked:
    """Aim at each picture's ``rank``-th likeliest class beside its label."""
    starts = range(0, len(labels), results.BATCH)
    logits = np.concatenate(
        [predict_logits(logits_of, pixels[start : start + results.BATCH]).numpy() for start in starts]
    )
    logits[np.arange(len(labels)), labels] = np.inf
    targets = np.argsort(-logits, axis=1, kind="stable")[:, rank]
    return climb(logits_of, pixels, labels, epsilon=epsilon, loss="targeted-dlr", targets=targets)
