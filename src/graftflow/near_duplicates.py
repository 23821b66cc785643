"""Find pictures that are nearly equal: copies that were rescaled, encoded again, brightened or mirrored.

A perceptual hash gives candidates, small grey thumbnails confirm them. All of it is whole-number arithmetic, so that
the same pictures give the same pairs on every machine.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
THUMBNAIL_BYTES = SIDE * SIDE
# Bits of 64 that the hashes of a pair may differ in.
MOST_BITS = 7
# Below, in pixels, a picture has too little detail to tell a copy from another picture of the same thing.
SMALLEST_SIDE = 32
# Grey levels (standard deviation over the thumbnail); flatter pictures show nothing that could be compared.
LEAST_CONTRAST = 4.0
# Correlation of the grey values, and of their differences between neighbours (edges and texture). Among 1,578 different
# photographs and tiles (cats and dogs, ImageNet, closeups) no pair of like hashes has more than 0.6 in the second;
# copies of photographs (half the size, JPEG quality 60, 10 % brighter) have 0.98 and more in both.
LEAST_CORRELATION = 0.95
LEAST_DETAIL = 0.8
# Grey levels between the mean of two copies, and how many times the contrast of one may be that of the other.
MOST_BRIGHTER = 40
MOST_CONTRAST_RATIO = 1.6

# Where many pictures are alike. Pairs of a picture from which on one more is looked for only if it would connect two
# groups or be the first that shows a conflict of classes: of a group of up to 33 pictures all pairs are found.
ENOUGH = 32
# Comparisons of either picture's thumbnail after which a pair is not compared: only where the hash tells nothing.
MOST_COMPARED = 512
# Hashes of one bucket that each of it is held against.
MOST_LOOKS = 4096

# Pictures from which on longer bands are quicker: seven times the look-ups, in 32 to 64 times as many buckets.
_MANY = 2**21
_PAIRS_AT_ONCE = 2**16
# 2 MB of numbers, which a cache holds: 9 microseconds a pair, 31 with twice as many.
_COMPARED_AT_ONCE = 64


def _frequencies() -> list[tuple[int, int]]:
    """Return the 64 lowest frequencies (down, across) without the mean."""
    found = [(u, v) for u in range(11) for v in range(11) if 0 < u + v <= 10]
    return sorted(found, key=lambda f: (sum(f), f))[:64]


_DOWN, _ACROSS = (np.array(f) for f in zip(*_frequencies(), strict=True))
_COSINES = np.array(
    [
        [round(4096 * math.cos(math.pi * (2 * x + 1) * u / (2 * SIDE))) for x in range(SIDE)]
        for u in range(11)
    ],
    np.int64,
)
# A mirrored picture has the opposite sign in every odd frequency across.
_MIRROR = np.uint64(sum(1 << i for i, v in enumerate(_ACROSS.tolist()) if v % 2))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nearly equal pictures, by their index: ``first`` < ``second``.

    Attributes:
        first: index of one.
        second: index of the other.
        bits: of 64, in which their hashes differ.
        correlation: of the grey values of their thumbnails.
        mirrored: one is the other seen in a mirror, left and right exchanged.
    """

    first: int
    second: int
    bits: int
    correlation: float
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Likes:
    """What a search found; pictures by their index.

    Attributes:
        pairs: at most as many as were asked for, sorted.
        count: of all pairs found, kept or not; where more than 33 are alike, not every pair of them.
        mirrored: of these pairs.
        near: the pictures that are in a pair.
        conflicting: those that are in one with a picture of another class.
        links: pairs that connect all that pairs connect, and no more than that needs.
        crowded: how many pictures were not compared with all that might be like them.
    """

    pairs: list[Pair]
    count: int
    mirrored: int
    near: frozenset[int]
    conflicting: frozenset[int]
    links: list[tuple[int, int]]
    crowded: int


def thumbnail(image: Image.Image) -> Image.Image:
    """Shrink an upright picture (mode RGB or L) to 32 by 32 pixels, its sides squashed."""
    # Not in two steps (reducing_gap): that drops the last rows, and a mirrored copy would lose others.
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def contrast(grey: bytes) -> float:
    """Return the standard deviation of a thumbnail of 1,024 grey bytes, in grey levels."""
    values = np.frombuffer(grey, np.uint8).astype(np.int64)
    return math.sqrt(int(THUMBNAIL_BYTES * (values * values).sum() - values.sum() ** 2)) / THUMBNAIL_BYTES


def perceptual_hash(grey: bytes) -> int:
    """Hash a thumbnail so that nearly equal pictures differ in few bits.

    Each bit is the sign of one of the 64 lowest frequencies of a cosine transform (Zauner, Implementation and
    Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1), in whole numbers.

    Args:
        grey: 1,024 grey bytes, row by row.

    Returns:
        A whole number from 0 to 2**64 - 1.
    """
    values = np.frombuffer(grey, np.uint8).reshape(SIDE, SIDE).astype(np.int64)
    positive = (_COSINES @ values @ _COSINES.T)[_DOWN, _ACROSS] > 0
    return int.from_bytes(np.packbits(positive, bitorder="little").tobytes(), "little")


def find_pairs(
    hashes: Sequence[int],
    thumbnails: Callable[[Sequence[int]], Any],
    *,
    labels: Sequence[str] = (),
    most: int = 1000,
) -> Likes:
    """Find the pairs of nearly equal pictures; where one is like another as it is and mirrored, the first counts.

    Every pair is a candidate whose hashes differ in at most ``MOST_BITS`` bits. Of n pictures that have nothing in
    common each is held against n / 480 others, from two million on against n / 2,200: work that still grows with the
    square, but takes 5 microseconds a picture at 32,000 and 45 at a million, far less than to decode it. Where many
    are alike, pairs grow with the square, work and memory do not: see ``ENOUGH``, ``MOST_COMPARED`` and ``MOST_LOOKS``.
    The first of these loses no group and no picture of ``near``; the other two may, and ``crowded`` counts where.

    Args:
        hashes: of :func:`perceptual_hash`.
        thumbnails: returns the thumbnails of some indices, ``uint8 (n, 32, 32)``.
        labels: the class of each; without them none conflict.
        most: how many pairs are kept of the first ones and as many of the least alike, conflicting ones before others.
    """
    values = np.array(hashes, np.uint64)
    search = _Search(values, labels, thumbnails, most)
    bands = _bands(len(values))
    for mirrored in (False, True):
        asked = values ^ _MIRROR if mirrored else values
        for i, band in enumerate(bands):
            for first, second in _alike(search, asked, band):
                wrong = asked[first] ^ values[second]
                near = np.bitwise_count(wrong) <= MOST_BITS
                for before in bands[:i]:  # found there already
                    near &= np.bitwise_count(before.of(wrong)) > before.wrong
                if near.any():
                    search.compare(first[near], second[near], np.bitwise_count(wrong[near]), mirrored)
    return search.likes()


@dataclass(frozen=True, slots=True)
class _Band:
    """Some of the 64 bits, from ``shift`` on, of which at most ``wrong`` may differ."""

    shift: int
    bits: int
    wrong: int

    def of(self, values: Any) -> Any:
        return ((values >> np.uint64(self.shift)) & np.uint64(2**self.bits - 1)).astype(np.int64)

    def turns(self) -> list[int]:
        """Return all that may be wrong: nothing, each bit, each two of them."""
        return [
            sum(1 << bit for bit in bits)
            for wrong in range(self.wrong + 1)
            for bits in combinations(range(self.bits), wrong)
        ]


def _bands(pictures: int) -> list[_Band]:
    """Divide the hashes so that a band has few chance finds.

    Pigeonhole: eight wrong bits would be needed to spoil four bands of 16 bits twice each, or one of 22 bits twice and
    two of 21 bits three times. So it is enough to look every band up, as it is and with each of its bits, or each two
    of them, turned: 68 times in 65,536 buckets, or 487 times in two to four millions.
    """
    if pictures < _MANY:
        return [_Band(shift, 16, 1) for shift in range(0, 64, 16)]
    return [_Band(0, 22, 1), _Band(22, 21, 2), _Band(43, 21, 2)]


def _alike(search: "_Search", asked: Any, band: _Band) -> Iterator[tuple[Any, Any]]:
    """Yield arrays of pairs (first < second) that are alike in a band, each pair once."""
    keys, wanted = band.of(search.values), band.of(asked)
    order = np.argsort(keys, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=2**band.bits))])
    sizes = np.diff(starts)
    for turn in band.turns():
        begins = starts[wanted ^ turn]
        counts = starts[(wanted ^ turn) + 1] - begins
        # Of either side of a pair, so that both are dealt with alike.
        crowds = np.maximum(counts, sizes[keys]) > ENOUGH
        for one, places in _ranges(begins, np.where(crowds, 0, counts)):
            two = order[places]
            yield one[one < two], two[one < two]
        if crowds.any():
            yield from _crowds(search, keys, wanted ^ turn, np.flatnonzero(crowds), order)


def _crowds(search: "_Search", keys: Any, wanted: Any, crowds: Any, order: Any) -> Iterator[tuple[Any, Any]]:
    """Yield pairs of pictures in buckets of many, leaving out what is settled."""
    n = len(keys)
    same = np.array_equal(keys, wanted)
    places = np.empty(n, np.int64)
    places[order] = np.arange(n)
    if same:  # Neighbours first: that makes one group of what is alike, and leaves little to do.
        ends = np.searchsorted(keys[order], keys[crowds], "right")
        for one, two in _ranges(places[crowds] + 1, np.minimum(ends - places[crowds] - 1, ENOUGH)):
            yield _sorted(crowds[one], order[two])
    # In every bucket: group by group, in each what is settled last. A picture looks at those behind it alone.
    group, settled = search.standing()
    line = np.lexsort((settled, group))
    ranks, after = np.empty(n, np.int64), np.empty(n, np.int64)
    ranks[line] = np.arange(n)
    after[line] = np.searchsorted(group[line], group[line], "right")
    ranked = np.sort(keys * n + ranks)
    base = wanted[crowds] * n
    behind = np.where(settled, after, ranks + 1)[crowds]
    begins = np.searchsorted(ranked, base + behind)
    counts = np.searchsorted(ranked, base + n) - begins
    search.crowded[crowds[counts > MOST_LOOKS]] = True
    for one, two in _ranges(begins, np.minimum(counts, MOST_LOOKS)):
        first, second = crowds[one], line[ranked[two] % n]
        if same:
            new = np.abs(places[first] - places[second]) > ENOUGH
            first, second = first[new], second[new]
        yield _sorted(first, second)


def _sorted(one: Any, two: Any) -> tuple[Any, Any]:
    return np.minimum(one, two), np.maximum(one, two)


def _ranges(begins: Any, counts: Any) -> Iterator[tuple[Any, Any]]:
    """Yield arrays of row and each of ``counts[row]`` numbers from ``begins[row]`` on, some thousands at once."""
    ends = np.cumsum(counts)
    low = 0
    while low < len(counts):
        before = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")))
        each = counts[low:high]
        one = np.repeat(np.arange(low, high), each)
        within = np.arange(len(one)) - np.repeat(np.cumsum(each) - each, each)
        yield one, np.repeat(begins[low:high], each) + within
        low = high


class _Search:
    """What is known so far: the groups, and of each picture how often it was compared and found like another."""

    def __init__(
        self, values: Any, labels: Sequence[str], thumbnails: Callable[[Sequence[int]], Any], most: int
    ) -> None:
        n = len(values)
        self.values, self._thumbnails, self._most = values, thumbnails, most
        self._kinds = np.unique(np.array(labels), return_inverse=True)[1] if labels else np.zeros(n, int)
        self._parents, self._members = np.arange(n), np.ones(n, int)
        self._pairs, self._compared = np.zeros(n, int), np.zeros(n, int)
        self._conflicting, self.crowded = np.zeros(n, bool), np.zeros(n, bool)
        self._count = self._mirrored = 0
        self._links: list[tuple[int, int]] = []
        self._kept: list[tuple[bool, Pair]] = []

    def likes(self) -> Likes:
        """Return what was found."""
        self._forget()
        return Likes(
            sorted((pair for _, pair in self._kept), key=lambda pair: (pair.first, pair.second)),
            self._count,
            self._mirrored,
            frozenset(np.flatnonzero(self._pairs).tolist()),
            frozenset(np.flatnonzero(self._conflicting).tolist()),
            self._links,
            int(self.crowded.sum()),
        )

    def standing(self) -> tuple[Any, Any]:
        """Return of each picture a number of its group and class, and whether, inside of these, all is known of it.

        Pictures with a known conflict count as a class of their own.
        """
        kinds = np.where(self._conflicting, 0, self._kinds + 1)
        groups = self._roots(np.arange(len(kinds))) * (int(self._kinds.max()) + 2) + kinds
        return groups, self._pairs >= ENOUGH

    def compare(self, first: Any, second: Any, bits: Any, mirrored: bool) -> None:
        """Compare the thumbnails of pairs, unless nothing depends on it, and note those that agree."""
        for low in range(0, len(first), _COMPARED_AT_ONCE):
            part = slice(low, low + _COMPARED_AT_ONCE)
            wanted = self._wanted(first[part], second[part])
            if not wanted.any():
                continue
            one, two = first[part][wanted], second[part][wanted]
            for side in (one, two):
                np.add.at(self._compared, side, 1)
            good, same = _agree(one, two, mirrored, self._thumbnails)
            if mirrored:  # symmetric ones count as they are
                both = good & (np.bitwise_count(self.values[one] ^ self.values[two]) <= MOST_BITS)
                if both.any():
                    good[both] = ~_agree(one[both], two[both], False, self._thumbnails)[0]
            if good.any():
                self._note(one[good], two[good], bits[part][wanted][good], same[good], mirrored)

    def _wanted(self, first: Any, second: Any) -> Any:
        apart = self._roots(first) != self._roots(second)
        exhausted = np.minimum(self._compared[first], self._compared[second]) >= MOST_COMPARED
        for side in (first, second):
            self.crowded[side[apart & exhausted]] = True
        told = np.minimum(self._pairs[first], self._pairs[second]) >= ENOUGH
        conflict = self._kinds[first] != self._kinds[second]
        conflict &= ~(self._conflicting[first] & self._conflicting[second])
        return ~exhausted & (apart | ~told | conflict)

    def _note(self, first: Any, second: Any, bits: Any, same: Any, mirrored: bool) -> None:
        conflict = self._kinds[first] != self._kinds[second]
        for side in (first, second):
            np.add.at(self._pairs, side, 1)
            self._conflicting[side[conflict]] = True
        self._count += len(first)
        self._mirrored += len(first) * mirrored
        for i in np.flatnonzero(self._roots(first) != self._roots(second)).tolist():
            small, large = sorted(
                self._roots(np.array([first[i], second[i]])).tolist(), key=self._members.__getitem__
            )
            if small != large:
                self._parents[small] = large
                self._members[large] += self._members[small]
                self._links.append((int(first[i]), int(second[i])))
        columns = (x.tolist() for x in (conflict, first, second, bits, np.round(same, 4)))
        self._kept += [
            (c, Pair(a, b, wrong, r, mirrored)) for c, a, b, wrong, r in zip(*columns, strict=True)
        ]
        if len(self._kept) > 8 * self._most:
            self._forget()

    def _forget(self) -> None:
        """Keep no more pairs than are shown."""
        first = sorted(self._kept, key=lambda kept: (not kept[0], kept[1].first, kept[1].second))
        doubtful = sorted(first, key=lambda kept: (not kept[0], kept[1].correlation))
        self._kept = list(dict.fromkeys([*first[: self._most], *doubtful[: self._most]]))

    def _roots(self, pictures: Any) -> Any:
        # The smaller group joins the larger one, so that the way to the root is short.
        found = self._parents[pictures]
        while not np.array_equal(above := self._parents[found], found):
            found = above
        return found


def _agree(
    first: Any, second: Any, mirrored: bool, thumbnails: Callable[[Sequence[int]], Any]
) -> tuple[Any, Any]:
    """Return whether the thumbnails of pairs agree, and the correlation of their grey values."""
    pictures, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    # Whole numbers below 2**53: exact, in whatever order they are added.
    pixels = thumbnails(pictures.tolist()).astype(np.float64)
    a, b = pixels[places[: len(first)]], pixels[places[len(first) :]]
    if mirrored:
        a = a[:, :, ::-1]
    same, contrasts = _correlation(a, b)
    detail = np.minimum(*(_correlation(np.diff(a, axis=axis), np.diff(b, axis=axis))[0] for axis in (1, 2)))
    apart = np.abs(a.mean((1, 2)) - b.mean((1, 2)))
    good = (same >= LEAST_CORRELATION) & (detail >= LEAST_DETAIL) & (apart <= MOST_BRIGHTER)
    return good & (np.maximum(contrasts, 1 / contrasts) <= MOST_CONTRAST_RATIO), same


def _correlation(a: Any, b: Any) -> tuple[Any, Any]:
    """Return, picture by picture, the correlation of whole numbers and the ratio of their standard deviations."""
    n = a[0].size
    sums = {id(x): x.sum((1, 2)) for x in (a, b)}
    both, one, two = (
        n * np.einsum("ijk,ijk->i", x, y) - sums[id(x)] * sums[id(y)] for x, y in ((a, b), (a, a), (b, b))
    )
    one, two = np.maximum(one, 1), np.maximum(two, 1)
    return both / np.sqrt(one * two), np.sqrt(one / two)
