"""What the benchmark shows: tables for a terminal, and one HTML page with charts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.side_by_side.comparison import TARGETS
from graftflow.files import atomic_file
from graftflow.report.charts import Axis, Chart, Series, log_axis, percent_axis

_PAGE = """{% from "charts.jinja" import pair %}<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>graftflow beside its peers</title>
<style>{% include "report.css" %}
pre { margin-top: 28px; overflow-x: auto; line-height: 1.35; font-size: 13px; }</style></head>
<body><div class="page"><h1>graftflow beside its peers</h1>
<p>{{ about }}</p>
{{ pair(charts) }}
<pre>{{ tables }}</pre>
</div></body></html>
"""


PHASES = ("import", "data", "train", "evaluate")


def tables(summary: Mapping[str, Any]) -> str:
    """Return the summary as text: models, times, and differences from graftflow."""
    found = (_models_table(summary), _times_table(summary), _pairs_table(summary))
    return "\n\n".join(_aligned(rows) for rows in found if len(rows) > 1)


def _models_table(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = [["model", "accuracy (95 %)", "log loss (95 %)", "seconds", "CPU s", "x graftflow"]]
    for name, model in summary["models"].items():
        figures = [_interval(model["accuracy"], 3), _interval(model["log_loss"], 3)]
        times = [f"{model['seconds']['value']:.1f}", f"{model['cpu_seconds']['value']:.0f}"]
        rows.append([name, *figures, *times, f"{model['times']:.2f}" if model["times"] else "-"])
    return rows


def _times_table(summary: Mapping[str, Any]) -> list[list[str]]:
    targets = ("final", *(f"{target:g}" for target in TARGETS))
    rows = [["mean seconds of", *PHASES, *(f"to {target}" for target in targets)]]
    for name, phases in summary["phases"].items():
        reached = [_reached(summary["reached"][name][target]) for target in targets]
        rows.append([name, *(f"{phases[phase]['seconds']:.1f}" for phase in PHASES), *reached])
    return rows


def _pairs_table(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = [["graftflow less", "accuracy (95 %)", "log loss (95 %)"]]
    for pair in summary["pairs"]:
        if "graftflow" in (pair["first"], pair["second"]):
            rows.append([_other(pair), *(_signed(pair, figure) for figure in ("accuracy", "log_loss"))])
    return rows


def write_page(
    path: Path, records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], about: str
) -> None:
    """Write one HTML page: accuracy and log loss against seconds, learning curves, and the tables."""
    environment = Environment(
        loader=PackageLoader("graftflow"), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True
    )
    drawn = [chart.drawing() for chart in charts(records, summary)]
    page = environment.from_string(_PAGE).render(about=about, charts=drawn, tables=tables(summary))
    with atomic_file(path) as aside:
        aside.write_text(page, encoding="utf-8")


def charts(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[Chart]:
    """Return accuracy and log loss of every model against its seconds, and the learning curves of every recipe."""
    models = summary["models"]
    by_recipe: dict[str, list[str]] = defaultdict(list)
    for name, model in models.items():
        by_recipe[model["recipe"]].append(name)
    found: dict[str, list[list[Mapping[str, Any]]]] = defaultdict(list)
    for record in records:
        found[record["recipe"]].append(record["curve"])
    curves = {name: _mean_curve(curves) for name, curves in found.items()}
    seconds = [model["seconds"]["value"] for model in models.values()]
    reached = [x for curve in curves.values() for x, _ in curve]
    # Log loss lies on a logarithmic axis too; of the interval only the mean is drawn.
    losses = log_axis("test log loss", [m["log_loss"]["value"] for m in models.values()], "{:.2g}".format)
    right = percent_axis("test accuracy", [m["accuracy"]["value"] for m in models.values()], _percent)
    validated = percent_axis(
        "validation accuracy", [y for curve in curves.values() for _, y in curve], _percent
    )
    return [
        _models_chart("Accuracy and time", "accuracy", right, _seconds(seconds), models, by_recipe),
        _models_chart("Log loss and time", "log_loss", losses, _seconds(seconds), models, by_recipe),
        Chart(
            "Learning curves, mean of the seeds",
            "Validation accuracy after each epoch against seconds.",
            _seconds(reached),
            validated,
            [
                Series(name, curve, colour % 5, dots=len(curve) < 5)
                for colour, (name, curve) in enumerate(curves.items())
            ],
        ),
    ]


def _models_chart(
    title: str,
    figure: str,
    y: Axis,
    x: Axis,
    models: Mapping[str, Any],
    by_recipe: Mapping[str, Sequence[str]],
) -> Chart:
    """A line a recipe, from its first model to its last."""
    series = []
    for colour, (recipe, names) in enumerate(by_recipe.items()):
        points = [(models[name]["seconds"]["value"], models[name][figure]["value"]) for name in names]
        notes = [
            f"{name}: {y.write(value)}, {at:.0f} s" for name, (at, value) in zip(names, points, strict=True)
        ]
        series.append(Series(recipe, points, colour % 5, notes=notes))
    return Chart(title, f"{y.label} of every model against the seconds until it was ready.", x, y, series)


def _mean_curve(curves: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[float, float]]:
    """Return the mean of curves point by point, as far as all go."""
    length = min(map(len, curves))
    return [
        (
            float(np.mean([c[i]["seconds"] for c in curves])),
            float(np.mean([c[i]["accuracy"] for c in curves])),
        )
        for i in range(length)
    ]


def _seconds(values: Sequence[float]) -> Axis:
    return log_axis("seconds, from the start of the process", values, "{:.3g}".format)


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _interval(figure: Mapping[str, float | None], digits: int) -> str:
    text = f"{figure['value']:.{digits}f}"
    if figure["low"] is None or figure["high"] is None:
        return text
    return f"{text} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _reached(figure: Mapping[str, Any]) -> str:
    if figure["seconds"] is None:
        return f"- (0/{figure['of']})"
    return f"{figure['seconds']:.0f} ({figure['reached']}/{figure['of']})"


def _other(pair: Mapping[str, Any]) -> str:
    return str(pair["second"] if pair["first"] == "graftflow" else pair["first"])


def _signed(pair: Mapping[str, Any], figure: str) -> str:
    """Write a difference as graftflow less the other, whichever came first."""
    value, low, high = (pair[figure][part] for part in ("value", "low", "high"))
    if pair["first"] != "graftflow":
        value, low, high = -value, -high, -low
    return f"{value:+z.3f} [{low:+z.3f}, {high:+z.3f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
