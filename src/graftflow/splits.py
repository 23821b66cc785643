"""Divide pictures among training, validation and test: by class, seeded, copies kept together."""

from collections.abc import Mapping, Sequence

import numpy as np

from graftflow.errors import InputError

SPLITS = ("train", "validation", "test")


def check_fractions(*, validation_fraction: float, test_fraction: float) -> None:
    """Check that every split gets a share.

    Raises:
        InputError: a fraction is not between 0 and 1, or the two leave nothing to train on.
    """
    for name, value in (("validation", validation_fraction), ("test", test_fraction)):
        if not 0.0 < value < 1.0:
            raise InputError(f"{name}_fraction must be above 0 and below 1. Received: {value}.")
    if validation_fraction + test_fraction >= 1.0:
        raise InputError(
            f"validation_fraction and test_fraction together must be below 1, the rest is for "
            f"training. Received: {validation_fraction} + {test_fraction}."
        )


def check_seed(seed: int) -> None:
    """Check that a seed is a whole number from 0 to 2**63 - 1.

    Raises:
        InputError: it is not.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1. Received: {seed}.")


def assign_splits(
    classes: Mapping[str, Sequence[Sequence[str]]],
    *,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
) -> dict[str, str]:
    """Divide the pictures of every class among the splits.

    A class of n pictures gives about ``n * fraction``, and at least one, to test and to validation.
    Groups of copies are never divided; larger ones go to training first.

    Args:
        classes: for every class its groups, at least three; a group lists the paths of pictures
            with equal bytes, mostly one.
        seed: fixes who goes where, on every machine, whatever order the groups come in.
        validation_fraction: share of validation.
        test_fraction: share of test.

    Returns:
        The split of every path.
    """
    # random_raw is what NumPy promises to keep the same over its versions.
    generator = np.random.PCG64(seed)
    splits: dict[str, str] = {}
    for label in sorted(classes):
        groups = sorted(sorted(group) for group in classes[label])
        keys = generator.random_raw(len(groups))
        order = sorted(range(len(groups)), key=lambda i: (len(groups[i]), keys[i]))
        count = sum(map(len, groups))
        quotas = {
            "test": max(1, int(count * test_fraction + 0.5)),
            "validation": max(1, int(count * validation_fraction + 0.5)),
        }
        position = 0
        for to_come, (split, quota) in zip((2, 1), quotas.items(), strict=True):
            given = 0
            while given < quota and position < len(order) - to_come:
                group = groups[order[position]]
                splits.update(dict.fromkeys(group, split))
                given += len(group)
                position += 1
        for i in order[position:]:
            splits.update(dict.fromkeys(groups[i], "train"))
    return splits


def shuffled(paths: Sequence[str], *, seed: int) -> list[str]:
    """Return paths in an order that depends on the seed alone, so that classes are mixed."""
    ordered = sorted(paths)
    keys = np.random.PCG64([seed, 1]).random_raw(len(ordered))
    return [ordered[i] for i in np.argsort(keys, kind="stable")]
