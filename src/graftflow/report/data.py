"""The page's section about the data set: what is in it, what its audit found, what it looks like."""

from collections.abc import Mapping, Sequence
from typing import Any

from graftflow.report import numbers
from graftflow.report.artifacts import Artifacts
from graftflow.report.images import Album

SPLITS = ("train", "validation", "test")
MOST_CLASSES = 200
MOST_LEFT_OUT = 20
MOST_EXAMPLES = 12

# Finding in audit.json: as shown, what was done and what it means.
_FINDINGS = {
    "wrong_format": ("Another format than the name says", "Kept: read by its bytes, not by its name."),
    "grey": (
        "Without colours",
        "Kept. Where one class has most of them, the network may learn that instead.",
    ),
    "plain": (
        "Nearly of one shade",
        "Kept, though there is little to see; not compared with other pictures.",
    ),
    "small": (
        "Small",
        "Kept. Shorter side below {small_side} px or {small_share} of the median: enlarged, so blurred.",
    ),
    "elongated": (
        "Longer than {aspect_ratio} : 1",
        "Kept. Made square for the network, which distorts them.",
    ),
}


def data(artifacts: Artifacts, album: Album) -> dict[str, Any]:
    """The data set, what its audit found and what it looks like."""
    dataset, left_out = artifacts["dataset"], artifacts.left_out()
    audit, counts, found = dataset["audit"], dataset["counts"], artifacts.audit()
    classes = artifacts["evaluation"]["classes"]
    rows = [_class_counts(name, counts) for name in classes]
    largest, smallest = (f(row["total"] for row in rows) for f in (max, min))
    shown = sorted(rows, key=lambda r: r["total"])[:MOST_CLASSES] if len(rows) > MOST_CLASSES else rows
    for row in rows:
        row["share"] = round(100 * row["total"] / max(1, largest), 1)
    return {
        "source": dataset["source"],
        "note": dataset["note"],
        "splits": SPLITS,
        "classes": numbers.plural(len(rows), "class"),
        "rows": shown,
        "more_rows": len(rows) - len(shown),
        "totals": [sum(counts[split].values()) for split in SPLITS],
        "total": sum(row["total"] for row in rows),
        "balance": _balance(smallest, largest),
        "unbalanced": _unbalanced(found["balance"]) if found else "",
        "audit": {
            "pictures": numbers.count(audit["pictures"]),
            "left_out": numbers.count(audit["left_out"]),
            "reasons": _counts(found["left_out"]) if found else [],
            "duplicates": numbers.count(audit["duplicates"]),
            "near": numbers.count(audit["near_duplicates"]) if found else "",
            "converted": numbers.count(audit["converted"]),
            "conversions": _counts(audit.get("conversions") or {}),
            "formats": _counts(audit["formats"]),
            "widths": _range(audit["widths"]),
            "heights": _range(audit["heights"]),
        },
        "findings": _findings(found) if found else None,
        "near": _near(found["near_duplicates"], artifacts, album) if found else None,
        "left_out": left_out[:MOST_LEFT_OUT],
        "more_left_out": max(0, len(left_out) - MOST_LEFT_OUT),
        "contact_sheet": album.add("dataset", artifacts.file("dataset", "contact_sheet.jpg"), side=1800),
    }


def _class_counts(name: str, counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    found = [counts[split].get(name, 0) for split in SPLITS]
    return {"name": name, "counts": found, "total": sum(found)}


def _balance(smallest: int, largest: int) -> str:
    if smallest == largest:
        return f"Every class has {numbers.plural(largest, 'picture')}."
    ratio = f"{largest / smallest:.1f} times as many pictures as" if smallest else "pictures, unlike"
    return f"The largest class ({largest:,}) has {ratio} the smallest ({smallest:,})."


def _unbalanced(balance: Mapping[str, Any]) -> str:
    if not balance["warning"]:
        return ""
    largest, smallest = (
        f"{balance[of]['class']} ({balance[of]['pictures']:,})" for of in ("largest", "smallest")
    )
    return (
        f"{largest} has {balance['ratio']:.1f} times the pictures of {smallest}: a classifier may win accuracy by "
        "naming the large class more often than it should. Look at the recall of the small one."
    )


def _counts(counts: Mapping[str, int]) -> list[str]:
    return [f"{what}: {numbers.count(n)}" for what, n in counts.items()]


def _range(sizes: Mapping[str, float]) -> str:
    low, middle, high = (numbers.count(sizes[name]) for name in ("minimum", "median", "maximum"))
    return f"{low} px, all alike" if low == high else f"{low} to {high} px, median {middle}"


def _findings(audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What there is to know about pictures that were kept, one row a kind that was found."""
    rules = audit["rules"]
    words = {
        "small_side": rules["small_side"],
        "small_share": numbers.short_percent(rules["small_share_of_median"]),
        "aspect_ratio": f"{rules['aspect_ratio']:g}",
    }
    rows = [
        _finding(
            leak["pictures"], f"Copy in {leak['copy_in']}, in {leak['split']}", _LEAK, _paths(leak["rows"])
        )
        for leak in audit["leaks"]
    ]
    near, same = audit["near_duplicates"], audit["duplicates"]
    pairs = [
        (f"{row['first']} | {row['second']}", " | ".join(dict.fromkeys(row["labels"])))
        for row in near["rows"]
    ]
    conflicts = [pair for pair, row in zip(pairs, near["rows"], strict=True) if len(set(row["labels"])) > 1]
    rows.append(_finding(near["conflicting"], "Nearly equal, of two classes", _CONFLICT, conflicts))
    rows.append(_finding(near["pictures"], "Nearly equal to another one", _NEAR, pairs))
    copies = [(" | ".join(paths), numbers.plural(len(paths), "file")) for paths in same["rows"]]
    rows.append(_finding(same["pictures"], "Equal files, beyond the first", _EQUAL, copies))
    for name, (title, meaning) in _FINDINGS.items():
        found = audit["findings"][name]
        examples = [(row["path"], row["detail"]) for row in found["rows"]]
        rows.append(_finding(found["count"], title.format(**words), meaning.format(**words), examples))
    return [row for row in rows if row["count"] != "0"]


_LEAK = "Kept, as the source divides them; they make the score of this split too good."
_CONFLICT = "Kept, all in one split. One of two labels is probably wrong: look at them."
_NEAR = "Kept, a picture and its copies in one split unless the source divides them."
_EQUAL = "Kept, a picture and its copies in one split unless the source divides them."


def _paths(paths: Sequence[str]) -> list[tuple[str, str]]:
    return [(path, "") for path in paths]


def _finding(count: int, title: str, meaning: str, examples: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "title": title,
        "count": numbers.count(count),
        "meaning": meaning,
        "examples": [{"path": path, "detail": detail} for path, detail in examples[:MOST_EXAMPLES]],
        "more": len(examples) > MOST_EXAMPLES,
    }


def _near(near: Mapping[str, Any], artifacts: Artifacts, album: Album) -> dict[str, Any] | None:
    """The sheet of nearly equal pictures, where there are any."""
    if not near["pairs"]:
        return None
    mirrored = f", {near['mirrored']:,} of them mirrored" if near["mirrored"] else ""
    return {
        "sheet": album.add("dataset", artifacts.file("dataset", "near_duplicates.jpg"), side=1400),
        "said": f"{numbers.plural(near['pairs'], 'pair')} in {numbers.plural(near['groups'], 'group')}{mirrored}",
    }
