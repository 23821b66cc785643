"""The page's section about the test results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graftflow.report import numbers
from graftflow.report.artifacts import Artifacts
from graftflow.report.charts import Axis, Chart, Guide, Series
from graftflow.report.data import MOST_CLASSES
from graftflow.report.images import Album

MATRIX_CLASSES = 20
MOST_PAIRS = 12
MOST_CELLS = 20_000
MATRIX_LEVELS = 5
MOST_MISTAKES, MOST_TRIPLETS, MOST_IDEAL, MOST_MAPS = 12, 8, 24, 24


def _digits(digits: int) -> Callable[[float | None], str]:
    def write(value: float | None) -> str:
        return numbers.NOTHING if value is None else f"{value:.{digits}f}"

    return write


# Name in evaluation.json: as shown, how its values are written, what it says.
_METRICS: dict[str, tuple[str, Callable[[float | None], str], str]] = {
    "accuracy": (
        "Accuracy",
        numbers.percent,
        "share of pictures whose most likely class is the right one",
    ),
    "log_loss": (
        "Log loss",
        _digits(3),
        "how surprised the model is by the truth; lower is better",
    ),
    "auc": (
        "Area under ROC",
        _digits(4),
        "chance that a picture of a class outranks one of another; 1 is perfect",
    ),
    "calibration_error": (
        "Calibration error",
        numbers.percent,
        "mean gap between the stated probability and the share that is right; lower is better",
    ),
}


def tests(artifacts: Artifacts, album: Album) -> dict[str, Any]:
    """Metrics, classes, confusions, curves and the worst mistakes on the test pictures."""
    evaluation = artifacts["evaluation"]
    classes, confusion = evaluation["classes"], evaluation["confusion"]
    wrong = evaluation["pictures"] - sum(row[i] for i, row in enumerate(confusion))
    rows = [_per_class(name, evaluation["per_class"][name]) for name in classes]
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: row["order"])[:MOST_CLASSES]
    return {
        "pictures": numbers.plural(evaluation["pictures"], "test picture"),
        "confidence": numbers.short_percent(evaluation.get("confidence", 0.95)),
        "metrics": [_metric(name, metric) for name, metric in evaluation["metrics"].items()],
        "per_class": rows,
        "more_classes": len(classes) - len(rows),
        "matrix": _matrix(classes, confusion) if len(classes) <= MATRIX_CLASSES else None,
        "compact": _compact(classes, confusion) if len(classes) > MATRIX_CLASSES else None,
        "pairs": _pairs(classes, confusion),
        "roc": _roc(evaluation["roc"], evaluation["metrics"].get("auc")),
        "calibration": _calibration(evaluation),
        "scaling": _scaling(evaluation),
        "wrong": wrong,
        "mistakes": [
            {
                "label": mistake["label"],
                "predicted": mistake["predicted"],
                "probability": numbers.percent(mistake["probability"]),
                "path": mistake["path"],
                "picture": album.add(
                    "evaluation", artifacts.file("evaluation", mistake["picture"]), side=320
                ),
            }
            for mistake in evaluation["mistakes"][:MOST_MISTAKES]
        ],
    }


def _metric(name: str, metric: Mapping[str, Any]) -> dict[str, str]:
    title, write, meaning = _METRICS.get(name, (name.replace("_", " "), _digits(3), ""))
    return {
        "name": title,
        "value": write(metric["value"]),
        "interval": numbers.interval(metric, write),
        "meaning": meaning,
    }


def _per_class(name: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    recall = scores["recall"]["value"]
    return {
        "name": name,
        "support": numbers.count(scores["support"]),
        "precision": _scored(scores["precision"]),
        "recall": _scored(scores["recall"]),
        "order": 2.0 if recall is None else recall,
    }


def _scored(metric: Mapping[str, Any]) -> dict[str, Any]:
    places = {key: metric.get(key) for key in ("value", "low", "high")}
    return {
        "value": numbers.percent(metric["value"]),
        "interval": "no mistake seen" if metric.get("low") == 1 else numbers.interval(metric),
        "places": {k: round(100 * v, 1) for k, v in places.items() if v is not None},
    }


def _matrix(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> dict[str, Any]:
    rows = []
    for i, (name, counts) in enumerate(zip(classes, confusion, strict=True)):
        total = max(1, sum(counts))
        cells = [
            {"count": count, "heat": round(100 * count / total), "right": i == j}
            for j, count in enumerate(counts)
        ]
        rows.append({"name": name, "cells": cells})
    return {"classes": classes, "rows": rows}


def _compact(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Squares of a matrix too large for numbers, in levels of equal shares of a row."""
    levels: list[list[str]] = [[] for _ in range(MATRIX_LEVELS)]
    cells = sorted(
        (
            (count / max(1, sum(row)), i, j)
            for i, row in enumerate(confusion)
            for j, count in enumerate(row)
            if count
        ),
        reverse=True,
    )
    for share, i, j in cells[:MOST_CELLS]:
        level = min(MATRIX_LEVELS - 1, int(share * MATRIX_LEVELS))
        levels[level].append(f"M{j} {i}h1v1h-1z")
    return {"side": len(classes), "levels": ["".join(level) for level in levels]}


def _pairs(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    pairs = sorted(
        (
            (count, count / sum(row), i, j)
            for i, row in enumerate(confusion)
            for j, count in enumerate(row)
            if i != j and count
        ),
        key=lambda pair: (-pair[0], -pair[1], pair[2], pair[3]),
    )
    return [
        {
            "label": classes[i],
            "predicted": classes[j],
            "count": numbers.count(count),
            "share": numbers.percent(share),
        }
        for count, share, i, j in pairs[:MOST_PAIRS]
    ]


_WHOLE = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def _roc(roc: Mapping[str, Any], auc: Mapping[str, Any] | None) -> dict[str, Any]:
    points = list(zip(roc["false_positive_rate"], roc["true_positive_rate"], strict=True))
    area = f" Area under the curve: {_digits(4)(auc['value'])}." if auc else ""
    chart = Chart(
        "ROC",
        f"ROC curve of {roc['name']}: true positive rate over false positive rate.{area}",
        Axis("false positive rate", 0.0, 1.0, _WHOLE, numbers.short_percent),
        Axis("true positive rate", 0.0, 1.0, _WHOLE, numbers.short_percent),
        (Series(str(roc["name"]), points, dots=False),),
        (Guide((0.0, 0.0), (1.0, 1.0), ""),),
    )
    rows = list(zip(roc["threshold"], *zip(*points, strict=True), strict=True))
    chosen = sorted({round(i * (len(rows) - 1) / 9) for i in range(10)}) if rows else []
    return chart.drawing() | {
        "table": {
            "head": ["threshold", chart.x.label, chart.y.label],
            "rows": [[numbers.percent(value) for value in rows[i]] for i in chosen],
        }
    }


def _calibration(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    bins, before = evaluation["calibration"], evaluation.get("before_scaling")
    series = [_bins("as served", bins)]
    if before:  # drawn first, so that it lies under what is served
        series.insert(0, _bins("before temperature scaling", before["calibration"], colour=1))
    return Chart(
        "Calibration",
        f"Share of right answers over the stated probability, in bins: {'; '.join(series[-1].notes)}.",
        Axis("probability that the model states", 0.0, 1.0, _WHOLE, numbers.short_percent),
        Axis("share that is right", 0.0, 1.0, _WHOLE, numbers.short_percent),
        tuple(series),
        (Guide((0.0, 0.0), (1.0, 1.0), ""),),
    ).drawing()


def _bins(name: str, bins: Sequence[Mapping[str, float]], *, colour: int = 0) -> Series:
    largest = max((b["count"] for b in bins), default=1)
    notes = [
        f"{numbers.plural(int(b['count']), 'picture')}: stated {numbers.percent(b['confidence'])}, "
        f"right {numbers.percent(b['accuracy'])}"
        for b in bins
    ]
    points = [(b["confidence"], b["accuracy"]) for b in bins]
    sizes = [b["count"] / largest for b in bins]
    return Series(name, points, colour, line=False, notes=notes, sizes=sizes)


def _scaling(evaluation: Mapping[str, Any]) -> str:
    """Say what temperature scaling did to the test pictures."""
    before = evaluation.get("before_scaling")
    if not before:
        return ""
    after = {name: evaluation["metrics"][name]["value"] for name in ("log_loss", "calibration_error")}
    return (
        f"The validation pictures asked for a temperature of {numbers.decimal(before['temperature'])}, which is part "
        f"of the model: log loss {numbers.decimal(before['log_loss'])} → {numbers.decimal(after['log_loss'])}, "
        f"calibration error {numbers.decimal(before['calibration_error'])} → "
        f"{numbers.decimal(after['calibration_error'])} on the test pictures."
    )
