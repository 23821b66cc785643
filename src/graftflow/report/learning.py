"""The learning curve of the head: whether more pictures would help."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from graftflow.report import numbers
from graftflow.report.charts import Axis, Chart, Series, log_axis, percent_axis

Point = Mapping[str, Any]


def learning_curve_chart(points: Sequence[Point]) -> dict[str, Any] | None:
    """Draw what :func:`graftflow.learning_curves.measure` returned.

    Args:
        points: smallest size first; fewer than two (an older head) draw nothing.

    Returns:
        ``{"charts": drawings for pair(), "sentence": whether accuracy still grows}``, or None.
    """
    if len(points) < 2:
        return None
    accuracies = [value for point in points for value in point["accuracy"].values()]
    losses = [value for point in points for value in point["log_loss"].values()]
    charts = (
        _chart("Accuracy", "accuracy", points, percent_axis("accuracy", accuracies, numbers.short_percent)),
        _chart("Log loss", "log_loss", points, log_axis("log loss", losses, lambda value: f"{value:g}")),
    )
    return {"charts": [chart.drawing() for chart in charts], "sentence": _sentence(points)}


def _chart(title: str, key: str, points: Sequence[Point], y: Axis) -> Chart:
    write = numbers.percent if key == "accuracy" else numbers.decimal
    sizes = [point["pictures"] for point in points]
    first, last = (points[i][key]["mean"] for i in (0, -1))
    return Chart(
        title,
        f"{title} of the validation pictures over the number of training pictures: {write(first)} with {sizes[0]:,}, "
        f"{write(last)} with {sizes[-1]:,}.",
        _sizes_axis(sizes),
        y,
        (
            _ends("95 % interval, upper end", points, key, "high"),
            Series(
                "validation",
                [(point["pictures"], point[key]["mean"]) for point in points],
                notes=[
                    f"{numbers.plural(point['pictures'], 'picture')}: {write(point[key]['mean'])}, "
                    f"95 % interval {numbers.interval(point[key], write)}"
                    for point in points
                ],
            ),
            _ends("lower end", points, key, "low"),
        ),
    )


def _ends(name: str, points: Sequence[Point], key: str, end: str) -> Series:
    places = [(point["pictures"], point[key][end]) for point in points]
    return Series(name, places, colour=1, dashed=True, dots=False)


def _sizes_axis(sizes: Sequence[int]) -> Axis:
    """Return a logarithmic axis whose ticks are the sizes, those left out that would overlap the next."""
    axis = log_axis("training pictures", sizes, numbers.count)
    ticks: list[float] = []
    for size in reversed(sizes):
        if not ticks or axis.place(ticks[-1]) - axis.place(size) > 0.1:
            ticks.append(size)
    return replace(axis, ticks=ticks[::-1])


def _sentence(points: Sequence[Point]) -> str:
    half, whole = points[-2], points[-1]
    gain = whole["gain"]
    low, high = (_points(gain[end]) for end in ("low", "high"))
    change = (
        f"From {half['pictures']:,} to {whole['pictures']:,} training pictures accuracy changed by "
        f"{_points(gain['mean'])} percentage points (95 % interval {low} to {high})"
    )
    if gain["low"] > 0.0005:
        return f"{change}: it still grows, so more pictures of this kind should help."
    if gain["high"] < -0.0005:
        return f"{change}: it fell, so look at the labels of the added pictures before adding more."
    return f"{change}, which may be chance: more pictures of this kind need not help."


def _points(value: float) -> str:
    """Write a difference of fractions in percentage points, with its sign: ``+1.5``."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0"
