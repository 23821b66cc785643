"""The section about robustness: figures with their intervals, and none where a check failed."""

from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, PackageLoader, StrictUndefined

from graftflow.report.artifacts import Artifacts
from graftflow.report.images import Album, Encoded
from graftflow.report.robustness import headline, robustness
from tests.unit.report_artifacts import Run

MACRO = """{% from "charts.jinja" import draw, pair, whisker %}
{% macro image(number, alt, class="") %}<img alt="{{ alt }}">{% endmacro %}
<style>{% include "report_robustness.css" %}</style>{% include "report_robustness.jinja" %}"""


def columns(*values: float) -> dict[str, list[float]]:
    return {
        "accuracy": list(values),
        "low": [max(0.0, v - 0.1) for v in values],
        "high": [min(1.0, v + 0.1) for v in values],
    }


def check(name: str, holds: bool | None) -> dict[str, Any]:
    return {"name": name, "holds": holds, "seen": f"seen of {name}", "why": f"why of {name}"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose attack has everything that the artifact can hold."""
    run = Run(tmp_path / "run", ["cat", "dog"])
    said = run.adversarial
    said["worst_case"] |= columns(0.625, 0.1875, 0.0)
    said |= {
        "confidence": 0.95,
        "clean": {"value": 0.9375, "low": 0.72, "high": 0.99},
        "believable": True,
        "checks": [check("first", True), check("second", True), check("third", None)],
        "attacks": [*said["attacks"], {**said["attacks"][0], "name": "Square", "on_the_rest": True}],
        "noise": columns(0.9375, 0.9, 0.875),
        "l2": {
            "epsilons": [0.25, 0.5],
            "attacks": [{"name": "PGD", "targeted": False, **columns(0.4375, 0.123), "success": [0.5, 0.9]}],
        },
        "minimal": {"attack": "PGD", "pictures": 4, "epsilons": [0.125, 0.5, 3.0, None]},
        "transfer": {
            "epsilon": 2.0,
            "steps": 10,
            "pictures": 12,
            "models": ["fine-tuned", "features only"],
            "clean": [1.0, 1.0],
            "fooled": [
                [{"value": v, "low": v / 2, "high": 1.0} for v in row] for row in ((1.0, 0.31), (0.42, 0.9))
            ],
        },
        "corruptions": {
            "source": "Hendrycks and Dietterich 2019",
            "severities": [1, 2, 3, 4, 5],
            "pictures": 16,
            "rows": [{"name": "Fog", **columns(0.9, 0.8, 0.7, 0.6, 0.511)}],
        },
    }
    return run


def section(run: Run) -> str:
    album = Album()
    view = robustness(Artifacts(run.write()), album)
    environment = Environment(
        loader=PackageLoader("graftflow"), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True
    )
    blank = [Encoded("", 1, 1)] * len(album.pictures)
    html = environment.from_string(MACRO).render(robustness=view, pictures=blank)
    return " ".join(html.replace("\N{NO-BREAK SPACE}", " ").split())


def test_a_believed_attack_shows_figures_intervals_and_checks(run: Run) -> None:
    html = section(run)
    for text in (
        "✓ Believable",
        "2 checks passed, none failed",
        "holds: seen of first",
        "not checked: seen of third",
        '19 %<span class="interval">9 to 29</span>',
        "Random noise",
        "then Square",
        "Accuracy, length bounded",
        "0.25 to 0.5",
        "more than 4",
        "31 %<span>16 % to 100 %</span>",
        "at ε = 2/255",
        "Fog",
        "Hendrycks and Dietterich 2019",
        "51 % at 5",
    ):
        assert text in html, text
    assert "</svg>Square</li>" not in html  # it has no line of its own
    assert html.count('<svg class="chart"') == 4
    assert html.count('class="guide"') == 3 + 2 + 6


def test_where_a_check_fails_no_figure_of_an_attack_is_printed(run: Run) -> None:
    run.adversarial["checks"][1]["holds"] = False
    run.adversarial["believable"] = False
    html = section(run)
    assert "✗ Not believable" in html
    assert "1 of 2 checks failed" in html
    assert '<li class="bad">' in html
    assert 'class="alarm"' in html
    for figure in ("19 %", "62.5 %", "31 %", "0.25 to 0.5", "Accuracy, length bounded"):
        assert figure not in html
    assert "Fog" in html  # no attack made it
    assert headline(run.adversarial)["believable"] is False  # type: ignore[index]


def test_an_artifact_of_an_earlier_version_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    html = section(Run(tmp_path / "old", ["cat", "dog"]))
    assert "Believable" not in html
    assert "18.8 %" in html
    assert "Without ill will" not in html
    assert html.count('<svg class="chart"') == 2


def test_without_attacks_it_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "none", ["cat", "dog"])
    run.adversarial |= {"triplets": [], "epsilons": [], "attacks": [], "worst_case": None}
    assert "No attack was tried." in section(run)
    assert headline(run.adversarial) is None


def test_the_headline_takes_the_smallest_change_that_a_png_holds(run: Run) -> None:
    found = headline(run.adversarial)
    assert found is not None
    assert (found["epsilon"], found["believable"]) == ("1/255", True)
    assert found["accuracy"].startswith("18.8")


def test_names_of_users_cannot_become_html(run: Run) -> None:
    evil = "<script>alert(1)</script>"
    run.adversarial["transfer"]["models"][0] = evil
    run.adversarial["checks"][0]["seen"] = evil
    run.adversarial["triplets"][0]["label"] = evil
    assert "<script>" not in section(run)
