"""Find pictures that are nearly equal: copies that were rescaled, encoded again, brightened or mirrored.

A perceptual hash gives candidates, small grey thumbnails confirm them. All of it is whole-number arithmetic, so that
the same pictures give the same pairs on every machine.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
THUMBNAIL_BYTES = SIDE * SIDE
# Bits of 64 that the hashes of a pair may differ in: what four bands of 16 bits find without a gap when each may have
# one wrong bit, because eight wrong bits would be needed to spoil all four twice.
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

_BANDS, _BAND_BITS = 4, 16
_BAND = np.uint64(2**_BAND_BITS - 1)
_PAIRS_AT_ONCE = 2**16


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


def find_pairs(hashes: Sequence[int], thumbnails: Callable[[Sequence[int]], Any]) -> list[Pair]:
    """Find all pairs of nearly equal pictures; the time grows with the pictures, not with their square.

    Args:
        hashes: of :func:`perceptual_hash`.
        thumbnails: returns the thumbnails of some indices, ``uint8 (n, 32, 32)``.

    Returns:
        The pairs, sorted; where a picture is like another one both ways, as it is and mirrored, the first way counts.
    """
    found: dict[tuple[int, int], Pair] = {}
    values = np.array(hashes, np.uint64)
    for mirrored in (False, True):
        for first, second, bits in _candidates(values, mirrored):
            for pair in _confirmed(first, second, bits, mirrored, thumbnails):
                found.setdefault((pair.first, pair.second), pair)
    return [found[key] for key in sorted(found)]


def _candidates(values: Any, mirrored: bool) -> Iterator[tuple[Any, Any, Any]]:
    """Yield ``(first, second, bits)`` arrays of pairs whose hashes differ in at most ``MOST_BITS`` bits.

    Pigeonhole: of four bands of 16 bits, one at least differs in at most one bit; so it is enough to look every band
    up, as it is and with each of its bits turned.
    """
    asked = values ^ _MIRROR if mirrored else values
    turns = [0, *(1 << bit for bit in range(_BAND_BITS))]
    for band in range(_BANDS):
        shift = np.uint64(band * _BAND_BITS)
        keys = ((values >> shift) & _BAND).astype(np.int64)
        wanted = ((asked >> shift) & _BAND).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(2**_BAND_BITS + 1))
        for turn in turns:
            begin, counts = starts[wanted ^ turn], starts[(wanted ^ turn) + 1] - starts[wanted ^ turn]
            for low, high in _slices(counts):
                each = counts[low:high]
                first = np.repeat(np.arange(low, high), each)
                within = np.arange(len(first)) - np.repeat(np.cumsum(each) - each, each)
                second = order[np.repeat(begin[low:high], each) + within]
                first, second = first[first < second], second[first < second]
                wrong = asked[first] ^ values[second]
                near = np.bitwise_count(wrong) <= MOST_BITS
                for before in range(band):  # found there already
                    near &= np.bitwise_count((wrong >> np.uint64(before * _BAND_BITS)) & _BAND) > 1
                if near.any():
                    yield first[near], second[near], np.bitwise_count(wrong[near])


def _slices(counts: Any) -> Iterator[tuple[int, int]]:
    """Cut a range where the counts before reach a limit, so that many like pictures do not fill the memory."""
    ends = np.cumsum(counts)
    low = 0
    while low < len(counts):
        before = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")))
        yield low, high
        low = high


def _confirmed(
    first: Any, second: Any, bits: Any, mirrored: bool, thumbnails: Callable[[Sequence[int]], Any]
) -> Iterator[Pair]:
    """Yield the candidates whose thumbnails agree."""
    for low in range(0, len(first), 1024):
        one, two = first[low : low + 1024], second[low : low + 1024]
        a, b = (thumbnails(indices.tolist()).astype(np.int64) for indices in (one, two))
        if mirrored:
            a = a[:, :, ::-1]
        same, contrasts = _correlation(a.reshape(len(a), -1), b.reshape(len(b), -1))
        detail = np.minimum(*(_detail(a, b, axis) for axis in (1, 2)))
        apart = np.abs(a.mean((1, 2)) - b.mean((1, 2)))
        good = (same >= LEAST_CORRELATION) & (detail >= LEAST_DETAIL) & (apart <= MOST_BRIGHTER)
        good &= np.maximum(contrasts, 1 / contrasts) <= MOST_CONTRAST_RATIO
        for i in np.flatnonzero(good).tolist():
            yield Pair(int(one[i]), int(two[i]), int(bits[low + i]), round(float(same[i]), 4), mirrored)


def _detail(a: Any, b: Any, axis: int) -> Any:
    n = len(a)
    return _correlation(np.diff(a, axis=axis).reshape(n, -1), np.diff(b, axis=axis).reshape(n, -1))[0]


def _correlation(a: Any, b: Any) -> tuple[Any, Any]:
    """Return, row by row, the correlation of whole numbers and the ratio of their standard deviations."""
    n = a.shape[1]
    both, one, two = (n * (x * y).sum(1) - x.sum(1) * y.sum(1) for x, y in ((a, b), (a, a), (b, b)))
    one, two = (np.maximum(variance, 1).astype(np.float64) for variance in (one, two))
    return both / np.sqrt(one * two), np.sqrt(one / two)
