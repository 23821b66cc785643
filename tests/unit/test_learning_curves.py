"""The learning curve: nested parts, honest intervals, bounded work, and a chart that says what it shows."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from graftflow import learning_curves
from graftflow.report.learning import learning_curve_chart


def data(counts: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features whose first column numbers the pictures."""
    labels = np.repeat(np.arange(len(counts)), counts)
    x = np.random.Generator(np.random.PCG64(seed)).normal(size=(len(labels), 4)).astype(np.float32)
    x[:, 0] = np.arange(len(labels))
    return x, labels


class Recorder:
    """Stands in for a head: keeps the parts it was given, is right for a share of pictures that grows with them."""

    def __init__(self, validation: tuple[np.ndarray, np.ndarray]) -> None:
        self.parts: dict[int, list[np.ndarray]] = defaultdict(list)
        self._labels = validation[1]

    def __call__(self, features: np.ndarray, labels: np.ndarray, seed: int):
        self.parts[seed].append(features[:, 0].astype(int))
        return self.knowing(len(labels))

    def knowing(self, pictures: int):
        def logits(features: np.ndarray) -> np.ndarray:
            right = np.arange(len(features)) < len(features) * pictures / 500
            answers = np.where(right, self._labels, (self._labels + 1) % 2)
            return 4.0 * np.eye(2, dtype=np.float32)[answers]

        return logits


def measured(counts: list[int], seed: int = 0):
    train, validation = data(counts, 0), data([50, 50], 1)
    recorder = Recorder(validation)
    points = learning_curves.measure(
        train, validation, num_classes=2, refit=recorder, whole=recorder.knowing(sum(counts)), seed=seed
    )
    return points, recorder, train[1]


def test_parts_are_nested_and_keep_the_proportions() -> None:
    points, recorder, labels = measured([300, 100])
    assert [point["per_class"] for point in points] == [5, 10, 25, 50, 100, 200]
    assert [point["pictures"] for point in points] == [10, 20, 50, 100, 200, 400]
    assert sorted(recorder.parts) == [0, 1, 2, 3, 4]
    for parts in recorder.parts.values():
        for smaller, larger in pairwise(parts):
            assert set(smaller) < set(larger)
        for part in parts[1:]:
            assert 0.2 <= labels[part].mean() <= 0.3
        assert all(len(set(labels[part])) == 2 for part in parts)
    assert set(recorder.parts[0][0]) != set(recorder.parts[1][0])


def test_intervals_hold_the_mean_and_gains_are_paired() -> None:
    points, _, _ = measured([200, 200])
    for point in points:
        for key in ("accuracy", "log_loss"):
            assert point[key]["low"] <= point[key]["mean"] <= point[key]["high"]
        assert point["accuracy"]["mean"] == pytest.approx(np.ceil(point["pictures"] / 5) / 100, abs=0.011)
    assert points[0]["gain"] is None
    for before, after in pairwise(points):
        difference = after["accuracy"]["mean"] - before["accuracy"]["mean"]
        assert after["gain"]["mean"] == pytest.approx(difference)
        assert after["gain"]["low"] >= 0  # no picture was lost, which only pairing can tell
    whole = points[-1]["accuracy"]
    # 80 of 100 right: the interval is that of a binomial share.
    assert whole["high"] - whole["low"] == pytest.approx(2 * 1.96 * 0.04, abs=0.04)


def test_the_same_seed_gives_the_same_curve() -> None:
    assert measured([40, 40], seed=1)[0] == measured([40, 40], seed=1)[0]
    assert measured([40, 40], seed=1)[0] != measured([40, 40], seed=2)[0]


def test_large_sets_are_fitted_a_bounded_number_of_times() -> None:
    points, recorder, _ = measured([4000, 4000])
    assert [(point["pictures"], point["repeats"]) for point in points][-4:] == [
        (1000, 2),
        (2000, 1),
        (4000, 1),
        (8000, 1),
    ]
    seen = sum(len(part) for parts in recorder.parts.values() for part in parts)
    assert seen < 2 * 8000


@pytest.mark.parametrize(("counts", "sizes"), [([1, 1], [2]), ([2, 2], [2, 4]), ([3, 1], [3, 4])])
def test_tiny_sets_have_a_curve(counts: list[int], sizes: list[int]) -> None:
    points, _, _ = measured(counts)
    assert [point["pictures"] for point in points] == sizes
    shown = learning_curve_chart(points)
    assert (shown is None) == (len(sizes) == 1)


def point(pictures: int, accuracy: float, gain: tuple[float, float, float] | None) -> dict:
    def spread(value: float) -> dict:
        return {"mean": value, "low": value - 0.01, "high": min(1.0, value + 0.01)}

    names = ("mean", "low", "high")
    return {
        "pictures": pictures,
        "accuracy": spread(accuracy),
        "log_loss": spread(2 * (1 - accuracy) + 0.01),
        "gain": gain and dict(zip(names, gain, strict=True)),
    }


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((0.03, 0.015, 0.048), "by +3.0 percentage points (95 % interval +1.5 to +4.8): it still grows"),
        ((0.002, -0.01, 0.02), "by +0.2 percentage points (95 % interval −1.0 to +2.0), which may be chance"),
        ((0.0, 0.0, 0.0), "by 0 percentage points (95 % interval 0 to 0), which may be chance"),
        ((-0.03, -0.05, -0.01), "by −3.0 percentage points (95 % interval −5.0 to −1.0): it fell"),
    ],
)
def test_the_page_says_whether_accuracy_still_grows(gain: tuple[float, float, float], said: str) -> None:
    shown = learning_curve_chart([point(10, 0.8, None), point(1200, 0.9, gain), point(2400, 0.93, gain)])
    assert shown is not None
    assert shown["sentence"].startswith("From 1,200 to 2,400 training pictures accuracy changed")
    assert said in shown["sentence"]
    accuracy, loss = shown["charts"]
    assert [tick["label"] for tick in accuracy["x"]["ticks"]] == ["10", "1,200", "2,400"]
    upper, middle, lower = (
        [float(place.split(",")[1]) for place in series["line"].split()] for series in accuracy["series"]
    )
    assert all(
        high < mean < low for high, mean, low in zip(upper, middle, lower, strict=True)
    )  # y grows down
    assert "93.0" in accuracy["alt"]
    assert loss["table"]["head"] == [
        "training pictures",
        "95 % interval, upper end",
        "validation",
        "lower end",
    ]


def test_an_older_head_draws_nothing() -> None:
    assert learning_curve_chart([]) is None
