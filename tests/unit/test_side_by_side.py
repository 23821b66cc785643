"""The benchmark beside the peers: fair splits, figures that are right, and a page of them; no recipe is run."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.side_by_side import __main__ as command
from benchmarks.side_by_side import comparison, page, recipes, splits
from benchmarks.side_by_side.stopwatch import Stopwatch
from graftflow.errors import InputError


def record(recipe: str, seed: int, wrong: int, *, seconds: float) -> dict[str, Any]:
    """A record of ten test pictures, so many of them wrong."""
    rows = {
        f"{c}/{seed}-{i}.jpg": [0.9, 0.1] if c == "cat" else [0.1, 0.9]
        for c in ("cat", "dog")
        for i in range(5)
    }
    for path in list(rows)[:wrong]:
        rows[path] = rows[path][::-1]
    times = {"seconds": seconds, "cpu_seconds": 2 * seconds}
    curve = [(0.96, 1.0), (0.975, 2.0), (0.97, 3.0), (0.975, 4.0)]
    return {
        "recipe": recipe,
        "seed": seed,
        "phases": dict.fromkeys(page.PHASES, times),
        "curve": [{"seconds": at, "accuracy": right, "log_loss": 0.1} for right, at in curve],
        "results": [{"name": recipe, **times, "probabilities": rows}],
    }


RECORDS = [record("graftflow", seed, 0, seconds=10.0) for seed in range(3)]
RECORDS += [record("keras", seed, 1 + seed % 2, seconds=40.0) for seed in range(3)]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return comparison.compare(RECORDS, ("cat", "dog"))


def test_peers_see_the_splits_of_graftflow_and_no_picture_twice(picture_folder: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    for label in ("brick", "coffee"):
        shutil.copytree(picture_folder / label, two / label)
    split = splits.prepare(two, tmp_path / "seed-0", seed=0, quick=False)
    seen = {
        name: {
            path.relative_to(split.pictures / name).as_posix() for path in split.pictures.glob(f"{name}/*/*")
        }
        for name in splits.SPLITS
    }
    assert set().union(*seen.values()) == {p.relative_to(two).as_posix() for p in two.glob("*/*")}
    assert sum(map(len, seen.values())) == 32
    assert all(path.read_bytes() for path in split.pictures.glob("*/*/*"))


def test_three_classes_are_refused(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wants two classes. Received: brick, coffee, rocket"):
        splits.prepare(picture_folder, tmp_path / "seed-0", seed=0, quick=False)
    assert not (tmp_path / "seed-0").exists()


def test_comparison_counts_right_answers_and_ratios(summary: dict[str, Any]) -> None:
    keras = summary["models"]["keras"]
    assert keras["accuracy"]["value"] == pytest.approx((0.9 + 0.8 + 0.9) / 3)
    assert keras["accuracy"]["low"] < keras["accuracy"]["value"] < keras["accuracy"]["high"]
    assert keras["times"] == pytest.approx(4.0)
    assert summary["models"]["graftflow"]["times"] == pytest.approx(1.0)


def test_pairs_compare_picture_by_picture(summary: dict[str, Any]) -> None:
    (pair,) = summary["pairs"]
    assert (pair["first"], pair["second"], pair["seeds"]) == ("graftflow", "keras", [0, 1, 2])
    assert pair["accuracy"]["value"] == pytest.approx(4 / 30)
    assert 0 < pair["accuracy"]["low"] < 4 / 30 < pair["accuracy"]["high"]
    assert pair["log_loss"]["value"] < 0


def test_recipes_that_saw_other_pictures_are_not_compared() -> None:
    other = record("keras", 0, 1, seconds=40.0)
    other["results"][0]["probabilities"].popitem()
    with pytest.raises(InputError, match="must predict the same test pictures. Received: 1 that"):
        comparison.compare([RECORDS[0], other], ("cat", "dog"))


def test_seconds_to_an_accuracy_are_those_of_the_first_time() -> None:
    found = RECORDS[0]
    assert comparison.seconds_to(found, 0.97) == 2.0
    assert comparison.seconds_to(found, 0.98) is None
    assert comparison.seconds_to_final(found) == 2.0


def test_page_and_tables_name_every_model(summary: dict[str, Any], tmp_path: Path) -> None:
    text = page.tables(summary)
    assert "+0.133 [" in text
    assert "4.00" in text
    page.write_page(tmp_path / "index.html", RECORDS, summary, "about")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.count('<svg class="chart"') == 3
    assert "keras: 86.67 %, 40 s" in html


def test_stopwatch_leaves_out_what_only_the_benchmark_wants(tmp_path: Path) -> None:
    watch = Stopwatch(time.monotonic())
    watch.enter("train")
    with watch.excluded():
        time.sleep(0.3)
    result = watch.ready("model")
    watch.predicted(result, ["cat/0.jpg"], [[0.25, 0.75]])
    watch.write(tmp_path / "record.json", distributions=("numpy",))
    found = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert found["results"][0]["seconds"] < 0.3
    assert found["phases"]["train"]["seconds"] < 0.3
    assert found["results"][0]["probabilities"] == {"cat/0.jpg": [0.25, 0.75]}


def test_recipe_without_its_libraries_says_which() -> None:
    absent = recipes.Recipe("none", ("json", "no_such_module"), "nobody")
    assert recipes.missing(absent, sys.executable).startswith("no_such_module not installed")
    assert recipes.missing(recipes.Recipe("none", ("json",), "nobody"), sys.executable) == ""


def test_interpreter_that_is_not_there_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    path = str(tmp_path / "python")
    assert recipes.missing(recipes.RECIPES["fastai"], path) == f"'{path}' is no Python that works"


@pytest.mark.parametrize("names", ["", "graftflow,graftflow", "graftflow,torch"])
def test_recipes_must_be_known_and_named_once(names: str) -> None:
    with pytest.raises(InputError, match=f"recipes must be some of graftflow.* Received: '{names}'"):
        recipes.choose(names)


def test_bad_settings_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--seeds", "one"])
    assert code == 1
    assert capsys.readouterr().err == "seeds must be whole numbers with commas. Received: 'one'.\n"
