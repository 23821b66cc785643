"""The smallest change that fools: each picture's minimal ε, by bisection."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from graftflow.attack_curves import Attack, Shot, counts_pictures_of_8_bits
from graftflow.predictions import Array, in_batches, predict, through_png

# In units of 1/255: below one level radii are told apart this finely, above it by whole levels.
FINEST = 0.125
_LEVEL = 1 / 255


def minimal_radii(
    attack: Attack,
    logits_of: Any,
    pixels: Array,
    labels: Array,
    *,
    radii: Sequence[float],
    fooled: Array,
    steps: int,
    seed: int,
) -> list[float | None]:
    """Narrow down by bisection at which L-infinity radius each picture is fooled first.

    It begins between the radii that were tried. What it finds is an upper bound of the true minimum: a stronger attack
    may find a smaller change.

    Args:
        attack: a row of the table of attacks, untargeted.
        logits_of: the classifier, from pixels to logits.
        pixels: ``float32 (n, s, s, 3)`` of whole 1/255, classified right.
        labels: ``int64 (n,)``.
        radii: e radii, ascending, that were tried.
        fooled: bool (e, n): which pictures any attack has fooled at each radius or a smaller one.
        steps: of the attack.
        seed: fixes its random start.

    Returns:
        For each picture its radius in units of 1/255, to within an eighth of a level below 1 and to a level above;
        ``None`` where the largest radius does not fool it.
    """
    grid = np.array([0.0, *radii]) * 255
    found = [int(np.argmax(column)) + 1 if column.any() else 0 for column in fooled.T]
    high = np.array([grid[i] for i in found])
    low = np.array([grid[max(i - 1, 0)] for i in found])
    while True:
        middle = np.array([_between(a, b) for a, b in zip(low, high, strict=True)])
        open_ones = middle > 0
        if not open_ones.any():
            break
        for value in np.unique(middle[open_ones]):
            chosen = np.flatnonzero(open_ones & (middle == value))
            falls = _falls(
                attack, logits_of, pixels[chosen], labels[chosen], float(value) * _LEVEL, steps, seed
            )
            high[chosen[falls]], low[chosen[~falls]] = value, value
    return [round(float(value), 6) if i else None for i, value in zip(found, high, strict=True)]


def _between(low: float, high: float) -> float:
    """Return the radius to try next, in 1/255; 0 where the two are near enough."""
    step = 1.0 if low >= 1 else FINEST
    if high - low <= step + 1e-9:
        return 0.0
    # From below one level to above it: whole levels first.
    return 1.0 if low < 1 < high else low + step * float(round((high - low) / step / 2))


def _falls(
    attack: Attack, logits_of: Any, pixels: Array, labels: Array, epsilon: float, steps: int, seed: int
) -> Array:
    """Return which pictures the attack fools, bool (n,)."""
    rounded = counts_pictures_of_8_bits("linf", epsilon)
    shot = Shot(logits_of, epsilon, steps, seed, targeted=False, eight_bits=rounded)
    made = in_batches(lambda x, y: attack.run(shot, x, y, np.zeros_like(x)), pixels, labels)
    sent = through_png(made) if rounded else made
    return np.asarray(predict(logits_of, sent).argmax(axis=1) != labels)
