"""What an audit says about a data set: ``audit.json``, and the counts of it that ``dataset.json`` repeats."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from graftflow import near_duplicates
from graftflow.audit import MOST_ROWS, LeftOut
from graftflow.conversions import Stored
from graftflow.grouping import Grouping

# Pixels of the shorter side, and its share of the data set's median, below which a picture is called small.
SMALL_SIDE = 64
SMALL_SHARE = 0.25
# Longer side : shorter side above which a picture is called elongated: resizing to a square distorts it.
ASPECT_RATIO = 3.0
# Pictures of the largest class : of the smallest, from which the data set is called unbalanced.
IMBALANCE = 3.0

# Formats that a suffix stands for; a name without one of these promises nothing.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_FORMATS = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
# How a reason begins, and what all reasons of its kind are counted as.
_KINDS = {
    "is an empty file": "empty",
    "is truncated": "truncated",
    "has a broken header": "broken header",
    "is no JPEG": "no picture",
    "cannot be decoded": "cannot be decoded",
    "cannot be read": "cannot be read",
    "has the same bytes as": "equal bytes in two classes",
    "stands beside": "beside the class folders",
}


def describe(
    grouping: Grouping,
    left_out: Sequence[LeftOut],
    leaked: Mapping[tuple[str, str], Sequence[str]],
) -> dict[str, Any]:
    """Return what ``audit.json`` says; ``docs/architecture.md`` describes it.

    Args:
        grouping: the pictures that are kept, one at least, and what belongs together.
        left_out: all pictures that are not kept.
        leaked: of :func:`graftflow.grouping.leaks`.
    """
    pictures = grouping.pictures
    side = statistics.median(min(p.facts.width, p.facts.height) for p in pictures)
    likeness = grouping.likeness
    conversions = Counter(p.facts.converted for p in pictures if p.facts.converted)
    return {
        "pictures": len(pictures),
        "left_out": dict(Counter(_kind(p.reason) for p in left_out).most_common()),
        "conversions": dict(sorted(conversions.items())),
        "rules": {
            "small_side": SMALL_SIDE,
            "small_share_of_median": SMALL_SHARE,
            "aspect_ratio": ASPECT_RATIO,
            "imbalance": IMBALANCE,
            "near_duplicate_bits": near_duplicates.MOST_BITS,
            "near_duplicate_correlation": near_duplicates.LEAST_CORRELATION,
            "near_duplicate_smallest_side": near_duplicates.SMALLEST_SIDE,
            "most_rows": MOST_ROWS,
        },
        "balance": _balance(pictures),
        "findings": {
            "wrong_format": _rows(
                (p.path, f"{p.facts.format} inside {PurePosixPath(p.path).suffix}")
                for p in pictures
                if _FORMATS.get(PurePosixPath(p.path).suffix.lower(), p.facts.format)
                not in (p.facts.format, _ALIKE.get(p.facts.format))
            ),
            "converted": _rows((p.path, p.facts.converted) for p in pictures if p.facts.converted),
            "grey": _rows((p.path, "no colours") for p in pictures if p.facts.grey),
            "plain": _rows((p.path, "hardly more than one shade of grey") for p in pictures if p.facts.plain),
            "small": _rows((p.path, _size(p)) for p in pictures if _small(p, side)),
            "elongated": _rows((p.path, _size(p)) for p in pictures if _elongated(p)),
        },
        "duplicates": {
            "pictures": sum(len(same) - 1 for same in grouping.equal),
            "groups": len(grouping.equal),
            "rows": [[p.path for p in same] for same in grouping.equal[:MOST_ROWS]],
        },
        "near_duplicates": {
            "pictures": len(likeness.near),
            "pairs": likeness.pairs,
            "groups": sum(any(p.path in likeness.near for p in group) for group in grouping.copies),
            "mirrored": likeness.mirrored,
            "conflicting": len(likeness.conflicting),
            "rows": [
                {
                    "first": pair.first.path,
                    "second": pair.second.path,
                    "labels": [pair.first.label, pair.second.label],
                    "bits": pair.bits,
                    "correlation": pair.correlation,
                    "mirrored": pair.mirrored,
                }
                for pair in sorted(grouping.pairs, key=lambda pair: not pair.conflicting)[:MOST_ROWS]
            ],
        },
        "leaks": [
            {"split": split, "copy_in": other, "pictures": len(paths), "rows": list(paths[:MOST_ROWS])}
            for (split, other), paths in leaked.items()
        ],
    }


def summarise(audit: Mapping[str, Any], grouping: Grouping) -> dict[str, Any]:
    """Return what ``dataset.json`` says of the audit: counts alone.

    Args:
        audit: of :func:`describe`.
        grouping: as there.
    """
    facts = [picture.facts for picture in grouping.pictures]
    near, findings = audit["near_duplicates"], audit["findings"]
    return {
        "pictures": audit["pictures"],
        "left_out": sum(audit["left_out"].values()),
        "duplicates": audit["duplicates"]["pictures"],
        "near_duplicates": near["pictures"],
        "near_conflicts": near["conflicting"],
        "leaks": sum(leak["pictures"] for leak in audit["leaks"]),
        "converted": findings["converted"]["count"],
        "conversions": audit["conversions"],
        **{name: findings[name]["count"] for name in ("wrong_format", "grey", "plain", "small", "elongated")},
        "imbalance": audit["balance"]["ratio"],
        "formats": dict(Counter(f.format for f in facts).most_common()),
        "widths": _spread_of([f.width for f in facts]),
        "heights": _spread_of([f.height for f in facts]),
    }


def leak_notes(audit: Mapping[str, Any]) -> str:
    """Return a sentence for each pair of splits that share copies, or ``""``."""
    return " ".join(
        f"{leak['pictures']:,} picture{'s have' if leak['pictures'] > 1 else ' has'} an equal or nearly equal copy "
        f"across the source's splits: in {leak['split']}, with the copy in {leak['copy_in']}."
        for leak in audit["leaks"]
    )


def crowd_note(grouping: Grouping) -> str:
    """Return a sentence on pictures that were not compared with all that might be copies of them, or ``""``."""
    crowded = grouping.likeness.crowded
    if not crowded:
        return ""
    return (
        f"{crowded:,} picture{'s have' if crowded > 1 else ' has'} so many others of like outlines that not all of "
        f"them were compared: copies among these may be in two splits."
    )


# Pillow names a BMP without its file header DIB.
_ALIKE = {"DIB": "BMP"}


def _rows(found: Iterable[tuple[str, str]]) -> dict[str, Any]:
    rows = [{"path": path, "detail": detail} for path, detail in found]
    return {"count": len(rows), "rows": rows[:MOST_ROWS]}


def _kind(reason: str) -> str:
    """Return a reason without what is of one picture only."""
    return next((kind for start, kind in _KINDS.items() if reason.startswith(start)), reason)


def _small(picture: Stored, median: float) -> bool:
    return min(picture.facts.width, picture.facts.height) < max(SMALL_SIDE, SMALL_SHARE * median)


def _elongated(picture: Stored) -> bool:
    sides = sorted((picture.facts.width, picture.facts.height))
    return sides[1] > ASPECT_RATIO * sides[0]


def _size(picture: Stored) -> str:
    return f"{picture.facts.width} × {picture.facts.height} px"


def _balance(pictures: Sequence[Stored]) -> dict[str, Any]:
    counts = Counter(picture.label for picture in pictures)
    ordered = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    (smallest, few), (largest, many) = ordered[0], ordered[-1]
    return {
        "largest": {"class": largest, "pictures": many},
        "smallest": {"class": smallest, "pictures": few},
        "ratio": round(many / few, 3),
        "warning": many / few >= IMBALANCE,
    }


def _spread_of(values: Sequence[int]) -> dict[str, float]:
    return {"minimum": min(values), "median": statistics.median(values), "maximum": max(values)}
