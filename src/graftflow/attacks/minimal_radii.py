"""The least radius at which an attack fools each picture, by bisection."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftflow.attacks.balls import Norm, distances
from graftflow.attacks.ensembles import Attack
from graftflow.attacks.networks import Logits
from graftflow.attacks.results import Array
from graftflow.errors import InputError


@dataclass(frozen=True)
class MinimalEpsilon:
    """For each of n pictures the least radius found."""

    epsilon: Array  # float64 (n,): 0 where the picture fools as it is, inf where nothing did
    pixels: (
        Array  # float32 (n, h, w, 3): what fooled at that radius; of the others what was found at the largest
    )
    evaluations: Array  # int64 (n,)


def minimal_epsilon(
    attack: Attack,
    logits_of: Logits,
    pixels: Any,
    labels: Any,
    *,
    largest: float,
    tolerance: float = 1.0,
    norm: Norm = "linf",
) -> MinimalEpsilon:
    """Find, picture by picture, the least ε at which an attack fools, by bisection.

    It tries the largest radius first; what it finds may lie nearer than the radius, and then the search goes on from
    there. Pictures that try the same radius are attacked together. Bisection supposes that what a smaller ball holds
    a larger one holds too; a single step such as FGSM's can miss it there, and then a smaller radius than the one
    found may do.

    Args:
        attack: an attack with its settings, such as ``partial(projected_gradient, steps=10, seed=0)``.
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: as the attack wants them.
        largest: radius at which the search begins, > 0.
        tolerance: step between radii, in units of 1/255, > 0; of pictures of 8 bits in L-infinity 1 is exact.
        norm: of the attack: how far a picture moved.

    Returns:
        Radii that are whole multiples of the tolerance, but for ``largest`` itself.

    Raises:
        InputError: where a setting is out of range; what the attack raises.
    """
    if not 0 < tolerance < math.inf:
        raise InputError(f"tolerance must be above 0. Received: {tolerance}.")
    if not 0 < largest < math.inf:
        raise InputError(f"largest must be above 0. Received: {largest}.")
    pixels, labels = np.asarray(pixels, np.float32), np.asarray(labels, np.int64)
    unit = tolerance / 255
    first = attack(logits_of, pixels, labels, epsilon=largest)
    best, evaluations = first.pixels.copy(), first.evaluations.copy()
    # In units of the tolerance: nothing fools at ``low``, something does at ``high``.
    high = np.minimum(_units(first.pixels, pixels, unit, norm), math.ceil(largest / unit - 1e-6))
    low = np.where(high > 0, 0, -1)
    while len(left := np.flatnonzero(first.fooled & (high - low > 1))):
        middle = (low[left] + high[left]) // 2
        for units in np.unique(middle):
            rows = left[middle == units]
            found = attack(logits_of, pixels[rows], labels[rows], epsilon=units * unit)
            evaluations[rows] += found.evaluations
            fooled = rows[found.fooled]
            best[fooled] = found.pixels[found.fooled]
            high[fooled] = np.minimum(units, _units(best[fooled], pixels[fooled], unit, norm))
            low[rows[~found.fooled]] = units
    epsilon = np.where(first.fooled, np.minimum(high * unit, largest), math.inf)
    return MinimalEpsilon(epsilon, best, evaluations)


def _units(moved: Array, original: Array, unit: float, norm: Norm) -> Array:
    """Return how many units reach from the original to where it was moved; float32 is given its last bits."""
    return np.asarray(np.ceil(distances(moved, original, norm) / unit - 1e-4), np.int64)
