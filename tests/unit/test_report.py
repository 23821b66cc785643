"""The report: what the page says, what it holds, and what it must never do."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from graftflow.errors import InputError
from graftflow.report import write_report
from graftflow.report.artifacts import LAYOUT
from graftflow.report.images import LEVELS, Picture, encode_within
from tests.unit.report_artifacts import Run, picture, score

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The page as a browser reads it: its text by section, its tags, and whether they close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.here = ""
        self.feed(html)
        assert self.stack == []
        self.text = " ".join(self.sections.values())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("header", "section"):
            self.here = dict(attrs).get("id") or tag
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            words = " ".join(data.replace("\N{NO-BREAK SPACE}", " ").split())
            self.sections[self.here] = f"{self.sections.get(self.here, '')} {words}".strip()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", ["cat", "dog"])


def page_of(run: Run, min_accuracy: float = 0.9, **robust_gate: Any) -> Page:
    destination = run.root / "report" / "report.html"
    write_report(destination, artifacts=run.write(), min_accuracy=min_accuracy, **robust_gate)
    assert [path.name for path in destination.parent.iterdir()] == ["report.html"]
    assert destination.stat().st_size < 3_000_000
    return Page(destination.read_text(encoding="utf-8"))


def test_every_section_shows_the_figures_of_its_artifacts(run: Run) -> None:
    page = page_of(run)
    expected = {
        "header": [
            "cat and dog told apart with 92.3 % accuracy",
            "87.7 % to 96.8 %",
            "Gate passed 92.3 % is at least the 90 % asked for",
            "Fine-tuned efficientnet_lite0, last 2 blocks trained",
            "2 classes 88 pictures, of them 20 test pictures",
            "18.8 % worst case at ε = 1/255; 93.8 % without attack, on 16 pictures",
            "Version to deploy 1790000000",
            "caveat about the data",
        ],
        "data": [
            "directory:photos",
            "Caveat. Tiles of one photograph stand in several splits.",
            "cat 30 5 9 44",
            "All classes 60 10 18 88",
            "Files left out 25",
            "Duplicates, each in one split 3",
            "4 (CMYK: 4)",
            "JPEG: 88",
            "64 to 4,000 px, median 320",
            "broken00.jpg cut short",
            "broken19.jpg cut short And 5 more",
        ],
        "training": [
            "Fine-tuning helped: log loss on the validation pictures went from 0.432 to 0.211",
            "5 strengths of the penalty were tried and C = 0.01",
            "81.2 % 0.432",
            "delivered 88.8 % 0.211",
            "head alone, validation",
        ],
        "test": [
            "20 test pictures went through",
            "2 of them are classified wrong",
            "92.3 % 87.7 % to 96.8 %",
            "0.247 0.136 to 0.358",
            "0.9753 0.9642 to 0.9864",
            "3.2 % 1.2 % to 5.4 %",
            "cat 9 91.0 % 81.0 % to 98.0 % 88.0 % 72.0 % to 97.0 %",
            "cat 9 2 dog 0 9",
            "cat dog 2 (18.2 %)",
            "20 pictures: stated 90.0 %, right 80.0 %",
            "cat taken for dog, 76.5 % cat/1.png",
        ],
        "robustness": [
            "16 test pictures were changed on purpose",
            "93.8 % of them are classified right",
            "worst case FGSM PGD, targeted",
            "0.5 62.5 % 75 % 70 %",
            "cat, 98.7 % → dog, 86.4 % PGD at ε = 1/255; true class cat",
            "by 50 steps, made 87.5 % of 8 pictures look like the class after the label",
            "5.2/255",
            "Radii below 1/255",
        ],
        "sees": [
            "zebra, 99.7 % ImageNet network, 96 steps",
            "cat, 100 % trained network, 48 steps",
            "block1a_swish 112 × 112 × 32",
            "The picture: dog x/7.png",
        ],
        "use": [
            "make serve",
            "make query IMAGE=picture.jpg",
            "cd" * 32,
            "ab" * 32,
            "ef" * 32,
            "Seed 17",
            "(x-127)/128",
            "3.15.1",
        ],
    }
    assert list(page.sections) == ["", *expected]
    for section, texts in expected.items():
        for text in texts:
            assert text in page.sections[section], (section, text)
    assert "Does not fit together" not in page.text


def test_the_page_needs_no_network_and_no_script(run: Run) -> None:
    page = page_of(run)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "video"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/webp;base64,"))
    assert "url(" not in page.html
    assert "@import" not in page.html
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_page_is_accessible(run: Run) -> None:
    page = page_of(run)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7
    assert all(image["alt"] and int(image["width"] or 0) > 1 for image in images)
    charts = [a for t, a in page.tags if t == "svg" and a.get("class") == "chart"]
    assert len(charts) == 8
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for t, a in page.tags if t == "a"} <= set(ids)


def test_names_of_users_cannot_become_html(tmp_path: Path) -> None:
    evil = ["<script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>"]
    run = Run(tmp_path / "run", evil)
    run.dataset["source"] = run.dataset["note"] = "</style><script>alert(3)</script>{{ 7 * 7 }}"
    run.left_out = [f'"{evil[0]}","{evil[0]}"']
    run.evaluation["mistakes"][0]["path"] = evil[0]
    run.visuals["note"] = evil[0]
    run.visuals["feature_maps"][0]["layer"] = evil[0]
    run.adversarial["attacks"][0]["name"] = evil[0]
    page = page_of(run)
    assert "script" not in {tag for tag, _ in page.tags}
    assert {a.get("src", "data:")[:5] for _, a in page.tags} == {"data:"}  # type: ignore[index]
    assert not [a for _, a in page.tags if "onerror" in a]
    assert evil[0] in page.sections["data"]
    assert "{{ 7 * 7 }}" in page.sections["data"]


@pytest.mark.parametrize(
    ("accuracy", "min_accuracy", "passed", "said"),
    [
        (0.95, 0.95, True, "95.0 % is at least the 95 % asked for"),
        (0.85, 0.9, False, "85.0 % is below the 90 % asked for"),
        (0.89996, 0.9, False, "89.996 % is below the 90 % asked for"),
        (1.0, 0.0, True, "100 % is at least the 0 % asked for"),
    ],
)
def test_the_gate_is_told_plainly(
    run: Run, accuracy: float, min_accuracy: float, passed: bool, said: str
) -> None:
    run.evaluation["metrics"]["accuracy"] = score(accuracy, 0.8, 1.0)
    page = page_of(run, min_accuracy)
    assert said in page.sections["header"]
    assert ("✓ Gate passed" in page.text) == passed
    assert ("✗ Gate not passed" in page.text) == (not passed)
    assert ("Version to deploy" in page.text) == passed
    assert ("held back" in page.sections["use"]) == (not passed)


@pytest.mark.parametrize(
    ("least", "passed", "said"),
    [
        (0.0, True, ""),
        (0.1, True, "18.8 % under attack at ε = 1/255 is at least the 10 % asked for"),
        (0.5, False, "18.8 % under attack at ε = 1/255 is below the 50 % asked for"),
    ],
)
def test_the_gate_on_accuracy_under_attack_is_told_as_well(
    run: Run, least: float, passed: bool, said: str
) -> None:
    run.adversarial["epsilons"][1] = 1.0
    page = page_of(run, min_robust_accuracy=least, robust_epsilon="1/255")
    assert said in page.sections["header"]
    assert ("under attack at" in page.sections["header"]) == bool(said)
    assert ("✓ Gate passed" in page.text) == passed


def test_attacks_that_cannot_be_believed_pass_no_gate_and_give_no_figure(run: Run) -> None:
    run.adversarial["believable"] = False
    page = page_of(run, min_robust_accuracy=0.01)
    assert "✗ Gate not passed" in page.text
    assert "counts as an accuracy of 0 under attack" in page.sections["header"]
    assert "not believable" in page.sections["header"]


def test_a_page_of_many_classes_and_large_pictures_stays_below_three_megabytes(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [f"class {i:02d}" for i in range(40)])
    run.sheet = (1378, 2800)
    mistake, triplet = run.evaluation["mistakes"][0], run.adversarial["triplets"][0]
    run.evaluation["mistakes"] = [{**mistake, "picture": f"mistakes/{i}.jpg"} for i in range(12)]
    run.adversarial["triplets"] = [{**triplet, "file": f"triplets/{i}.png"} for i in range(4)]
    page = page_of(run)
    assert len(page.html) > 500_000
    paths = [a["d"] or "" for t, a in page.tags if t == "path"]
    assert sum(path.count("M") for path in paths) == 41
    assert "class 00 class 01 2 (18.2 %)" in page.sections["test"]
    assert 'class="matrix"' not in page.html


def test_a_page_of_a_thousand_classes_shows_the_weakest(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [f"class {i:03d}" for i in range(1000)])
    weak = run.evaluation["per_class"]["class 777"]
    weak["recall"] = score(0.1, 0.0, 0.3)
    page = page_of(run)
    assert "class 777" in page.sections["test"]
    assert "800 more are in evaluation.json" in page.sections["test"]
    assert "800 more are in dataset.json" in page.sections["data"]


def test_what_is_undefined_or_missing_is_said(run: Run) -> None:
    run.dataset["note"] = ""
    run.left_out = []
    run.model |= {"chosen": "head", "fine_tuned": None, "history": [], "unfrozen_blocks": 0}
    run.evaluation["metrics"] |= {"accuracy": score(0.9), "auc": score(None)}
    run.evaluation["per_class"]["dog"]["precision"] = score(None)
    run.evaluation |= {"mistakes": [], "confusion": [[11, 0], [0, 9]]}
    run.adversarial |= {"triplets": [], "epsilons": [], "attacks": [], "worst_case": None}
    run.visuals |= {"ideal": [], "feature_maps": [], "picture": None, "note": "No weights at hand."}
    page = page_of(run)
    for section, text in {
        "header": "Linear head efficientnet_lite0, frozen",
        "data": "No file was left out.",
        "training": "The backbone was not fine-tuned: the linear head is what is delivered.",
        "test": "There are none: all of the 20 test pictures are classified right.",
        "robustness": "No attack was tried.",
        "sees": "Note. No weights at hand.",
    }.items():
        assert text in page.sections[section]
    assert "No ideal images were made." in page.text
    assert "dog 9 – – 88.0 %" in page.sections["test"]
    assert "None of them is classified wrong." in page.sections["test"]
    assert "None" not in page.text.replace("None of them", "")
    assert "the 95 % interval" not in page.sections["header"]
    assert "aveat" not in page.text


def test_a_head_that_was_kept_is_said_so(run: Run) -> None:
    run.model |= {"chosen": "head", "fine_tuned": {"accuracy": 0.8, "log_loss": 0.5}}
    text = page_of(run).sections["training"]
    assert "Fine-tuning did not help: log loss on the validation pictures went from 0.432 to 0.500" in text
    assert "so the head was kept" in text
    assert "delivered 81.2 %" in text


def test_artifacts_of_different_runs_are_told_apart(run: Run) -> None:
    run.head["dataset_digest"] = "00" * 32
    text = page_of(run).sections["use"]
    assert "Does not fit together. The head artifact was made from another data set" in text


@pytest.mark.parametrize("name", LAYOUT)
def test_a_missing_file_names_its_artifact(run: Run, name: str) -> None:
    artifacts = run.write()
    (artifacts[name] / LAYOUT[name][0]).unlink()
    with pytest.raises(InputError, match=f"The '{name}' artifact must be") as caught:
        write_report(run.root / "report.html", artifacts=artifacts, min_accuracy=0.9)
    assert "\n" not in str(caught.value)
    assert not (run.root / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dataset", "contact_sheet.jpg"),
        ("dataset", "left_out.csv"),
        ("evaluation", "mistakes/0.jpg"),
        ("adversarial", "triplets/0.png"),
        ("visuals", "2.jpg"),
    ],
)
def test_a_missing_picture_names_its_artifact(run: Run, name: str, file: str) -> None:
    artifacts = run.write()
    (artifacts[name] / file).unlink()
    with pytest.raises(InputError, match=f"The '{name}' artifact must .*{Path(file).name}"):
        write_report(run.root / "report.html", artifacts=artifacts, min_accuracy=0.9)


@pytest.mark.parametrize(
    ("name", "text", "detail"),
    [
        ("model", "{", "JSONDecodeError"),
        ("head", "[]", "holds no object"),
        ("evaluation", '{"classes": []}', "lacks pictures, metrics"),
        ("visuals", '{"ideal": [{}], "feature_maps": []}', "KeyError"),
    ],
)
def test_a_broken_artifact_is_named(run: Run, name: str, text: str, detail: str) -> None:
    artifacts = run.write()
    (artifacts[name] / LAYOUT[name][0]).write_text(text)
    with pytest.raises(InputError, match=f"The '{name}' artifact must be .*{detail}"):
        write_report(run.root / "report.html", artifacts=artifacts, min_accuracy=0.9)


def test_settings_are_checked(run: Run) -> None:
    artifacts: dict[str, Any] = run.write()
    with pytest.raises(InputError, match=r"min_accuracy must be a fraction.*Received: 90"):
        write_report(run.root / "report.html", artifacts=artifacts, min_accuracy=90)
    del artifacts["visuals"]
    with pytest.raises(InputError, match="Missing: visuals"):
        write_report(run.root / "report.html", artifacts=artifacts, min_accuracy=0.9)


def test_the_report_loads_no_tensorflow(run: Run) -> None:
    code = "import sys, graftflow.report; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "src"})


def test_pictures_are_made_smaller_until_they_fit(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", 500, 400, seed=i)
    pictures = [Picture("visuals", tmp_path / f"{i}.png", 250) for i in range(3)]
    sizes = []
    for budget in (10_000_000, 40_000, 0):
        encoded = encode_within(pictures, budget)
        sizes.append(sum(len(one.uri) for one in encoded))
        assert [(one.width, one.height) for one in encoded] == [(250, 200)] * 3
    assert sizes[0] > 40_000 >= sizes[1] > sizes[2]
    assert LEVELS[0][0] == 1
