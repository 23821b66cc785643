"""Line charts as plain geometry; ``templates/charts.jinja`` draws it, the page's CSS colours it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 18, 46
MOST_ROWS = 40

Point = tuple[float, float]


def _same(value: float) -> float:
    return value


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, spaced as ``scale`` says, with a label at every tick."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    write: Callable[[float], str]
    scale: Callable[[float], float] = _same

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at ``low``, 1 at ``high``; what is outside lies at the rim."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(min(max(value, self.low), self.high)) - low) / (high - low)


@dataclass(frozen=True)
class Series:
    """One line, or dots alone; a wide one lies under the others.

    ``notes`` are shown for the points, ``sizes`` are their areas relative to the largest.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False
    wide: bool = False
    dots: bool = True
    line: bool = True
    notes: Sequence[str] = ()
    sizes: Sequence[float] = ()


@dataclass(frozen=True)
class Guide:
    """A thin line to compare with, from one point to another, and what it stands for."""

    start: Point
    end: Point
    label: str


@dataclass(frozen=True)
class Chart:
    """What a chart shows; ``alt`` says it in words."""

    title: str
    alt: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    guides: Sequence[Guide] = field(default_factory=tuple)

    def drawing(self) -> dict[str, Any]:
        """Return coordinates and texts for the template, numbers beside them as a table."""
        return {
            "title": self.title,
            "alt": self.alt,
            "width": WIDTH,
            "height": HEIGHT,
            "frame": {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
            "x": {"label": self.x.label, "ticks": self._ticks(self.x, self._across)},
            "y": {"label": self.y.label, "ticks": self._ticks(self.y, self._up)},
            "series": [self._series(series) for series in self.series],
            "guides": [self._guide(guide) for guide in self.guides],
            "table": self._table(),
        }

    def _across(self, value: float) -> float:
        return round(LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT), 1)

    def _up(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM), 1)

    def _ticks(self, axis: Axis, place: Callable[[float], float]) -> list[dict[str, Any]]:
        return [{"at": place(tick), "label": axis.write(tick)} for tick in axis.ticks]

    def _series(self, series: Series) -> dict[str, Any]:
        places = [(self._across(x), self._up(y)) for x, y in series.points]
        notes = series.notes or [
            f"{series.name}, {self.x.write(x)}: {self.y.write(y)}" for x, y in series.points
        ]
        radii = [round(2.5 + 6 * math.sqrt(size), 1) for size in series.sizes] or [3] * len(places)
        return {
            "name": series.name,
            "colour": series.colour,
            "style": f"c{series.colour}{' dashed' * series.dashed}{' wide' * series.wide}",
            "line": " ".join(f"{x},{y}" for x, y in places) if series.line else "",
            "dots": [
                {"x": x, "y": y, "radius": radius, "note": note}
                for (x, y), radius, note in zip(places, radii, notes, strict=True)
            ]
            if series.dots
            else [],
        }

    def _guide(self, guide: Guide) -> dict[str, Any]:
        (x1, y1), (x2, y2) = ((self._across(x), self._up(y)) for x, y in (guide.start, guide.end))
        upright = x1 == x2
        right = x1 > (LEFT + WIDTH - RIGHT) / 2
        return {
            "x1": x1,
            "y1": y1,
            "x2": x2,
            "y2": y2,
            "label": guide.label,
            "label_x": (x1 - 6 if right else x1 + 6) if upright else x2 - 4,
            "label_y": TOP + 10 if upright else y2 - 6 if y2 > TOP + 16 else y2 + 14,
            "anchor": ("end" if right else "start") if upright else "end",
        }

    def _table(self) -> dict[str, Any] | None:
        """Return the numbers of all series by x; None where no table can hold them."""
        columns = [dict(series.points) for series in self.series]
        rows = sorted({x for column in columns for x in column})
        upright = any(len(c) < len(s.points) for c, s in zip(columns, self.series, strict=True))
        if len(rows) > MOST_ROWS or upright:
            return None
        return {
            "head": [self.x.label, *(series.name for series in self.series)],
            "rows": [
                [self.x.write(x), *(self.y.write(c[x]) if x in c else "–" for c in columns)] for x in rows
            ],
        }


def percent_axis(label: str, values: Iterable[float], write: Callable[[float], str]) -> Axis:
    """Return a linear axis that ends at 1 and begins at a round number below all values."""
    found = list(values)
    step = _round_step(max(1 - min(found), 0.02) * 1.1)
    first = max(0, math.floor((min(found) - 0.02 * step) / step))
    ticks = [round(i * step, 6) for i in range(first, math.floor(1 / step + 1e-9) + 1)]
    return Axis(label, ticks[0], 1.0, ticks, write)


def log_axis(label: str, values: Iterable[float], write: Callable[[float], str]) -> Axis:
    """Return a logarithmic axis around all values; what is not above 0 lies at its lower end."""
    found = [value for value in values if value > 0] or [0.1, 1.0]
    low, high = math.log10(min(found)), math.log10(max(found))
    pad = max(0.04 * (high - low), 0.05)
    low, high = low - pad, high + pad
    steps = (1.0,) if high - low > 2.5 else (1.0, 3.0) if high - low > 1.2 else (1.0, 2.0, 5.0)
    decades = range(math.floor(low), math.ceil(high) + 1, max(1, round((high - low) / 6)))
    ticks = [m * 10.0**d for d in decades for m in steps if low <= math.log10(m * 10.0**d) <= high]
    if len(ticks) < 2:
        ticks = sorted({min(found), max(found)})
    return Axis(label, 10.0**low, 10.0**high, ticks, write, math.log10)


def count_axis(label: str, values: Sequence[int]) -> Axis:
    """Return an axis over whole numbers from the smallest to the largest."""
    low, high = min(values), max(values)
    step = max(1, math.ceil((high - low) / 8))
    if low == high:
        low, high = low - 1, high + 1
    ticks = [n for n in range(low, high + 1, step) if min(values) <= n <= max(values)]
    return Axis(label, low, high, ticks, lambda value: f"{value:g}")


def root_axis(label: str, values: Iterable[float], write: Callable[[float], str]) -> Axis:
    """Return an axis from 0 whose distances grow with the square root, ticks at the values."""
    found = sorted({0.0, *values})
    high = found[-1] or 1.0
    ticks: list[float] = []
    for value in reversed(found):
        if not ticks or math.sqrt(ticks[-1] / high) - math.sqrt(value / high) >= 0.075:
            ticks.append(value)
    return Axis(label, 0.0, high, ticks[::-1], write, math.sqrt)


def power_of_ten(value: float) -> str:
    """Write ``10⁻⁵`` for powers of ten, and a plain number for others."""
    exponent = math.log10(value) if value > 0 else 0.5
    if abs(exponent - round(exponent)) > 1e-9:
        return f"{value:.3g}"
    if -2 <= round(exponent) <= 2:
        return f"{10.0 ** round(exponent):g}"
    return "10" + f"{round(exponent)}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _round_step(span: float, most: int = 5) -> float:
    raw = span / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
