"""Who goes into which split: in proportion, by class, groups whole, the same everywhere."""

import hashlib
import itertools
import random
from collections import Counter

import pytest

from graftflow.errors import InputError
from graftflow.splits import SPLITS, Member, assign_splits, check_seed, divide

FRACTIONS = {"test": 0.15, "validation": 0.15}


def alone(**counts: int) -> list[list[Member]]:
    return [[Member(f"{label}/{i}", label)] for label, n in counts.items() for i in range(n)]


def counted(groups: list[list[Member]], splits: dict[str, str]) -> Counter[tuple[str, str]]:
    assert set(splits) == {member.path for group in groups for member in group}
    assert all(len({splits[member.path] for member in group}) == 1 for group in groups)
    return Counter((member.label, splits[member.path]) for group in groups for member in group)


@pytest.mark.parametrize("count", [3, 4, 7, 50, 333])
@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.15), (0.01, 0.01), (0.4, 0.59)])
def test_every_class_is_in_every_split_in_proportion(count: int, validation: float, test: float) -> None:
    groups = alone(a=count, b=count)
    found = counted(groups, assign_splits(groups, seed=1, fractions={"test": test, "validation": validation}))
    for label in "ab":
        assert all(found[label, split] for split in SPLITS)
        for split, fraction in (("validation", validation), ("test", test)):
            assert abs(found[label, split] - count * fraction) <= 1.0


def scenes(seed: int, count: int = 60) -> list[list[Member]]:
    """Groups of 1 to 9 pictures, of three classes in changing shares, beside pictures that stand alone."""
    draw = random.Random(seed)
    groups = [
        [Member(f"scene{i}/{j}", draw.choice("aab" if i % 2 else "abc")) for j in range(draw.randint(1, 9))]
        for i in range(count)
    ]
    return groups + alone(a=20, c=40)


@pytest.mark.parametrize("seed", range(12))
def test_groups_stay_whole_and_classes_in_proportion(seed: int) -> None:
    groups = scenes(seed)
    found = counted(groups, assign_splits(groups, seed=seed, fractions=FRACTIONS))
    for label in "abc":
        total = sum(found[label, split] for split in SPLITS)
        for split in SPLITS[1:]:
            assert 0.1 < found[label, split] / total < 0.2, (label, split)


@pytest.mark.parametrize("seed", range(12))
def test_where_all_pictures_are_in_mixed_groups_every_class_is_in_every_split(seed: int) -> None:
    draw = random.Random(seed)
    groups = [
        [Member(f"{i}/{j}", draw.choice("aaaaaaab")) for j in range(draw.randint(2, 5))] for i in range(14)
    ]
    groups += [[Member(f"rare{i}/{j}", label) for j, label in enumerate("ac")] for i in range(3)]
    found = counted(groups, assign_splits(groups, seed=seed, fractions=FRACTIONS))
    assert all(found[label, split] for label in "abc" for split in SPLITS)


@pytest.mark.parametrize("seed", range(40))
def test_few_mixed_groups_are_moved_until_every_class_is_in_every_split(seed: int) -> None:
    draw = random.Random(seed)
    groups = [[Member(f"{i}/{j}", draw.choice("abc")) for j in range(draw.randint(1, 4))] for i in range(8)]
    held = [{member.label for member in group} for group in groups]
    possible = any(
        all(
            len({split for split, labels in zip(way, held, strict=True) if label in labels}) == 3
            for label in "abc"
        )
        for way in itertools.product(SPLITS, repeat=len(groups))
    )
    if not possible:
        with pytest.raises(InputError, match="Each class needs pictures in at least 3 groups"):
            assign_splits(groups, seed=seed, fractions=FRACTIONS)
        return
    found = counted(groups, assign_splits(groups, seed=seed, fractions=FRACTIONS))
    assert all(found[label, split] for label in "abc" for split in SPLITS)


def test_a_large_group_goes_to_training() -> None:
    groups = [*alone(a=20, b=20), [Member(f"burst/{i}", "ab"[i % 2]) for i in range(20)]]
    groups.append([Member(f"copies/{i}", "a") for i in range(9)])
    for seed in range(10):
        splits = assign_splits(groups, seed=seed, fractions=FRACTIONS)
        assert splits["burst/0"] == splits["copies/0"] == "train"


def test_the_assignment_depends_on_the_seed_alone() -> None:
    groups = scenes(0)
    first = assign_splits(groups, seed=3, fractions=FRACTIONS)
    mixed = [random.Random(1).sample(group, len(group)) for group in groups]
    random.Random(2).shuffle(mixed)
    assert assign_splits(mixed, seed=3, fractions=FRACTIONS) == first
    assert assign_splits(groups, seed=4, fractions=FRACTIONS) != first
    text = "\n".join(f"{path} {first[path]}" for path in sorted(first))
    # Of any machine and NumPy.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "9e3615ef8d1c7d46"


def test_a_class_in_too_few_groups_is_told() -> None:
    groups = [*alone(a=9), [Member("b/0", "b"), Member("b/1", "b")], [Member("b/2", "b")]]
    with pytest.raises(
        InputError, match=r"at least 3 groups .* Class 'b' has 3 pictures in 2 groups\."
    ) as caught:
        assign_splits(groups, seed=0, fractions=FRACTIONS)
    assert "\n" not in str(caught.value)


def test_the_splits_of_a_source_are_kept() -> None:
    groups = [[m._replace(split=SPLITS[i % 3])] for i, (m,) in enumerate(alone(a=9, b=9))]
    splits, note = divide(groups, seed=0, fractions=FRACTIONS)
    assert splits == {member.path: member.split for group in groups for member in group}
    assert note == "The source's own splits are kept: train, validation, test."


def test_a_split_that_a_source_lacks_is_taken_from_its_training_pictures() -> None:
    groups = [
        [m._replace(split="test" if i % 4 == 0 else "train")] for i, (m,) in enumerate(alone(a=40, b=80))
    ]
    groups.append([Member("a/x", "a", "train"), Member("a/y", "a", "test")])  # copies across the splits
    splits, note = divide(groups, seed=0, fractions={"test": 0.15, "validation": 0.2})
    assert all(splits[m.path] == "test" for group in groups for m in group if m.split == "test")
    assert Counter(splits.values()) == {"test": 31, "validation": 6 + 12, "train": 121 - 30 - 18}
    assert note.startswith(
        "The source's own splits are kept: train, test. It has none for validation: 20 % of"
    )


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"a": "test", "b": "test"}, r"must include train\. Received: test"),
        ({"a": "train", "b": "validation"}, "Class 'a' has none in validation, only in train, test"),
    ],
)
def test_splits_of_a_source_that_cannot_be_used_are_told(given: dict[str, str], pattern: str) -> None:
    groups = [[m._replace(split=given[m.label])] for (m,) in alone(a=9, b=9)]
    with pytest.raises(InputError, match=pattern):
        divide(groups, seed=0, fractions=FRACTIONS)


def test_seeds_are_what_numpy_takes() -> None:
    check_seed(0)
    check_seed(2**63 - 1)
    for seed in (-1, 2**63):
        with pytest.raises(InputError, match=f"seed must be a whole number from 0 .* Received: {seed}"):
            check_seed(seed)
