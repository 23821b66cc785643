"""Divide pictures among training, validation and test: by class, seeded, groups kept together."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from graftflow.errors import InputError

SPLITS = ("train", "validation", "test")


class Member(NamedTuple):
    """A picture to be divided: its path, its class and the split that its source puts it into, or ``""``."""

    path: str
    label: str
    split: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Pictures that stay together; ``key`` is the lot drawn for them."""

    paths: tuple[str, ...]
    counts: Mapping[str, int]
    key: int

    @property
    def rank(self) -> tuple[int, int]:
        return len(self.paths), self.key


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


def divide(
    groups: Sequence[Sequence[Member]], *, seed: int, fractions: Mapping[str, float]
) -> tuple[dict[str, str], str]:
    """Divide pictures as their source does or, where it does not, by fractions.

    Where the source has no validation or no test pictures, those are taken from its training pictures: the fraction
    of them, by class.

    Args:
        groups: as for :func:`assign_splits`; all pictures have a split, or none has.
        seed: as for :func:`assign_splits`.
        fractions: share of ``test`` and of ``validation``.

    Returns:
        The split of every path, and a note on splits of the source, or ``""``.

    Raises:
        InputError: as :func:`assign_splits`; the source has no training pictures, or a class is in only some of its
            splits.
    """
    own = {member.split for group in groups for member in group if member.split}
    if not own:
        return assign_splits(groups, seed=seed, fractions=fractions), ""
    if "train" not in own:
        raise InputError(f"Splits of a source must include train. Received: {', '.join(sorted(own))}.")
    missing = {split: share for split, share in fractions.items() if split not in own}
    splits = {member.path: member.split for group in groups for member in group}
    if missing:
        training = [[m for m in group if m.split == "train"] for group in groups]
        splits |= assign_splits([group for group in training if group], seed=seed, fractions=missing)
    counts = Counter((member.label, splits[member.path]) for group in groups for member in group)
    for label in sorted({label for label, _ in counts}):
        for split in SPLITS:
            if not counts[label, split]:
                had = ", ".join(s for s in SPLITS if counts[label, s])
                raise InputError(
                    f"Splits of a source must all hold pictures of each class. Class '{label}' has none in "
                    f"{split}, only in {had}."
                )
    note = f"The source's own splits are kept: {', '.join(s for s in SPLITS if s in own)}."
    for split, share in missing.items():
        note += f" It has none for {split}: {100 * share:g} % of its training pictures were taken, by class."
    return splits, note


def assign_splits(
    groups: Iterable[Sequence[Member]], *, seed: int, fractions: Mapping[str, float]
) -> dict[str, str]:
    """Divide pictures among ``train`` and the splits held out, by class; groups are never divided.

    A class of n pictures gives about ``n * fraction``, and at least one, to each split held out; exactly so, rounded,
    where its pictures stand alone. Groups that hold several classes are placed first, the largest before the others,
    each where the counts come nearest to what is wanted; the groups of one class then fill what is missing, small
    ones first, so that large ones go to training.

    Args:
        groups: pictures that must not be divided, mostly one each.
        seed: fixes who goes where, on every machine, whatever order the groups come in.
        fractions: share of each split held out, e.g. ``{"test": 0.15, "validation": 0.15}``.

    Returns:
        The split of every path.

    Raises:
        InputError: a class has fewer groups than there are splits, or cannot be in all of them because of groups that
            it shares with other classes.
    """
    drawn = _draw(groups, seed)
    by_label: dict[str, list[_Group]] = defaultdict(list)
    for group in drawn:
        for label in group.counts:
            by_label[label].append(group)
    names = [*fractions, "train"]
    wanted: dict[str, dict[str, int]] = {}
    for label in sorted(by_label):
        if len(by_label[label]) < len(names):
            raise _too_few(label, by_label[label], names)
        count = sum(group.counts[label] for group in by_label[label])
        wanted[label] = {split: max(1, int(count * share + 0.5)) for split, share in fractions.items()}
        wanted[label]["train"] = max(1, count - sum(wanted[label].values()))
    given: dict[str, Counter[str]] = {label: Counter() for label in wanted}
    placed: dict[_Group, str] = {}

    def place(group: _Group, split: str) -> None:
        placed[group] = split
        for label, count in group.counts.items():
            given[label][split] += count

    mixed = [group for group in drawn if len(group.counts) > 1]
    for group in sorted(mixed, key=lambda g: (-len(g.paths), g.key)):
        place(group, min(names[::-1], key=lambda split: _misfit(group, split, given, wanted)))
    for label, found in by_label.items():
        alone = deque(sorted((g for g in found if len(g.counts) == 1), key=lambda g: g.rank))
        for i, split in enumerate(fractions):
            quota, to_come = wanted[label][split], sum(not given[label][later] for later in names[i + 1 :])
            while len(alone) > to_come and _helps(given[label][split], len(alone[0].paths), quota):
                place(alone.popleft(), split)
        for group in alone:
            place(group, "train")
    _mend(placed, given, names)
    return {path: split for group, split in placed.items() for path in group.paths}


def shuffled(paths: Sequence[str], *, seed: int) -> list[str]:
    """Return paths in an order that depends on the seed alone, so that classes are mixed."""
    ordered = sorted(paths)
    keys = np.random.PCG64([seed, 1]).random_raw(len(ordered))
    return [ordered[i] for i in np.argsort(keys, kind="stable")]


def _draw(groups: Iterable[Sequence[Member]], seed: int) -> list[_Group]:
    """Draw a lot for each group, in an order that does not depend on the order given."""
    ordered = sorted((min(m.label for m in group), sorted(group)) for group in groups)
    # random_raw is what NumPy promises to keep the same over its versions.
    keys = np.random.PCG64(seed).random_raw(len(ordered)).tolist()
    return [
        _Group(tuple(m.path for m in members), dict(Counter(m.label for m in members)), key)
        for (_, members), key in zip(ordered, keys, strict=True)
    ]


def _helps(given: int, size: int, quota: int) -> bool:
    return given == 0 or abs(given + size - quota) < abs(given - quota)


def _misfit(
    group: _Group, split: str, given: Mapping[str, Counter[str]], wanted: Mapping[str, Mapping[str, int]]
) -> float:
    """Return how much worse the squared distance from what is wanted becomes, relative to what is wanted."""
    # fsum, because sum rounds differently before Python 3.12.
    return math.fsum(
        count * (2 * (given[label][split] - wanted[label][split]) + count) / wanted[label][split]
        for label, count in sorted(group.counts.items())
    )


def _mend(placed: dict[_Group, str], given: Mapping[str, Counter[str]], names: Sequence[str]) -> None:
    """Move groups until every class is in every split: the smallest whose classes can all spare it."""
    for label in given:
        for split in names:
            if given[label][split]:
                continue
            spare = [
                group
                for group, source in placed.items()
                if label in group.counts and all(given[c][source] > n for c, n in group.counts.items())
            ]
            if not spare:
                raise _too_few(label, [group for group in placed if label in group.counts], names)
            group = min(spare, key=lambda g: g.rank)
            for name, count in group.counts.items():
                given[name][placed[group]] -= count
                given[name][split] += count
            placed[group] = split


def _too_few(label: str, groups: Sequence[_Group], names: Sequence[str]) -> InputError:
    count = sum(group.counts[label] for group in groups)
    return InputError(
        f"Each class needs pictures in at least {len(names)} groups that can be parted, one for each of "
        f"{', '.join(sorted(names, key=SPLITS.index))}; copies and pictures of one group stay together. "
        f"Class '{label}' has {count} picture{'s' * (count != 1)} in {len(groups)} group{'s' * (len(groups) != 1)}."
    )
