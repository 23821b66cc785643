"""A comparison of backbones as figures, as the texts of a table, and as one HTML page."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from graftflow import backbone_measurements, comparison_charts, comparisons, files
from graftflow.comparison_charts import points, short
from graftflow.errors import InputError
from graftflow.report import charts
from graftflow.report.numbers import NOTHING, decimal, interval, names, percent, plural


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
        ``{"best": name or "", "fastest": name or "", "pictures", "confidence", "rows": [measurement, with its "label"
        in texts and "to_best": what :func:`graftflow.comparisons.compare_predictions` returns for it and the best,
        None for the best and for what was not measured]}``, best first, what was not measured last.

    Raises:
        InputError: for a folder that holds no measurement, or measurements of different test pictures.
    """
    found = [(_read(path), Path(path)) for path in measurement_paths]
    if not found:
        raise InputError("A comparison needs at least one measurement. Received: none")
    labels = _labels([row["name"] for row, _ in found])
    for row, _ in found:
        row["label"] = labels[row["name"]]
    measured = sorted(
        ((row, path) for row, path in found if not row["error"]), key=lambda pair: _rank(pair[0])
    )
    rows: list[dict[str, Any]] = []
    for row, path in measured:
        to_best = None
        if rows:
            to_best = comparisons.compare_evaluations(
                path, measured[0][1], resamples=resamples, seed=seed, names=(row["label"], rows[0]["label"])
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

    Each row has ``name``, ``weights`` (their last part), ``accuracy``, ``interval``, ``log_loss``, ``single`` and
    ``batch`` (milliseconds a picture), ``megabytes``, ``seconds`` (features and head; with a star where features came
    from the cache), ``difference`` and ``difference_interval`` (points of accuracy to the best) and ``p``.
    """
    rows = []
    for row in comparison["rows"]:
        if row["error"]:
            continue
        texts = {
            "name": row["label"],
            "weights": row["weights"].rstrip("/").rsplit("/", 1)[-1],
            "accuracy": percent(row["accuracy"]["value"]),
            "interval": interval(row["accuracy"]),
            "log_loss": decimal(row["log_loss"]["value"]),
            "single": short(row["milliseconds"]["single"]),
            "batch": short(row["milliseconds"]["batch"]),
            "megabytes": short(row["megabytes"]),
            "seconds": short(row["seconds"]["features"] + row["seconds"]["head"]) + "*" * bool(row["cached"]),
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


def summary(comparison: Mapping[str, Any]) -> str:
    """Say in one or two sentences which backbone to take."""
    rows = [row for row in comparison["rows"] if not row["error"]]
    if not rows:
        return "No backbone could be measured."
    tested = plural(comparison["pictures"], "test picture")
    alike = [row["label"] for row in rows[1:] if not _is_worse(row)]
    worse = [row["label"] for row in rows[1:] if _is_worse(row)]
    best = f"{rows[0]['label']} has the highest accuracy on {tested}, {percent(rows[0]['accuracy']['value'])}"
    parts = []
    if alike:
        parts.append(f"{names(alike)} cannot be told from it on so many pictures")
    if worse:
        parts.append(f"{names(worse)} {'is' if len(worse) == 1 else 'are'} worse")
    told = f"{best}; {'; '.join(parts)}." if parts else f"{best}."
    if comparison["fastest"] == comparison["best"] or not alike:
        return told
    fastest = next(row for row in rows if row["name"] == comparison["fastest"])
    milliseconds = f"{short(fastest['milliseconds']['single'])} ms a picture"
    return f"{told} {fastest['label']} answers fastest of {'both' if len(alike) == 1 else 'them'}: {milliseconds}."


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
        "title": f"{measured[0]['label']} leads" if measured else "No backbone could be measured",
        "summary": summary(comparison),
        "rows": table_rows(comparison),
        "cached": any(row["cached"] for row in measured),
        "failed": [
            {"name": row["name"], "error": row["error"]} for row in comparison["rows"] if row["error"]
        ],
        "confidence": percent(comparison["confidence"], 0),
        "batch": backbone_measurements.BATCH,
        "scatter": comparison_charts.scatter(measured) if measured else None,
        "forest": comparison_charts.forest(measured) if len(measured) > 1 else None,
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


def _labels(given: Sequence[str]) -> dict[str, str]:
    """Return what each is called: its backbone, with its weights where they are random or tell it from another."""
    backbones = [name.partition("=")[0] for name in given]
    labels = {}
    for name in given:
        backbone, _, weights = name.partition("=")
        last = weights.rstrip("/").rsplit("/", 1)[-1] or "imagenet"
        if weights == "none":
            labels[name] = f"{backbone} (random)"
        else:
            labels[name] = backbone if backbones.count(backbone) == 1 else f"{backbone} ({last})"
    return labels
