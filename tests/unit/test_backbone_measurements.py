"""Backbones to measure are read strictly, times are those of warm calls, and unreachable weights are a result."""

import json
import time
from pathlib import Path

import pytest

from graftflow import backbone_measurements as measurements
from graftflow.errors import InputError


def test_candidates_are_read_with_their_weights(tmp_path: Path) -> None:
    weights = tmp_path / "vgg16.h5"
    weights.write_bytes(b"")
    text = f" EfficientNet-Lite0, vgg16={weights} ,mobilenetv2=none,resnet50=https://example.org/w.h5,"
    found = measurements.parse_candidates(text)
    assert [(candidate.backbone, candidate.weights) for candidate in found] == [
        ("efficientnet_lite0", "imagenet"),
        ("vgg16", str(weights)),
        ("mobilenetv2", "none"),
        ("resnet50", "https://example.org/w.h5"),
    ]
    # A name is itself a candidate's text: a loop passes it on.
    again = measurements.parse_candidates(",".join(candidate.name for candidate in found))
    assert again == found


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("vgg61", "backbone must be one of .*Did you mean 'vgg19'"),
        ("", "at least one of .*efficientnet_lite0"),
        (" , ", "at least one of"),
        ("vgg16=", "Received: 'vgg16=', without weights"),
        ("vgg16=/nowhere/vgg16.h5", "'/nowhere/vgg16.h5', which is no file"),
        ("vgg16, VGG-16", "Received: 'vgg16' twice"),
    ],
)
def test_bad_candidates_are_refused(text: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        measurements.parse_candidates(text)


def test_one_backbone_may_be_measured_with_several_weights() -> None:
    found = measurements.parse_candidates("mobilenetv2=none, mobilenetv2")
    assert [candidate.name for candidate in found] == ["mobilenetv2=none", "mobilenetv2"]


def test_the_other_settings_of_a_comparison_are_checked_too() -> None:
    good = {"dataset": "closeups", "backbones": "vgg16", "seed": 0}
    assert len(measurements.check_comparison(good)) == 1
    for change, rule in (
        ({"dataset": "directory:/nowhere"}, "/nowhere"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"validation_fraction": 0.6, "test_fraction": 0.5}, "sum below 1"),
    ):
        with pytest.raises(InputError, match=rule):
            measurements.check_comparison({**good, **change})


def test_the_median_leaves_out_the_first_calls_and_an_odd_one_out() -> None:
    calls = []

    def call(number: int) -> None:
        calls.append(number)
        slow = len(calls) <= 3 or len(calls) == 10
        time.sleep(0.1 if slow else 0.002)

    assert 0.002 <= measurements.median_seconds(call) < 0.05
    assert len(calls) == 3 + 64


def test_a_slow_model_is_not_called_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(measurements, "_SECONDS", 0.0)
    calls = []
    measurements.median_seconds(calls.append)
    assert len(calls) == 3 + 5


def test_the_served_model_is_timed_on_encoded_pictures(artifacts) -> None:
    from graftflow import export

    version = export.version_folder(artifacts.saved_model)
    pictures = measurements.first_test_pictures(artifacts.dataset)
    assert len(pictures) == 12
    assert all(picture.startswith((b"\x89PNG", b"\xff\xd8")) for picture in pictures)
    found = measurements.measure_serving(version, pictures)
    assert 0 < found["batch"] < 1000
    assert 0 < found["single"] < 1000
    # 32 pictures in one call cost more than one alone, but a picture of them not (with room for a busy machine).
    assert found["single"] / 32 < found["batch"] < 4 * found["single"]
    assert measurements.megabytes_of(version) == pytest.approx(15.9, abs=1.5)
    with pytest.raises(InputError, match="at least one picture"):
        measurements.measure_serving(version, [])


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("vgg16=http://127.0.0.1:9/vgg16.h5", "127.0.0.1:9"),
        ("mobilenetv2={broken}", "must hold the layers of"),
    ],
)
def test_weights_that_cannot_be_had_are_a_result(artifacts, tmp_path: Path, backbone, reason) -> None:
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"no weights")
    entry = backbone.format(broken=broken)
    destination = tmp_path / "measurement"
    destination.mkdir()
    result = measurements.write_measurement(
        destination, dataset_path=artifacts.dataset, backbone=entry, cache=tmp_path / "cache"
    )
    assert result["name"] == entry
    assert reason in result["error"]
    assert json.loads((destination / "measurement.json").read_text(encoding="utf-8")) == result
    assert [path.name for path in destination.iterdir()] == ["measurement.json"]


def test_what_is_not_the_backbones_fault_is_raised(artifacts, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        measurements.write_measurement(tmp_path, dataset_path=tmp_path, backbone="mobilenetv2=none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache must be a folder"):
        measurements.write_measurement(
            tmp_path,
            dataset_path=artifacts.dataset,
            backbone="mobilenetv2=none",
            cache=tmp_path / "file" / "cache",
        )
