"""The page's section about robustness: whether the attacks can be believed, what they do, and what else does harm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from graftflow.report import numbers
from graftflow.report.artifacts import Artifacts
from graftflow.report.charts import Axis, Chart, Guide, Series, count_axis, root_axis
from graftflow.report.images import Album
from graftflow.report.sections import worst_case

MOST_TRIPLETS = 8
SMALL_WIDTH, SMALL_HEIGHT = 320, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 44
_WHOLE = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
_WORST, _INK = "worst case", 4
# Upper ends of the bars of minimal radii, in 1/255.
_EDGES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 255.0)


def robustness(artifacts: Artifacts, album: Album) -> dict[str, Any]:
    """Checks, accuracy under attack, minimal radii, transfer, corruptions, and how the attacks look."""
    adversarial = artifacts["adversarial"]
    attacks, descent = adversarial["attacks"], adversarial["descent"]
    believable = adversarial.get("believable", True)
    tried = bool(adversarial["epsilons"] and attacks)
    return {
        "pictures": numbers.plural(adversarial["pictures"], "test picture"),
        "clean": numbers.percent(adversarial["clean_accuracy"]),
        "confidence": numbers.short_percent(adversarial.get("confidence", 0.95)),
        "believable": believable,
        "checks": _checks(adversarial.get("checks", [])),
        "verdict": _verdict(adversarial.get("checks", [])),
        "tried": tried,
        "charts": _attack_charts(adversarial) if tried and believable else [],
        "table": _table(adversarial) if tried and believable else None,
        "noise": bool(adversarial.get("noise")),
        "lengths": _length_chart(adversarial) if believable else None,
        "below_one": any(not all(attack.get("rounded", [True])) for attack in attacks),
        "targeted": any(attack["targeted"] for attack in attacks),
        "minimal": _minimal(adversarial.get("minimal"), adversarial["epsilons"]) if believable else None,
        "transfer": _transfer(adversarial.get("transfer")) if believable else None,
        "corruptions": _corruptions(adversarial),
        "descent": {
            "target": descent["target"],
            "success": numbers.percent(descent["success"]),
            "reached": descent["success"] > 0,
            "mean_linf": f"{descent['mean_linf']:.2g}/255",
            "pictures": descent.get("pictures"),
            "steps": descent.get("steps"),
            "probability": numbers.percent(descent.get("probability")),
        },
        "triplets": [
            {
                "attack": triplet["attack"],
                "epsilon": numbers.epsilon(triplet["epsilon"]),
                "label": triplet["label"],
                "before": triplet["original"]["label"],
                "before_probability": numbers.percent(triplet["original"]["probability"]),
                "after": triplet["adversarial"]["label"],
                "after_probability": numbers.percent(triplet["adversarial"]["probability"]),
                "picture": album.add(
                    "adversarial", artifacts.file("adversarial", triplet["file"]), side=1008
                ),
            }
            for triplet in adversarial["triplets"][:MOST_TRIPLETS]
        ],
    }


def headline(adversarial: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return accuracy at the smallest change that a picture of 8 bits can hold, else at the largest ε.

    Returns:
        Texts ``epsilon``, ``accuracy``, ``clean`` and ``pictures``, and ``believable``: where it is false, a check
        failed and the accuracy must not be shown. ``None`` where no attack was tried.
    """
    pairs = list(zip(adversarial["epsilons"], worst_case(adversarial), strict=True))
    if not pairs:
        return None
    epsilon, accuracy = next((pair for pair in pairs if pair[0] >= 1), pairs[-1])
    return {
        "epsilon": numbers.epsilon(epsilon),
        "accuracy": numbers.percent(accuracy),
        "clean": numbers.percent(adversarial["clean_accuracy"]),
        "pictures": numbers.plural(adversarial["pictures"], "picture"),
        "believable": adversarial.get("believable", True),
    }


@dataclass(frozen=True)
class SmallChart(Chart):
    """A chart that stands beside others of its kind."""

    def drawing(self) -> dict[str, Any]:
        """Return what :meth:`Chart.drawing` does, for a smaller sheet."""
        frame = {
            "left": _LEFT,
            "right": SMALL_WIDTH - _RIGHT,
            "top": _TOP,
            "bottom": SMALL_HEIGHT - _BOTTOM,
        }
        return super().drawing() | {"width": SMALL_WIDTH, "height": SMALL_HEIGHT, "frame": frame}

    def _across(self, value: float) -> float:
        return round(_LEFT + self.x.place(value) * (SMALL_WIDTH - _LEFT - _RIGHT), 1)

    def _up(self, value: float) -> float:
        return round(SMALL_HEIGHT - _BOTTOM - self.y.place(value) * (SMALL_HEIGHT - _TOP - _BOTTOM), 1)


def _checks(checks: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    marks = {True: ("good", "✓"), False: ("bad", "✗"), None: ("open", "–")}
    said = {True: "holds", False: "fails", None: "not checked"}
    return [
        {
            "kind": marks[row["holds"]][0],
            "mark": marks[row["holds"]][1],
            "said": said[row["holds"]],
            "name": row["name"],
            "seen": row["seen"],
            "why": row["why"],
        }
        for row in checks
    ]


def _verdict(checks: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence what the checks found."""
    failed = [row["name"] for row in checks if row["holds"] is False]
    held = sum(row["holds"] is True for row in checks)
    if failed:
        return f"{len(failed)} of {held + len(failed)} checks failed, so the figures of the attacks are not shown"
    return f"{numbers.plural(held, 'check')} passed, none failed" if checks else ""


def _attack_charts(adversarial: Mapping[str, Any]) -> list[dict[str, Any]]:
    epsilons, clean = adversarial["epsilons"], adversarial["clean_accuracy"]
    x = root_axis("ε, the most that a channel may change, in 1/255", epsilons, lambda e: f"{e:g}")
    start = [] if 0 in epsilons else [(0.0, clean)]
    worst = [*start, *zip(epsilons, worst_case(adversarial), strict=True)]
    accuracy, success = [Series(_WORST, worst, colour=_INK, wide=True)], []
    # What attacks only the rest is within the worst case; its own figures stand in the table.
    alone = [attack for attack in adversarial["attacks"] if not attack.get("on_the_rest")]
    colours = _colours(alone)
    for attack in alone:
        targeted, name = attack["targeted"], _name(attack)
        colour = colours[attack["name"]]
        points = [*([] if targeted else start), *zip(epsilons, attack["accuracy"], strict=True)]
        accuracy.append(Series(name, points, colour, targeted))
        points = list(zip(epsilons, attack["success"], strict=True))
        success.append(Series(name, points, colour, targeted))
    if noise := adversarial.get("noise"):
        points = [*start, *zip(epsilons, noise["accuracy"], strict=True)]
        accuracy.append(Series("random noise", points, _INK, dashed=True, dots=False))
    said = ", ".join(f"{numbers.percent(a)} at {numbers.epsilon(e)}" for e, a in worst)
    alt = f"Accuracy over ε. Worst case: {said}."
    intervals = _whiskers(epsilons, adversarial.get("worst_case") or {})
    return [
        Chart("Accuracy", alt, x, _share_axis("accuracy"), accuracy, intervals).drawing(),
        Chart(
            "Success of the attack",
            "Share of attacked pictures for which each attack reached its aim, over ε.",
            x,
            _share_axis("success"),
            success,
        ).drawing(),
    ]


def _length_chart(adversarial: Mapping[str, Any]) -> dict[str, Any] | None:
    """Draw accuracy over L2 radii, for attacks that bound the length of the whole change."""
    lengths = adversarial.get("l2")
    if not lengths:
        return None
    radii, clean = lengths["epsilons"], adversarial["clean_accuracy"]
    colours = _colours(lengths["attacks"])
    series = [
        Series(
            _name(attack),
            [(0.0, clean), *zip(radii, attack["accuracy"], strict=True)],
            colours[attack["name"]],
            attack["targeted"],
        )
        for attack in lengths["attacks"]
    ]
    said = ", ".join(f"{numbers.percent(y)} at {x:.2g}" for x, y in series[0].points)
    return Chart(
        "Accuracy, length bounded",
        f"Accuracy under {series[0].name} over the L2 radius: {said}.",
        root_axis("ε₂, the length of the whole change", radii, lambda e: f"{e:.2g}"),
        _share_axis("accuracy"),
        series,
        _whiskers(radii, lengths["attacks"][0]),
    ).drawing()


def _table(adversarial: Mapping[str, Any]) -> dict[str, Any]:
    """Return accuracy with its interval: a row an attack, a column a radius."""
    worst = adversarial.get("worst_case") or {"accuracy": worst_case(adversarial)}
    rows = [("Worst case", worst), *((_name(attack), attack) for attack in adversarial["attacks"])]
    if noise := adversarial.get("noise"):
        rows.append(("Random noise", noise))
    return {
        "head": [numbers.epsilon(epsilon) for epsilon in adversarial["epsilons"]],
        "rows": [{"name": name, "cells": _cells(row)} for name, row in rows],
    }


def _cells(row: Mapping[str, Any]) -> list[dict[str, str]]:
    nothing = [None] * len(row["accuracy"])
    columns = (row["accuracy"], row.get("low") or nothing, row.get("high") or nothing)
    return [
        {
            "value": numbers.percent(value, 0),
            "interval": "" if low is None else f"{100 * low:.0f} to {100 * high:.0f}",
        }
        for value, low, high in zip(*columns, strict=True)
    ]


def _minimal(minimal: Mapping[str, Any] | None, epsilons: Sequence[float]) -> dict[str, Any] | None:
    """Return a histogram of minimal radii."""
    if not minimal or not minimal["epsilons"]:
        return None
    values = minimal["epsilons"]
    known = sorted(value for value in values if value is not None)
    edges = [edge for edge in _EDGES if edge < epsilons[-1]] + [epsilons[-1]]
    counts = [
        (f"{low:g} to {high:g}", sum(low < value <= high for value in known))
        for low, high in pairwise([0.0, *edges])
    ]
    counts.append((f"more than {epsilons[-1]:g}", len(values) - len(known)))
    shown = [i for i, (_, count) in enumerate(counts) if count]
    counts = counts[shown[0] : shown[-1] + 1]
    middle = known[len(known) // 2] if 2 * len(known) > len(values) else None
    return {
        "attack": minimal["attack"],
        "pictures": numbers.plural(minimal["pictures"], "picture"),
        "median": None if middle is None else numbers.epsilon(middle),
        "rows": [
            {
                "range": text,
                "count": count,
                "share": round(100 * count / max(count for _, count in counts), 1),
            }
            for text, count in counts
        ],
    }


def _transfer(transfer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not transfer or not transfer["pictures"]:
        return None
    return {
        "epsilon": numbers.epsilon(transfer["epsilon"]),
        "pictures": numbers.plural(transfer["pictures"], "picture"),
        "models": transfer["models"],
        "rows": [
            {
                "name": name,
                "cells": [
                    {
                        "text": numbers.percent(cell["value"], 0),
                        "interval": numbers.interval(cell, lambda value: numbers.percent(value, 0)),
                        "heat": round(cell["value"], 3),
                        "own": i == j,
                    }
                    for j, cell in enumerate(row)
                ],
            }
            for i, (name, row) in enumerate(zip(transfer["models"], transfer["fooled"], strict=True))
        ],
    }


def _corruptions(adversarial: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a small chart a corruption, all on the same axes."""
    found = adversarial.get("corruptions")
    if not found:
        return None
    severities = found["severities"]
    clean = adversarial.get("clean") or {"value": adversarial["clean_accuracy"], "low": None, "high": None}
    charts = []
    for row in found["rows"]:
        columns = {
            key: [clean["value" if key == "accuracy" else key], *row[key]]
            for key in ("accuracy", "low", "high")
        }
        points = list(zip([0, *severities], columns["accuracy"], strict=True))
        said = ", ".join(f"{numbers.percent(y, 0)} at {x}" for x, y in points)
        chart = SmallChart(
            row["name"],
            f"Accuracy over the severity of {row['name']}: {said}.",
            count_axis("severity", [0, *severities]),
            _share_axis(""),
            [Series("accuracy", points)],
            _whiskers([0, *severities], columns),
        )
        charts.append(chart.drawing())
    return {
        "source": found["source"],
        "pictures": numbers.plural(found["pictures"], "picture"),
        "charts": charts,
    }


def _whiskers(places: Sequence[float], row: Mapping[str, Any]) -> tuple[Guide, ...]:
    """Return an upright line from low to high at each place; none where an interval is not known."""
    ends = zip(places, row.get("low") or [], row.get("high") or [], strict=False)
    return tuple(Guide((x, low), (x, high), "") for x, low, high in ends if low is not None)


def _share_axis(label: str) -> Axis:
    return Axis(label, 0.0, 1.0, _WHOLE, numbers.short_percent)


def _name(attack: Mapping[str, Any]) -> str:
    then = "then " if attack.get("on_the_rest") else ""
    return then + str(attack["name"]) + (", targeted" if attack["targeted"] else "")


def _colours(attacks: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return a colour a name: an attack and its targeted kind share it, and are told apart by dashes."""
    return {name: i % _INK for i, name in enumerate(dict.fromkeys(attack["name"] for attack in attacks))}
