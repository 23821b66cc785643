"""The two charts of a comparison of backbones as plain geometry; ``templates/comparison.html.jinja`` draws it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graftflow.report import charts
from graftflow.report.numbers import interval, percent

_COLOURS = 4
_MINUS = "\N{MINUS SIGN}"
# Of a label of 15 units, its size on a narrow screen: width of a letter, height of a line.
_LETTER, _LINE = 8.2, 17.0

Box = tuple[float, float, float, float]  # left, top, right, bottom


def scatter(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy with its interval against milliseconds a picture; areas are megabytes."""
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    times = [row["milliseconds"]["single"] for row in rows]
    x = charts.log_axis("milliseconds a picture (logarithmic)", times, lambda value: f"{value:.3g}")
    ends = [row["accuracy"][end] for row in rows for end in ("low", "value")]
    y = charts.percent_axis("test accuracy", ends, lambda value: percent(value, 0))
    # Dots stand off the frame, so that their areas and labels have room.
    inset = 26
    largest = max(row["megabytes"] for row in rows)

    def across(value: float) -> float:
        return round(left + inset + x.place(value) * (right - left - 2 * inset), 1)

    def up(value: float) -> float:
        return round(bottom - y.place(value) * (bottom - top), 1)

    dots: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        accuracy, megabytes = row["accuracy"], f"{short(row['megabytes'])} MB"
        dots.append(
            {
                "x": across(row["milliseconds"]["single"]),
                "y": up(accuracy["value"]),
                "low": up(accuracy["low"]),
                "high": up(accuracy["high"]),
                "radius": round(3 + 7 * math.sqrt(row["megabytes"] / largest), 1),
                "colour": f"c{number % _COLOURS}",
                "label": f"{_cut(row['label'])}, {megabytes}",
                "note": f"{row['label']}: {percent(accuracy['value'])} ({interval(accuracy)}), "
                f"{short(row['milliseconds']['single'])} ms, {megabytes}",
            }
        )
    _place_labels(dots, left=left, right=right, top=top, bottom=bottom)
    return {
        "x": {"label": x.label, "ticks": [{"at": across(t), "label": x.write(t)} for t in x.ticks]},
        "y": {"label": y.label, "ticks": [{"at": up(t), "label": y.write(t)} for t in y.ticks]},
        "dots": dots,
        "alt": "Test accuracy against milliseconds a picture. "
        + "; ".join(dot["note"] for dot in dots)
        + ".",
    }


def _place_labels(
    dots: list[dict[str, Any]], *, left: float, right: float, top: float, bottom: float
) -> None:
    """Put each dot's label where it covers least of other labels, dots and bars, and nearest to its dot."""
    taken: list[Box] = [
        box
        for dot in dots
        for box in (
            (
                dot["x"] - dot["radius"],
                dot["y"] - dot["radius"],
                dot["x"] + dot["radius"],
                dot["y"] + dot["radius"],
            ),
            (dot["x"] - 2, dot["high"], dot["x"] + 2, dot["low"]),
        )
    ]
    for dot in sorted(dots, key=lambda dot: dot["y"]):
        width, gap = _LETTER * len(dot["label"]), dot["radius"] + 6
        best: tuple[float, float, float, Box] | None = None
        for step in range(-12, 13):
            at = dot["y"] + 4 + step * _LINE / 2
            for start in (dot["x"] + gap, dot["x"] - gap - width, dot["x"] - width / 2):
                box = (start, at - _LINE + 3, start + width, at + 4)
                if start < left or start + width > right or at - 11 < top or at > bottom - 4:
                    continue
                cost = 10 * sum(_overlap(box, other) for other in taken) + abs(step) * _LINE / 2
                if best is None or cost < best[0]:
                    best = (cost, start, at, box)
        if best is None:  # longer than the chart
            best = (0.0, left, dot["y"] + 4, (left, dot["y"] - _LINE, right, dot["y"] + 4))
        _, start, at, box = best
        taken.append(box)
        near = min(max(dot["x"], start), start + width)
        dot.update(
            label_x=round(start, 1), label_y=round(at, 1), near_x=round(near, 1), near_y=round(at - 4, 1)
        )
        dot["leader"] = math.hypot(near - dot["x"], at - 4 - dot["y"]) > gap + 8


def _overlap(one: Box, other: Box) -> float:
    """Return the area, in square units, that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)


def forest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The paired difference of every other backbone to the best, in points of accuracy, with its interval."""
    others = [row for row in rows if row["to_best"]]
    left, right, top, step = 16, charts.WIDTH - charts.RIGHT, charts.TOP, 46
    bottom = top + step * len(others) + 6
    ends = [100 * row["to_best"]["accuracy"][end] for row in others for end in ("low", "high")]
    low, high = min(*ends, -1.0), max(*ends, 1.0)
    spacing = next(s for s in (0.5, 1, 2, 5, 10, 20, 50) if (high - low) / s <= 7 or s == 50)
    ticks = [spacing * k for k in range(math.floor(low / spacing), math.ceil(high / spacing) + 1)]

    def across(value: float) -> float:
        return round(left + 12 + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left - 24), 1)

    lines = []
    for number, row in enumerate(others):
        apart = row["to_best"]["accuracy"]
        lines.append(
            {
                "y": top + step * number + 30,
                "label_y": top + step * number + 14,
                "value": across(100 * apart["difference"]),
                "low": across(100 * apart["low"]),
                "high": across(100 * apart["high"]),
                "colour": f"c{(number + 1) % _COLOURS}",
                "label": f"{_cut(row['label'])}: {points(apart['difference'])} "
                f"({points(apart['low'])} to {points(apart['high'])})",
                "sentence": row["to_best"]["sentence"],
            }
        )
    return {
        "height": bottom + charts.BOTTOM,
        "bottom": bottom,
        "top": top,
        "zero": across(0.0),
        "ticks": [{"at": across(t), "label": f"{t:+g}".replace("-", _MINUS) if t else "0"} for t in ticks],
        "lines": lines,
        "best": rows[0]["label"],
        "alt": f"Difference in accuracy to {rows[0]['label']}. " + "; ".join(n["label"] for n in lines) + ".",
    }


def points(difference: float) -> str:
    """Write a difference of two fractions in points of a hundred, with its sign: ``+1.4``, ``−0.5``, ``0``."""
    value = round(100 * difference, 1)
    return "0" if value == 0 else f"{value:+.1f}".replace("-", _MINUS)


def _cut(label: str, most: int = 26) -> str:
    """Return a label that fits into a chart."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def short(value: float) -> str:
    """Write a size or a time with the digits that matter: ``0.52``, ``8.3``, ``14``, ``1,250``."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
