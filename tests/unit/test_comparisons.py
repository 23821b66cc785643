"""Paired comparisons equal exact computations, treat both models alike, and their intervals cover as they say."""

import csv
import math
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from graftflow import comparisons
from graftflow.comparisons import compare_evaluations, compare_predictions, mcnemar_p, read_predictions
from graftflow.errors import InputError


def answers(right: np.ndarray, confident: float = 0.9) -> np.ndarray:
    """Probabilities of two classes whose answer is class 0, the true one, where ``right``."""
    return np.where(right[:, None], [confident, 1 - confident], [1 - confident, confident])


def discordant(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_first, only_second, neither)
    return (
        answers(np.repeat([True, True, False, False], counts)),
        answers(np.repeat([True, False, True, False], counts)),
    )


@pytest.mark.parametrize(
    ("only_first", "only_second"),
    [(0, 0), (1, 0), (0, 1), (12, 9), (9, 12), (5, 5), (30, 9), (400, 300), (3000, 3100)],
)
def test_mcnemar_is_the_binomial_test_on_the_discordant_pictures(only_first: int, only_second: int) -> None:
    total = only_first + only_second
    # Twice the smaller tail of the binomial distribution, in whole numbers.
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    expected = min(1.0, 2 * tail / 2**total)
    assert mcnemar_p(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_figures_are_those_of_the_pictures() -> None:
    first, second = discordant(150, 12, 9, 39)
    found = compare_predictions(first, second, np.zeros(210, int))
    assert (found["both"], found["only_first"], found["only_second"], found["neither"]) == (150, 12, 9, 39)
    assert found["accuracy"]["first"] == pytest.approx(162 / 210)
    assert found["accuracy"]["second"] == pytest.approx(159 / 210)
    assert found["accuracy"]["difference"] == pytest.approx(3 / 210)
    assert found["accuracy"]["low"] < 3 / 210 < found["accuracy"]["high"]
    expected = (-3 * np.log(0.9) + 3 * np.log(0.1)) / 210
    assert found["log_loss"]["difference"] == pytest.approx(expected)
    assert found["sentence"] == (
        "12 pictures only the first got right, 9 only the second: "
        "no difference that 210 pictures can show (p = 0.66)"
    )


def test_a_difference_that_is_there_is_named_with_its_better_model() -> None:
    first, second = discordant(150, 5, 30, 25)
    found = compare_predictions(first, second, np.zeros(210, int), names=("vgg16", "resnet50"))
    assert found["sentence"] == (
        "5 pictures only vgg16 got right, 30 only resnet50: resnet50 is better on such pictures (p < 0.001)"
    )
    assert found["accuracy"]["high"] < 0


def test_a_model_does_not_differ_from_itself() -> None:
    first, _ = discordant(50, 10, 5, 3)
    found = compare_predictions(first, first, np.zeros(len(first), int))
    assert found["p"] == 1.0
    for name in ("accuracy", "log_loss"):
        assert [found[name][key] for key in ("difference", "low", "high")] == [0.0, 0.0, 0.0]
    assert "no difference on 68 pictures" in found["sentence"]


def test_the_order_of_the_models_changes_signs_alone() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 4, 120)
    first, second = (generator.dirichlet(np.ones(4), 120) for _ in range(2))
    one = compare_predictions(first, second, labels, seed=5)
    other = compare_predictions(second, first, labels, seed=5)
    assert (one["only_first"], one["p"]) == (other["only_second"], other["p"])
    for name in ("accuracy", "log_loss"):
        assert one[name]["difference"] == pytest.approx(-other[name]["difference"])
        assert one[name]["low"] == pytest.approx(-other[name]["high"])
        assert one[name]["high"] == pytest.approx(-other[name]["low"])


def test_the_seed_fixes_the_intervals_however_much_is_drawn_at_once(monkeypatch) -> None:
    first, second = discordant(50, 10, 5, 3)
    labels = np.zeros(len(first), int)
    whole = compare_predictions(first, second, labels, seed=1)
    assert compare_predictions(first, second, labels, seed=1) == whole
    assert compare_predictions(first, second, labels, seed=2) != whole
    monkeypatch.setattr(comparisons, "_DRAWS", 1000)
    assert compare_predictions(first, second, labels, seed=1) == whole


def test_paired_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # Right with the same pictures in mind: 90 % and 85 %, of which 80 % are right together.
    shares, truth, covered, width, unpaired = (0.80, 0.10, 0.05, 0.05), 0.05, 0, [], []
    for seed in range(200):
        counts = np.random.default_rng(seed).multinomial(300, shares)
        first, second = discordant(*counts)
        found = compare_predictions(first, second, np.zeros(300, int), resamples=500, seed=seed)["accuracy"]
        covered += found["low"] <= truth <= found["high"]
        width.append(found["high"] - found["low"])
        spread = sum(found[name] * (1 - found[name]) for name in ("first", "second")) / 300
        unpaired.append(2 * 1.96 * spread**0.5)
    assert 0.90 <= covered / 200 <= 0.99
    # What pairing is for: pictures that both get right do not widen the interval.
    assert np.mean(width) < 0.9 * np.mean(unpaired)


def test_mcnemar_seldom_sees_a_difference_that_is_not_there() -> None:
    seen = 0
    for seed in range(500):
        counts = np.random.default_rng(seed).multinomial(300, (0.8, 0.06, 0.06, 0.08))
        seen += mcnemar_p(int(counts[1]), int(counts[2])) < 0.05
    assert seen / 500 <= 0.05


@pytest.mark.parametrize(
    ("shapes", "labels", "resamples", "rule"),
    [
        (((4, 2), (4, 3)), [0] * 4, 10, "two arrays (n, k)"),
        (((4, 2), (4, 2)), [0] * 3, 10, "two arrays (n, k)"),
        (((0, 2), (0, 2)), [], 10, "at least one picture"),
        (((4, 2), (4, 2)), [0, 1, 2, 0], 10, "Labels must lie in [0, 2). Received: 0 to 2"),
        (((4, 2), (4, 2)), [0] * 4, 0, "resamples must be at least 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(shapes, labels, resamples, rule) -> None:
    first, second = (np.full(shape, 0.5) for shape in shapes)
    with pytest.raises(InputError) as error:
        compare_predictions(first, second, np.array(labels, int), resamples=resamples)
    assert rule in str(error.value)


def test_an_evaluation_does_not_differ_from_itself_in_any_order(artifacts, tmp_path: Path) -> None:
    shutil.copytree(artifacts.evaluation, tmp_path / "shuffled")
    path = tmp_path / "shuffled" / "predictions.csv"
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *reversed(rows)]) + "\n", encoding="utf-8")
    found = compare_evaluations(artifacts.evaluation, tmp_path / "shuffled")
    assert found["pictures"] == 12
    assert found["p"] == 1.0
    assert found["log_loss"]["difference"] == 0.0


def change(evaluation: Path, to: Path, edit) -> Path:
    """Copy an evaluation's predictions, changed row by row; None drops a row."""
    to.mkdir()
    with (evaluation / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = [edit(number, row) for number, row in enumerate(csv.reader(file))]
    with (to / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(row for row in rows if row is not None)
    return to


def test_other_pictures_labels_and_classes_are_refused_with_their_number(artifacts, tmp_path: Path) -> None:
    def renamed(number: int, row: list[str]) -> list[str] | None:
        if number == 1:
            return None
        return [f"other/{row[0]}", *row[1:]] if 2 <= number <= 4 else row

    with pytest.raises(InputError) as error:
        compare_evaluations(artifacts.evaluation, change(artifacts.evaluation, tmp_path / "paths", renamed))
    assert "Received: 4 that only the first has, 3 that only the second has" in str(error.value)
    assert "8 in common" in str(error.value)

    def relabelled(number: int, row: list[str]) -> list[str]:
        label = "rocket" if row[1] == "brick" else "brick"
        return [row[0], label, *row[2:]] if 1 <= number <= 2 else row

    with pytest.raises(InputError, match="2 with another label, 10 in common"):
        compare_evaluations(artifacts.evaluation, change(artifacts.evaluation, tmp_path / "l", relabelled))

    def other_class(number: int, row: list[str]) -> list[str]:
        return [field.replace("rocket", "moon") for field in row]

    with pytest.raises(InputError, match="same classes. Received: 2 that only one of them has, e.g. 'moon'"):
        compare_evaluations(artifacts.evaluation, change(artifacts.evaluation, tmp_path / "c", other_class))


def test_predictions_take_the_memory_of_their_numbers(tmp_path: Path) -> None:
    names = [f"class-{number}" for number in range(20)]
    with (tmp_path / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "predicted", *names])
        writer.writerows(
            [f"{row}.jpg", names[row % 20], names[0], *[f"0.{row:05}"] * 20] for row in range(4000)
        )
    tracemalloc.start()
    found = read_predictions(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.probabilities.shape == (4000, 20)
    assert found.probabilities.dtype == np.float64
    assert found.probabilities[17, 3] == 0.00017
    assert (found.labels == np.arange(4000) % 20).all()
    assert (found.paths[17], found.classes) == ("17.jpg", tuple(names))
    assert peak < 4 * found.probabilities.nbytes  # as text they are 10 times their numbers


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "path,label,predicted,a,b\n",
        "path,label,predicted,a\nx,b,a,1\n",
        "path,label,predicted,a,b\nx,a,a,1\n",
        "path,label,predicted,a,b\nx,a,a,1,0,0\n",
        "file,label,predicted,a\nx,a,a,1\n",
    ],
)
def test_an_unreadable_evaluation_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(InputError, match="must hold a readable predictions.csv"):
        compare_evaluations(tmp_path, tmp_path)
