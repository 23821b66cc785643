"""The section about sight shows what the visuals artifact says, escaped, and copes with one of an earlier version."""

import sys
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from graftflow.report.artifacts import Artifacts
from graftflow.report.images import Album, Encoded
from graftflow.report.sight import sight
from tests.unit.report_artifacts import Run

HARNESS = """{% macro image(number, alt, class="") %}
<img src="{{ pictures[number].uri }}" alt="{{ alt }}">{% endmacro %}
{% include "report_sight.jinja" %}"""


def render(visuals: dict[str, Any], album: Album) -> str:
    environment = Environment(
        loader=PackageLoader("graftflow"), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True
    )
    pictures = [Encoded(f"data:{number}", 1, 1) for number in range(len(album.pictures))]
    return environment.from_string(HARNESS).render(visuals=visuals, pictures=pictures)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose visuals have one of everything; the name of a class is hostile."""
    made = Run(tmp_path, ["coins", "moon"])
    evil = "<b>moon"
    point = {"x": 0.0, "y": 1.0, "class": evil, "split": "test", "path": "a/1.png", "predicted": "coins"}
    other = {"x": 1.0, "y": 0.0, "class": "coins", "split": "train", "path": "b/1.png", "predicted": None}
    near = [
        {"file": "5.jpg", "path": "b/2.png", "label": "coins", "cosine": 0.912},
        {"file": "5.jpg", "path": "a/2.png", "label": evil, "cosine": 0.8},
    ]
    mistake = {"path": "a/1.png", "label": evil, "predicted": "coins", "probability": 0.61}
    explained = {"file": "4.jpg", **mistake, "difference": 3.0, "error": 0.031}
    made.visuals |= {
        "explanations": {
            "layer": "top_relu",
            "steps": 64,
            "pictures": [explained],
            "sanity": {"file": "4.jpg", "grad_cam": -0.126, "integrated_gradients": 0.01, "passed": True},
        },
        "neighbours": [{"file": "4.jpg", **mistake, "nearest": near}],
        "map": {
            "method": "t-SNE",
            "trustworthiness": 0.987,
            "classes": [evil, "coins"],
            "points": [point, other],
            "thumbnails": [{"file": "5.jpg", "x": 0.0, "y": 1.0, "class": evil}],
        },
    }
    return made


def shown(run: Run) -> tuple[dict[str, Any], Album, str]:
    folders = run.write()
    for name in ("4.jpg", "5.jpg"):
        Image.new("RGB", (64, 64)).save(folders["visuals"] / name)
    (folders["visuals"] / "0.webp").write_bytes(b"RIFF animated")
    album = Album()
    view = sight(Artifacts(folders), album)
    return view, album, render(view, album)


def test_everything_is_shown_and_escaped(run: Run) -> None:
    view, album, page = shown(run)
    assert "<b>moon" not in page
    assert page.count("&lt;b&gt;moon") >= 5
    for said in ("−0.13", "0.01", "✓ They do", "3.1", "top_relu", "✗ coins", "✓ &lt;b&gt;moon", "0.91"):
        assert said in page
    assert "a/1.png: &lt;b&gt;moon, taken for coins" in page
    assert all(f'"data:{number}"' in page for number in range(len(album.pictures)))
    assert view["map"]["alt"].endswith("1\N{NO-BREAK SPACE}mistake marked.")


def test_the_map_lies_inside_its_drawing_and_mistakes_on_top(run: Run) -> None:
    drawn = shown(run)[0]["map"]
    for point in drawn["points"]:
        assert 0 < point["x"] < drawn["width"]
        assert 0 < point["y"] < drawn["height"]
    assert drawn["points"][-1]["mistake"]
    assert drawn["points"][-1]["y"] < drawn["points"][0]["y"]  # y goes up


def test_maps_that_do_not_depend_on_the_weights_are_called_so(run: Run) -> None:
    run.visuals["explanations"]["sanity"] |= {"grad_cam": 0.93, "passed": False}
    page = shown(run)[2]
    assert "badge bad" in page
    assert "✗ Not enough: do not trust them" in page


def test_animations_are_opened_by_keyboard_and_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.visuals["ideal"][0]["animation"] = "0.webp"
    view, _, page = shown(run)
    assert view["animated"]
    assert "<summary>Watch zebra form</summary>" in page
    assert 'src="data:image/webp;base64,' in page
    # By its module: the package has a function of the same name.
    monkeypatch.setattr(sys.modules[sight.__module__], "MOST_ANIMATION_BYTES", 5)
    view, _, page = shown(run)
    assert not view["animated"]
    assert "<summary>" not in page


def test_visuals_of_an_earlier_version_have_no_more_than_they_had(tmp_path: Path) -> None:
    page = shown(Run(tmp_path, ["coins", "moon"]))[2]
    assert "Ideal images" in page
    assert "Feature maps" in page
    assert "Where the answers come from" not in page
    assert "Map of the features" not in page


def test_every_figure_says_how_to_read_it(run: Run) -> None:
    page = shown(run)[2]
    headings = page.count("<h3>")
    assert headings == 6
    for part in page.split("<h3>")[1:]:
        assert "</figcaption>\n  </figure>" in part
