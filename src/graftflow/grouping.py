"""Which pictures belong together: equal bytes, nearly equal pictures, and groups that the source names."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftflow.audit import MOST_ROWS, LeftOut
from graftflow.conversions import Conversion, Stored
from graftflow.near_duplicates import SIDE, Likes, find_pairs


@dataclass(frozen=True, slots=True)
class Likeness:
    """Two nearly equal pictures, ``first`` before ``second`` by path; the rest as :class:`near_duplicates.Pair`."""

    first: Stored
    second: Stored
    bits: int
    correlation: float
    mirrored: bool

    @property
    def conflicting(self) -> bool:
        """Whether the two are of different classes."""
        return self.first.label != self.second.label


@dataclass(frozen=True, slots=True)
class Summary:
    """What was found of nearly equal pictures, whether the pair was kept or not; pictures by their paths.

    Attributes:
        pairs: how many; where more than 33 pictures are alike, not every pair of them is looked for.
        mirrored: how many of these.
        near: pictures that are nearly equal to another one.
        conflicting: those that are so to one of another class.
        crowded: how many pictures were not compared with all that might be like them.
    """

    pairs: int
    mirrored: int
    near: frozenset[str]
    conflicting: frozenset[str]
    crowded: int


@dataclass(frozen=True, slots=True)
class Grouping:
    """What belongs together.

    Attributes:
        pictures: those that are kept, by path.
        conflicts: those left out because their bytes have two labels.
        equal: pictures with equal bytes, two at least, by path.
        pairs: nearly equal pictures; of equal ones only the first takes part. Where there are thousands, the first
            and the least alike.
        likeness: what all pairs come to.
        copies: equal and nearly equal pictures together, also groups of one.
        groups: these and the source's own groups together, also groups of one: no split may part them.
    """

    pictures: list[Stored]
    conflicts: list[LeftOut]
    equal: list[list[Stored]]
    pairs: list[Likeness]
    likeness: Summary
    copies: list[list[Stored]]
    groups: list[list[Stored]]


def group_pictures(stored: Iterable[Stored], conversion: Conversion) -> Grouping:
    """Group pictures by content and by the groups of their source.

    Args:
        stored: all usable pictures.
        conversion: holds their thumbnails.
    """
    by_content: dict[str, list[Stored]] = defaultdict(list)
    for picture in stored:
        by_content[picture.facts.sha256].append(picture)
    contents, conflicts = [], []
    for same in by_content.values():
        same.sort(key=lambda p: p.path)
        if len({picture.label for picture in same}) == 1:
            contents.append(same)
        else:
            conflicts += [_conflict(picture, same) for picture in same]
    contents.sort(key=lambda same: same[0].path)
    pictures = sorted((p for same in contents for p in same), key=lambda p: p.path)
    comparable = [same[0] for same in contents if same[0].facts.hash >= 0]
    likes = _likes(comparable, conversion)
    links = [(same[0].path, picture.path) for same in contents for picture in same[1:]]
    links += [(comparable[one].path, comparable[two].path) for one, two in likes.links]
    named: dict[str, str] = {}
    own = [(named.setdefault(p.group, p.path), p.path) for p in pictures if p.group]
    return Grouping(
        pictures,
        conflicts,
        [same for same in contents if len(same) > 1],
        [
            Likeness(comparable[p.first], comparable[p.second], p.bits, p.correlation, p.mirrored)
            for p in likes.pairs
        ],
        Summary(
            likes.count,
            likes.mirrored,
            frozenset(comparable[i].path for i in likes.near),
            frozenset(comparable[i].path for i in likes.conflicting),
            likes.crowded,
        ),
        connected(pictures, links),
        connected(pictures, [*links, *own]),
    )


def connected(pictures: Sequence[Stored], links: Iterable[tuple[str, str]]) -> list[list[Stored]]:
    """Return the groups of pictures that links between paths make, in the order of their first pictures."""
    parents: dict[str, str] = {}

    def root(path: str) -> str:
        while (parent := parents.get(path, path)) != path:
            parents[path] = parents.get(parent, parent)  # halve the way for the next time
            path = parent
        return path

    for one, two in links:
        first, second = sorted((root(one), root(two)))
        parents[second] = first
    groups: dict[str, list[Stored]] = defaultdict(list)
    for picture in pictures:
        groups[root(picture.path)].append(picture)
    return list(groups.values())


def leaks(copies: Iterable[Sequence[Stored]], splits: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """Return what is in one split and has a copy in another: ``{(split, split of the copy): paths}``.

    Training comes before validation before test: a test picture with copies in both others counts for training.
    """
    order = ("train", "validation", "test")
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group in copies:
        held = sorted({splits[picture.path] for picture in group}, key=order.index)
        for picture in group if len(held) > 1 else ():
            if splits[picture.path] != held[0]:
                found[splits[picture.path], held[0]].append(picture.path)
    return {key: sorted(found[key]) for key in sorted(found)}


def _conflict(picture: Stored, same: Sequence[Stored]) -> LeftOut:
    other = next(p for p in same if p.label != picture.label)
    reason = f"has the same bytes as '{other.path}', which is of another class"
    return LeftOut(picture.path, picture.label, reason, picture.facts.sha256)


def _likes(comparable: Sequence[Stored], conversion: Conversion) -> Likes:
    def thumbnails(indices: Sequence[int]) -> Any:
        data = b"".join(conversion.thumbnail(comparable[i]) for i in indices)
        return np.frombuffer(data, np.uint8).reshape(len(indices), SIDE, SIDE)

    hashes = [picture.facts.hash for picture in comparable]
    return find_pairs(hashes, thumbnails, labels=[picture.label for picture in comparable], most=MOST_ROWS)
