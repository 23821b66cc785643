"""The comparison ranks by what the pictures show, and its page is complete, escaped and self-contained."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from graftflow import comparison_charts, comparison_pages
from graftflow.errors import InputError

PICTURES = 210


def measurement(
    folder: Path, name: str, wrong: range, *, milliseconds: float = 20.0, error: str = ""
) -> Path:
    """A measurement of a backbone that is wrong on these of 210 pictures."""
    folder.mkdir(parents=True)
    content = {"name": name, "weights": name.partition("=")[2] or "imagenet", "error": error}
    if not error:
        losses = np.full(PICTURES, -np.log(0.9))
        losses[list(wrong)] = -np.log(0.2)
        accuracy = 1 - len(wrong) / PICTURES
        spread = 2 * (accuracy * (1 - accuracy) / PICTURES) ** 0.5
        content |= {
            "pictures": PICTURES,
            "accuracy": {"value": accuracy, "low": accuracy - spread, "high": min(1, accuracy + spread)},
            "log_loss": {"value": float(losses.mean()), "low": 0.0, "high": 1.0},
            "seconds": {"features": 30.0, "head": 1.5},
            "cached": 0,
            "megabytes": 16.0,
            "milliseconds": {"single": milliseconds, "batch": milliseconds / 2},
        }
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "predicted", "cat", "dog"])
            for number in range(PICTURES):
                row = ["dog", 0.2, 0.8] if number in wrong else ["cat", 0.9, 0.1]
                writer.writerow([f"{number}.jpg", "cat", *row])
    (folder / "measurement.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [
        measurement(tmp_path / "0", "vgg16=/w/<b>.h5", range(40), milliseconds=300),
        measurement(tmp_path / "1", "efficientnet_lite0", range(5, 10), milliseconds=24),
        measurement(tmp_path / "2", "resnet50", range(3), milliseconds=120),
        measurement(tmp_path / "3", "mobilenetv2=none", range(60), milliseconds=10),
        measurement(tmp_path / "4", "efficientnetb0", range(0), error="must be <reachable>. Received: no"),
    ]


def test_the_best_comes_first_and_what_failed_last(paths) -> None:
    found = comparison_pages.compare_measurements(paths)
    assert [row["name"] for row in found["rows"]] == [
        "resnet50",
        "efficientnet_lite0",
        "vgg16=/w/<b>.h5",
        "mobilenetv2=none",
        "efficientnetb0",
    ]
    assert found["best"] == "resnet50"
    assert [row["to_best"] is None for row in found["rows"]] == [True, False, False, False, True]
    second = found["rows"][1]["to_best"]
    assert (second["only_first"], second["only_second"]) == (3, 5)
    assert second["accuracy"]["difference"] == pytest.approx(-2 / PICTURES)


def test_the_fastest_is_one_that_the_pictures_cannot_tell_from_the_best(paths) -> None:
    found = comparison_pages.compare_measurements(paths)
    # mobilenetv2 is faster still, but worse.
    assert found["fastest"] == "efficientnet_lite0"
    assert comparison_pages.summary(found) == (
        "resnet50 has the highest accuracy on 210\N{NO-BREAK SPACE}test pictures, 98.6\N{NO-BREAK SPACE}%; "
        "efficientnet_lite0 cannot be told from it on so many pictures; vgg16 and mobilenetv2 (random) are worse. "
        "efficientnet_lite0 answers fastest of both: 24 ms a picture."
    )


def test_equal_accuracies_are_ranked_by_log_loss_then_time(tmp_path: Path) -> None:
    slow = measurement(tmp_path / "slow", "vgg16", range(5), milliseconds=300)
    fast = measurement(tmp_path / "fast", "resnet50", range(5), milliseconds=100)
    found = comparison_pages.compare_measurements([slow, fast])
    assert found["best"] == found["fastest"] == "resnet50"
    assert found["rows"][1]["to_best"]["p"] == 1.0


def test_the_order_of_measuring_does_not_matter(paths) -> None:
    assert (
        comparison_pages.compare_measurements(paths)["rows"][:4]
        == (comparison_pages.compare_measurements(paths[::-1])["rows"][:4])
    )


def test_the_page_is_complete_escaped_and_self_contained(paths, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    folder.mkdir()
    found = comparison_pages.write_comparison(folder, tmp_path / "page.html", measurement_paths=paths)
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8")) == found
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=[\"']?https?:", page)
    assert "<b>" not in page
    assert "&lt;b&gt;.h5" in page
    assert "must be &lt;reachable&gt;. Received: no" in page
    assert page.count('class="dot ') == 4
    for row in comparison_pages.table_rows(found):
        for key in ("name", "accuracy", "interval", "single", "batch", "megabytes", "seconds"):
            assert row[key].replace("<", "&lt;") in page, (row["name"], key)


def test_with_nothing_measured_the_page_says_so_and_the_step_is_refused(tmp_path: Path) -> None:
    paths = [measurement(tmp_path / n, n, range(0), error=f"{n} is away") for n in ("vgg16", "resnet50")]
    folder = tmp_path / "comparison"
    folder.mkdir()
    found = comparison_pages.write_comparison(folder, tmp_path / "page.html", measurement_paths=paths)
    assert found["best"] == ""
    assert "No backbone could be measured" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="Received: vgg16: vgg16 is away; resnet50: resnet50 is away"):
        comparison_pages.refuse_nothing_measured(found)


def test_what_is_no_measurement_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="readable measurement.json"):
        comparison_pages.compare_measurements([tmp_path])
    with pytest.raises(InputError, match="at least one measurement"):
        comparison_pages.compare_measurements([])
    (tmp_path / "measurement.json").write_text('{"name": "vgg16", "error": ""}')
    with pytest.raises(InputError, match="readable measurement.json"):
        comparison_pages.compare_measurements([tmp_path])


def test_labels_stay_inside_the_chart_and_off_each_other(paths, tmp_path: Path) -> None:
    crowd = [
        measurement(tmp_path / f"c{n}", name, range(n), milliseconds=20 + n)
        for n, name in enumerate(("vgg19", "resnet50v2", "mobilenetv3large", "efficientnetv2b0"))
    ]
    found = comparison_pages.compare_measurements([*paths, *crowd])
    chart = comparison_charts.scatter([row for row in found["rows"] if not row["error"]])
    boxes = []
    for dot in chart["dots"]:
        width = comparison_charts._LETTER * len(dot["label"])
        boxes.append((dot["label_x"], dot["label_y"] - 11, dot["label_x"] + width, dot["label_y"] + 2))
        assert 72 <= dot["label_x"] <= 444 - width + 0.1
        assert dot["high"] <= dot["y"] <= dot["low"]
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            assert comparison_charts._overlap(one, other) == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.014, "+1.4"), (-0.005, "−0.5"), (0.0, "0"), (-0.0001, "0"), (0.2, "+20.0")]
)
def test_points_carry_their_sign(value: float, text: str) -> None:
    assert comparison_charts.points(value) == text
