"""A comparison of backbones as figures, as the texts of a table, and as one HTML page."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from graftflow import backbone_measurements, comparisons, files
from graftflow.errors import InputError
from graftflow.report import charts
from graftflow.report.numbers import NOTHING, decimal, interval, names, percent, plural

_COLOURS = 4
_MINUS = "\N{MINUS SIGN}"
# Of a label of 15 units, its size on a narrow screen: width of a letter, height of a line.
_LETTER, _LINE = 7.4, 16.0


def compare_measurements(
    measurement_paths: Sequence[str | Path], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Rank measured backbones, and compare each with the best one picture by picture.

    The best has the highest test accuracy; of equal ones, that of the lower log loss. The fastest is the one with the
    fewest milliseconds a picture among the best and those that the test pictures cannot tell from it.

    Args:
        measurement_paths: folders that :func:`graftflow.backbone_measurements.write_measurement` wrote, of one
            data set.
        resamples: of the paired bootstrap.
        seed: fixes them.

    Returns:
        ``{"best": name or "", "fastest": name or "", "pictures", "confidence", "rows": [measurement, with "to_best":
        what :func:`graftflow.comparisons.compare_predictions` returns for it and the best, None for the best and for
        what was not measured]}``, best first, what was not measured last.

    Raises:
        InputError: for a folder that holds no measurement, or measurements of different test pictures.
    """
    found = [(_read(path), Path(path)) for path in measurement_paths]
    if not found:
        raise InputError("A comparison needs at least one measurement. Received: none")
    measured = sorted(
        ((row, path) for row, path in found if not row["error"]), key=lambda pair: _rank(pair[0])
    )
    rows: list[dict[str, Any]] = []
    for row, path in measured:
        to_best = None
        if rows:
            to_best = comparisons.compare_evaluations(
                path, measured[0][1], resamples=resamples, seed=seed, names=(_shown(row), _shown(rows[0]))
            )
        rows.append({**row, "to_best": to_best})
    alike = [row for row in rows if row["to_best"] is None or not _is_worse(row)]
    return {
        "best": rows[0]["name"] if rows else "",
        "fastest": min(alike, key=lambda row: row["milliseconds"]["single"])["name"] if alike else "",
        "pictures": rows[0]["pictures"] if rows else 0,
        "confidence": comparisons.CONFIDENCE,
        "rows": rows + [{**row, "to_best": None} for row, _ in found if row["error"]],
    }


def _read(path: str | Path) -> dict[str, Any]:
    file = Path(path) / backbone_measurements.FILE
    try:
        content = files.read_json(file)
        if not isinstance(content["name"], str) or not isinstance(content["error"], str):
            raise ValueError("its name or error is missing")
        if not content["error"]:
            _rank(content)
        return dict(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"A measurement must hold a readable {file.name}. Received: '{path}' ({reason})"
        ) from error


def _rank(row: Mapping[str, Any]) -> tuple[float, float, float]:
    return -row["accuracy"]["value"], row["log_loss"]["value"], row["milliseconds"]["single"]


def _is_worse(row: Mapping[str, Any]) -> bool:
    return bool(row["to_best"]["p"] < comparisons.SIGNIFICANCE)


def refuse_nothing_measured(comparison: Mapping[str, Any]) -> None:
    """Raise InputError where no backbone at all could be measured; says why for each."""
    if not comparison["best"]:
        reasons = "; ".join(f"{row['name']}: {row['error']}" for row in comparison["rows"])
        raise InputError(f"At least one backbone must be measured. Received: {reasons}")


def table_rows(comparison: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the texts of the table of a comparison, a row a measured backbone, best first.

    Each row has ``name``, ``accuracy``, ``interval``, ``log_loss``, ``single`` and ``batch`` (milliseconds a picture),
    ``megabytes``, ``seconds`` (features and head), ``difference`` and ``difference_interval`` (points of
    accuracy to the best) and ``p``.
    """
    rows = []
    for row in comparison["rows"]:
        if row["error"]:
            continue
        texts = {
            "name": _shown(row),
            "accuracy": percent(row["accuracy"]["value"]),
            "interval": interval(row["accuracy"]),
            "log_loss": decimal(row["log_loss"]["value"]),
            "single": _short(row["milliseconds"]["single"]),
            "batch": _short(row["milliseconds"]["batch"]),
            "megabytes": _short(row["megabytes"]),
            "seconds": _short(row["seconds"]["features"] + row["seconds"]["head"])
            + "*" * bool(row["cached"]),
            "difference": NOTHING,
            "difference_interval": "",
            "p": "best",
        }
        if row["to_best"]:
            apart = row["to_best"]["accuracy"]
            texts["difference"] = points(apart["difference"])
            texts["difference_interval"] = f"{points(apart['low'])} to {points(apart['high'])}"
            texts["p"] = comparisons.written_p(row["to_best"]["p"]).removeprefix("p = ").removeprefix("p ")
        rows.append(texts)
    return rows


def points(difference: float) -> str:
    """Write a difference of two fractions in points of a hundred, with its sign: ``+1.4``, ``−0.5``, ``0``."""
    value = round(100 * difference, 1)
    return "0" if value == 0 else f"{value:+.1f}".replace("-", _MINUS)


def summary(comparison: Mapping[str, Any]) -> str:
    """Say in one or two sentences which backbone to take."""
    rows = [row for row in comparison["rows"] if not row["error"]]
    if not rows:
        return "No backbone could be measured."
    tested = plural(comparison["pictures"], "test picture")
    alike = [_shown(row) for row in rows[1:] if not _is_worse(row)]
    worse = [_shown(row) for row in rows[1:] if _is_worse(row)]
    best = f"{_shown(rows[0])} has the highest accuracy on {tested}, {percent(rows[0]['accuracy']['value'])}"
    parts = []
    if alike:
        parts.append(f"{names(alike)} cannot be told from it on so many pictures")
    if worse:
        parts.append(f"{names(worse)} {'is' if len(worse) == 1 else 'are'} worse")
    told = f"{best}; {'; '.join(parts)}." if parts else f"{best}."
    if comparison["fastest"] == comparison["best"] or not alike:
        return told
    fastest = next(row for row in rows if row["name"] == comparison["fastest"])
    milliseconds = f"{_short(fastest['milliseconds']['single'])} ms a picture"
    return f"{told} {_shown(fastest)} answers fastest of {'both' if len(alike) == 1 else 'them'}: {milliseconds}."


def write_comparison(
    destination: str | Path,
    page: str | Path,
    *,
    measurement_paths: Sequence[str | Path],
    seed: int = 0,
) -> dict[str, Any]:
    """Write ``comparison.json`` into an existing folder, and the page.

    Args:
        destination: an existing folder; becomes a ``comparison`` artifact.
        page: the HTML file to write; it runs no script and loads nothing.
        measurement_paths: see :func:`compare_measurements`.
        seed: fixes the bootstrap.

    Returns:
        What stands in ``comparison.json``: see :func:`compare_measurements`.
    """
    comparison = compare_measurements(measurement_paths, seed=seed)
    files.write_json(Path(destination) / "comparison.json", comparison)
    environment = Environment(
        loader=PackageLoader("graftflow"), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True
    )
    text = environment.get_template("comparison.html.jinja").render(**_view(comparison))
    with files.atomic_file(page) as aside:
        aside.write_text(text.lstrip(), encoding="utf-8")
    return comparison


def _view(comparison: Mapping[str, Any]) -> dict[str, Any]:
    measured = [row for row in comparison["rows"] if not row["error"]]
    return {
        "title": f"{_shown(measured[0])} leads" if measured else "No backbone could be measured",
        "summary": summary(comparison),
        "rows": table_rows(comparison),
        "cached": any(row["cached"] for row in measured),
        "failed": [
            {"name": row["name"], "error": row["error"]} for row in comparison["rows"] if row["error"]
        ],
        "confidence": percent(comparison["confidence"], 0),
        "batch": backbone_measurements.BATCH,
        "scatter": _scatter(measured) if measured else None,
        "forest": _forest(measured) if len(measured) > 1 else None,
        "frame": {
            "width": charts.WIDTH,
            "height": charts.HEIGHT,
            "left": charts.LEFT,
            "right": charts.WIDTH - charts.RIGHT,
            "top": charts.TOP,
            "bottom": charts.HEIGHT - charts.BOTTOM,
        },
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _scatter(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
        accuracy, megabytes = row["accuracy"], f"{_short(row['megabytes'])} MB"
        dots.append(
            {
                "x": across(row["milliseconds"]["single"]),
                "y": up(accuracy["value"]),
                "low": up(accuracy["low"]),
                "high": up(accuracy["high"]),
                "radius": round(3 + 7 * math.sqrt(row["megabytes"] / largest), 1),
                "colour": f"c{number % _COLOURS}",
                "label": f"{_shown(row, 20)}, {megabytes}",
                "note": f"{_shown(row)}: {percent(accuracy['value'])} ({interval(accuracy)}), "
                f"{_short(row['milliseconds']['single'])} ms, {megabytes}",
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
    """Put each dot's label beside it, inside the frame, no two on one line."""
    taken: list[tuple[float, float, float]] = []
    for dot in sorted(dots, key=lambda dot: dot["y"]):
        gap, width = dot["radius"] + 5, _LETTER * len(dot["label"])
        on_left = dot["x"] + gap + width > right and dot["x"] - left > right - dot["x"]
        start = dot["x"] - gap - width if on_left else dot["x"] + gap
        start = max(left, min(start, right - width))
        wanted = max(top + 10, min(dot["y"] + 4, bottom - 6))
        # The free line nearest to the wanted one, below it before above it.
        steps = (wanted + sign * _LINE * k / 4 for k in range(80) for sign in (1, -1))
        free = (
            at
            for at in steps
            if top + 8 <= at <= bottom - 4
            and all(
                abs(at - other) >= _LINE or start > end or start + width < begin
                for other, begin, end in taken
            )
        )
        at = next(free, wanted)
        taken.append((at, start, start + width))
        dot["label_x"] = round(start + width if on_left else start, 1)
        dot["label_y"], dot["anchor"] = round(at, 1), "end" if on_left else "start"


def _forest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
                "label": f"{_shown(row, 28)}: {points(apart['difference'])} "
                f"({points(apart['low'])} to {points(apart['high'])})",
                "sentence": row["to_best"]["sentence"],
            }
        )
    return {
        "height": bottom + charts.BOTTOM,
        "bottom": bottom,
        "top": top,
        "zero": across(0.0),
        "ticks": [{"at": across(t), "label": points(t / 100)} for t in ticks],
        "lines": lines,
        "best": _shown(rows[0]),
        "alt": f"Difference in accuracy to {_shown(rows[0])}. " + "; ".join(n["label"] for n in lines) + ".",
    }


def _shown(row: Mapping[str, Any], most: int = 60) -> str:
    """Return a short name: weights by their last part."""
    backbone, _, weights = row["name"].partition("=")
    text = f"{backbone} ({weights.rstrip('/').rsplit('/', 1)[-1]})" if weights else backbone
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _short(value: float) -> str:
    """Write a size or a time with the digits that matter: ``0.52``, ``8.3``, ``14``, ``1,250``."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
