"""The page of a challenge, its verdict and its few lines for a terminal; loads no TensorFlow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from graftflow.errors import InputError
from graftflow.files import atomic_file, read_json
from graftflow.report import numbers
from graftflow.report.charts import Axis, Chart, Guide, Point, Series, log_axis, power_of_ten
from graftflow.report.images import Album, encode_within

MOST_BYTES = 1_900_000
MOST_ROWS = 20
PICTURE_SIDE = 240
# An AUC from which pictures are called unlike the training data, and one below which they are called like it.
UNLIKE, ALIKE = 0.9, 0.65
_SURE = 0.8


@dataclass(frozen=True)
class _Score:
    name: str
    short: str
    meaning: str
    paper: str


_SCORES = {
    "mahalanobis": _Score(
        "Mahalanobis distance",
        "Mahalanobis",
        "how far the features lie from the nearest class of the training pictures, in deviations",
        "Lee et al. 2018, section\N{NO-BREAK SPACE}2.1",
    ),
    "energy": _Score(
        "Energy",
        "energy",
        "how little all logits together speak for any class: −logsumexp of the logits",
        "Liu et al. 2020, section\N{NO-BREAK SPACE}3",
    ),
    "max_softmax": _Score(
        "Lack of confidence",
        "confidence",
        "one minus the probability of the answer: the baseline that the others must beat",
        "Hendrycks and Gimpel 2017",
    ),
}


def verdict_of(challenge: Mapping[str, Any]) -> dict[str, Any]:
    """Say in one sentence what a challenge showed.

    Args:
        challenge: what stands in ``challenge.json``, without the verdict.

    Returns:
        ``headline`` and ``details``, the two halves of the sentence, the ``sentence`` itself, and ``passed``: whether
        the model copes with the pictures.
    """
    lead, accuracy = challenge["lead"], challenge["accuracy"]
    score = challenge["scores"][lead]
    auc, strange = score["auc"]["value"], score["rejected"]["challenge"]["value"]
    inside = sum(challenge["in_dataset"].values()) / challenge["pictures"]
    unlike = (
        f"{numbers.percent(strange, 0)} look unlike its training data ({_SCORES[lead].short} AUC {auc:.2f})"
    )
    if accuracy is not None:
        own = challenge["own_accuracy"]
        passed = accuracy["high"] >= own["low"]
        headline = f"The model {'holds up' if passed else 'does worse'} on these pictures"
        right = [numbers.percent(figures["value"]) for figures in (accuracy, own)]
        details = f"{right[0]} right, {right[1]} of its own test pictures; {unlike}"
    else:
        passed = auc < ALIKE
        sure, before = challenge["confidence"]["challenge"], challenge["confidence"]["test"]
        if auc >= UNLIKE:
            headline = "The model has not learned these pictures"
        elif auc >= ALIKE:
            headline = "Some of these pictures are new to the model"
        else:
            headline = "These pictures are much like those that the model has learned"
        still = f"it is {'still ' * (not passed)}{numbers.percent(sure, 0)} confident on them"
        falls = f"its confidence is {numbers.percent(sure, 0)} ({numbers.percent(before, 0)} on its own test pictures)"
        details = f"{unlike}, and {still if sure >= _SURE else falls}"
    if inside >= 0.5:
        passed, headline = False, "This is no challenge: the model's own data hold these pictures"
    return {
        "headline": headline,
        "details": details,
        "sentence": f"{headline}: {details}.",
        "passed": bool(passed),
    }


def read_challenge(path: str | Path) -> dict[str, Any]:
    """Read ``challenge.json``.

    Args:
        path: the artifact's folder, or the file itself.

    Raises:
        InputError: there is no such file, or it is none of a challenge.
    """
    file = Path(path) / "challenge.json" if Path(path).is_dir() else Path(path)
    try:
        said: dict[str, Any] = read_json(file)
        said["verdict"]["sentence"], said["scores"]["mahalanobis"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"A challenge must be a folder with challenge.json, as challenge_model writes it. "
            f"Received: '{path}' ({type(error).__name__}: {error})."
        ) from error
    return said


def text_summary(path: str | Path) -> str:
    """Return the key figures of a challenge as a few lines for a terminal.

    Args:
        path: the artifact's folder, or its ``challenge.json``.

    Raises:
        InputError: as :func:`read_challenge`.
    """
    said = read_challenge(path)
    facts = {fact["name"]: f"{fact['value']} ({fact['small']})" for fact in _facts(said)}
    width = max(map(len, facts))
    lines = [said["verdict"]["sentence"], *(f"  {name:<{width}}  {text}" for name, text in facts.items())]
    lines += [f"  {doubt}" for doubt in _doubts(said)]
    return "\n".join(lines)


def key_figures(path: str | Path) -> dict[str, float]:
    """Return the figures of a challenge that a pipeline logs; accuracy only where the model has a class of it.

    Args:
        path: the artifact's folder, or its ``challenge.json``.

    Raises:
        InputError: as :func:`read_challenge`.
    """
    said = read_challenge(path)
    figures = {"pictures": float(said["pictures"]), "confidence": said["confidence"]["challenge"]}
    if said["accuracy"] is not None:
        figures["accuracy"] = said["accuracy"]["value"]
    for name, row in said["scores"].items():
        figures[f"{name}_auc"] = row["auc"]["value"]
        figures[f"{name}_rejected"] = row["rejected"]["challenge"]["value"]
    return figures


def write_page(destination: str | Path, *, challenge_path: str | Path) -> None:
    """Write one self-contained HTML page about a challenge, under 2 MB, without scripts.

    Args:
        destination: the file to write.
        challenge_path: a ``challenge`` artifact.

    Raises:
        InputError: the artifact or one of its pictures is missing.
    """
    said = read_challenge(challenge_path)
    album = Album()
    view = _view(said, album, Path(challenge_path))
    environment = Environment(
        loader=PackageLoader("graftflow"), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True
    )
    template = environment.get_template("challenge.html.jinja")
    page = template.render(**view, pictures=encode_within(album.pictures, MOST_BYTES - 100_000))
    with atomic_file(destination) as aside:
        aside.write_text(page.lstrip(), encoding="utf-8")


def _view(said: Mapping[str, Any], album: Album, folder: Path) -> dict[str, Any]:
    shares = sorted(said["predicted"].items(), key=lambda item: -item[1])
    largest = shares[0][1]
    by_class = sorted(said["by_class"].items(), key=lambda item: -item[1]["pictures"])
    left_out = said["left_out"]
    return {
        "verdict": said["verdict"],
        "source": said["source"],
        "facts": _facts(said),
        "doubts": _doubts(said),
        "sample": _sample(said),
        "lead": _in_text(said["lead"]),
        "two_classes": len(said["model"]["classes"]) == 2,
        "scores": [_score(name, said["scores"][name]) for name in _SCORES],
        "charts": [_histogram(name, said["scores"][name]).drawing() for name in _SCORES],
        "predicted": [
            {"name": name, "share": numbers.percent(share), "width": round(100 * share / largest, 1)}
            for name, share in shares[:MOST_ROWS]
        ],
        "more_predicted": max(0, len(shares) - MOST_ROWS),
        "by_class": [
            {
                "name": name,
                "known": row["known"],
                "pictures": numbers.count(row["pictures"]),
                "predicted": row["predicted"],
                "share": numbers.percent(row["share"], 0),
                "confidence": numbers.percent(row["confidence"], 0),
                "rejected": numbers.percent(row["rejected"], 0),
            }
            for name, row in by_class[:MOST_ROWS]
        ],
        "more_classes": max(0, len(by_class) - MOST_ROWS),
        "sheets": [
            {
                "name": name,
                "rows": [
                    {
                        "picture": album.add("challenge", folder / row["picture"], PICTURE_SIDE),
                        "predicted": row["predicted"],
                        "confidence": numbers.percent(row["confidence"]),
                        "score": _written(row["score"]),
                        "path": row["path"],
                    }
                    for row in said[key]
                ],
            }
            for key, name in (("familiar", "Most familiar"), ("alien", "Most alien"))
            if said[key]
        ],
        "left_out": left_out[:MOST_ROWS],
        "more_left_out": max(0, len(left_out) - MOST_ROWS),
        "provenance": [
            ("Challenge", said["source"]),
            ("Model", said["model"]["backbone"]),
            ("Its classes", _classes(said)),
            ("Its data set", f"{said['dataset']['source']}, {said['dataset']['digest']}"),
            ("Own pictures used", ", ".join(f"{n:,} {split}" for split, n in said["own"].items())),
            ("Seed", said["settings"]["seed"]),
            ("Shrinkage of the covariance", f"{said['shrinkage']:.3f}"),
        ],
        "made": _made(),
    }


def _facts(said: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures that matter most: name, value and small print."""
    score, sure = said["scores"][said["lead"]], said["confidence"]
    accuracy, own = said["accuracy"], said["own_accuracy"]
    if accuracy is None:
        why = "none of its classes is the model's" if said["labelled"] else "the pictures have no labels"
        right = {"value": numbers.NOTHING, "small": why}
    else:
        right = {
            "value": numbers.percent(accuracy["value"]),
            "small": f"{numbers.interval(accuracy)}, on {numbers.plural(accuracy['pictures'], 'picture')} of the "
            f"model's classes; {numbers.percent(own['value'])} on own test pictures",
        }
    return [
        {"name": "Accuracy", **right},
        {
            "name": "Look unlike the training data",
            "value": numbers.percent(score["rejected"]["challenge"]["value"]),
            "small": f"{numbers.percent(score['rejected']['test']['value'])} of own test pictures",
        },
        {
            "name": "Told apart from own pictures",
            "value": f"AUC {score['auc']['value']:.3f}",
            "small": f"{numbers.interval(score['auc'], _three)}, by {_in_text(said['lead'])}; 0.5 is not at all",
        },
        {
            "name": "Mean confidence",
            "value": numbers.percent(sure["challenge"]),
            "small": f"{numbers.percent(sure['test'])} on own test pictures",
        },
    ]


def _sample(said: Mapping[str, Any]) -> str:
    pictures, available = said["pictures"], said["available"]
    return (
        f"{numbers.plural(pictures, 'picture')}"
        f"{f' of {numbers.count(available)}' if available > pictures else ''} from {said['source']}"
    )


def _doubts(said: Mapping[str, Any]) -> list[str]:
    """Return what makes the figures say less than they seem to."""
    doubts = []
    inside = said["in_dataset"]
    total = sum(inside.values())
    if total:
        doubts.append(
            f"{numbers.percent(total / said['pictures'], 0)} of these pictures stand in the model's own data set "
            f"({inside['train']:,} of {said['pictures']:,} in its training split): that is no challenge."
        )
    if said["note"]:
        doubts.append(said["note"])
    if said["left_out"]:
        doubts.append(
            f"{numbers.plural(len(said['left_out']), 'picture')} of the sample could not be decoded and "
            f"{'is' if len(said['left_out']) == 1 else 'are'} left out."
        )
    return doubts


def _classes(said: Mapping[str, Any]) -> str:
    classes = said["model"]["classes"]
    rest = len(classes) - MOST_ROWS
    return ", ".join(classes[:MOST_ROWS]) + (f" and {rest} more" if rest > 0 else "")


def _score(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    score = _SCORES[name]
    return {
        "name": score.name,
        "meaning": score.meaning,
        "paper": score.paper,
        "auc": f"{row['auc']['value']:.3f}",
        "auc_interval": numbers.interval(row["auc"], _three),
        "fpr": numbers.percent(row["fpr_at_95_tpr"]["value"]),
        "fpr_interval": numbers.interval(row["fpr_at_95_tpr"]),
        "threshold": _written(row["threshold"]),
        "challenge": numbers.percent(row["rejected"]["challenge"]["value"]),
        "test": numbers.percent(row["rejected"]["test"]["value"]),
    }


def _in_text(name: str) -> str:
    return "Mahalanobis distance" if name == "mahalanobis" else _SCORES[name].name.lower()


def _histogram(name: str, row: Mapping[str, Any]) -> Chart:
    shown = _SCORES[name].name
    edges = row["histogram"]["edges"]
    shares = {"own test pictures": row["histogram"]["test"], "challenge": row["histogram"]["challenge"]}
    top = max(map(max, shares.values()))
    ticks = _round_ticks(0.0, top)
    label = f"{_in_text(name)}, stranger →"
    across = (
        log_axis(label, [edges[0], edges[-1]], power_of_ten)
        if name == "max_softmax"
        else Axis(label, edges[0], edges[-1], _round_ticks(edges[0], edges[-1]), _written)
    )
    up = Axis("share of pictures", 0.0, top * 1.04, ticks, lambda share: f"{100 * share:.3g} %")
    threshold = row["threshold"]
    return Chart(
        shown,
        f"Histogram of {_in_text(name)}: AUC {row['auc']['value']:.3f}; "
        f"{numbers.percent(row['rejected']['challenge']['value'])} of the challenge lie beyond the threshold.",
        across,
        up,
        [
            Series(label, _steps(edges, values), colour, dots=False)
            for colour, (label, values) in enumerate(shares.items())
        ],
        [Guide((threshold, 0.0), (threshold, up.high), "95 % of validation")],
    )


def _steps(edges: list[float], shares: list[float]) -> list[Point]:
    """Return the outline of a histogram, from the ground and back to it."""
    outline = [(edges[0], 0.0)]
    for (left, right), share in zip(pairwise(edges), shares, strict=True):
        outline += [(left, share), (right, share)]
    return [*outline, (edges[-1], 0.0)]


def _round_ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    return [round(i * step, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _written(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}".replace("-", "−")


def _three(value: float | None) -> str:
    return numbers.NOTHING if value is None else f"{value:.3f}"


def _made() -> str:
    try:
        return f"graftflow {version('graftflow')}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "graftflow"
