"""The report: one HTML page of a whole run, pictures inside, that needs neither scripts nor a network."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from graftflow.errors import InputError
from graftflow.files import atomic_file
from graftflow.report import results, robustness, sections, sight, training_trade
from graftflow.report.artifacts import Artifacts
from graftflow.report.data import data
from graftflow.report.images import Album, Encoded, encode_within
from graftflow.storage import writing

MOST_BYTES = 2_900_000  # What mail programs and KFP's pages still show well.
_BLANK = Encoded("", 1, 1)


def write_report(
    destination: str | Path,
    *,
    artifacts: Mapping[str, str | Path],
    min_accuracy: float,
    min_robust_accuracy: float = 0.0,
    robust_epsilon: str = "",
) -> None:
    """Write one self-contained HTML page about a run.

    The page runs no script and loads nothing; its pictures are encoded again, smaller where it must
    be, so that it stays under 3 MB. Names and paths of users are escaped.

    Args:
        destination: the file to write.
        artifacts: folder of ``dataset``, ``features``, ``head``, ``model``, ``saved_model``,
            ``evaluation``, ``adversarial`` and ``visuals``, each by this name.
        min_accuracy: the gate's threshold, a fraction in [0, 1].
        min_robust_accuracy: the threshold of the gate on accuracy under attack; 0 for none.
        robust_epsilon: radius of that gate, a fraction or ``k/255``; empty takes the largest that was tried.

    Raises:
        InputError: an artifact or one of its files is missing or is not laid out as its step
            writes it, or the threshold is no fraction.
    """
    for name, value in (("min_accuracy", min_accuracy), ("min_robust_accuracy", min_robust_accuracy)):
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise InputError(f"{name} must be a fraction in [0, 1]. Received: {value}.")
    found = Artifacts(artifacts)
    album = Album()
    view = _view(found, album, min_accuracy, sections.RobustGate(min_robust_accuracy, robust_epsilon))
    environment = Environment(
        loader=PackageLoader("graftflow"),
        autoescape=True,
        undefined=StrictUndefined,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    bare = template.render(**view, pictures=[_BLANK] * len(album.pictures))
    room = MOST_BYTES - len(bare.encode("utf-8")) - 8 * len(album.pictures)
    page = template.render(**view, pictures=encode_within(album.pictures, room))
    with writing(Path(destination).parent), atomic_file(destination) as aside:
        aside.write_text(page.lstrip(), encoding="utf-8")


def _view(
    artifacts: Artifacts, album: Album, min_accuracy: float, robust_gate: sections.RobustGate
) -> dict[str, Any]:
    """Return what the template shows, one entry a section."""
    view: dict[str, Any] = {"made": _made()}
    with artifacts.blaming("evaluation"):
        view["verdict"] = sections.verdict(artifacts, min_accuracy, robust_gate)
        view["tests"] = results.tests(artifacts, album)
    with artifacts.blaming("dataset"):
        view["data"] = data(artifacts, album)
    with artifacts.blaming("model"):
        view["training"] = sections.training(artifacts)
        view["trade"] = training_trade.training_trade(artifacts["model"])
    with artifacts.blaming("adversarial"):
        view["robustness"] = robustness.robustness(artifacts, album)
        view["verdict"]["robustness"] = robustness.headline(artifacts["adversarial"])
    with artifacts.blaming("visuals"):
        view["visuals"] = sight.sight(artifacts, album)
    with artifacts.blaming("saved_model"):
        view["provenance"] = sections.provenance(artifacts)
    return view


def _made() -> str:
    try:
        by = f"graftflow {version('graftflow')}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        by = "graftflow"
    return f"{by}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
