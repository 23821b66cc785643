"""The components of the comparison, run as KFP runs them: a checked list, measurements in, a ranking and a page out."""

import json
import shutil
from pathlib import Path

import pytest
from kfp import dsl

from components.check_comparison import check_comparison
from components.compare_backbones import compare_backbones
from components.measure_backbone import measure_backbone
from graftflow.errors import InputError
from graftflow.seals import seal

SETTINGS = {"dataset": "closeups", "seed": 0, "validation_fraction": 0.15, "test_fraction": 0.15}


def output(kind: type, path: Path):
    return kind(name=path.name, uri=str(path), metadata={})


def measured(folder: Path, name: str, evaluation: Path | None) -> dsl.Artifact:
    """A measurement with the predictions of an evaluation, or one that failed."""
    folder.mkdir()
    content: dict = {"name": name, "weights": "imagenet", "error": "" if evaluation else f"{name} is away"}
    if evaluation:
        shutil.copy(evaluation / "predictions.csv", folder)
        figures = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))
        content |= {
            "pictures": figures["pictures"],
            "accuracy": figures["metrics"]["accuracy"],
            "log_loss": figures["metrics"]["log_loss"],
            "seconds": {"features": 3.0, "head": 0.5},
            "cached": 0,
            "megabytes": 16.0,
            "milliseconds": {"single": 20.0, "batch": 9.0},
        }
    (folder / "measurement.json").write_text(json.dumps(content), encoding="utf-8")
    seal(folder)
    return dsl.Artifact(name="measurement", uri=str(folder))


def test_check_comparison_lists_what_the_loop_measures() -> None:
    found = check_comparison.python_func(backbones="VGG16, mobilenetv2=none", **SETTINGS)
    assert found == ["vgg16", "mobilenetv2=none"]
    with pytest.raises(InputError, match="Did you mean 'vgg19'"):
        check_comparison.python_func(backbones="efficientnet_lite0, vgg61", **SETTINGS)
    with pytest.raises(InputError, match="sum below 1"):
        check_comparison.python_func(backbones="vgg16", **{**SETTINGS, "test_fraction": 0.9})


def test_measure_backbone_writes_a_failure_instead_of_failing(artifacts, tmp_path: Path, capsys) -> None:
    measurement = output(dsl.Artifact, tmp_path / "measurement")
    measure_backbone.python_func(
        dataset=dsl.Dataset(uri=str(artifacts.dataset)),
        backbone="resnet50=http://127.0.0.1:9/resnet50.h5",
        seed=0,
        cache=str(tmp_path / "cache"),
        measurement=measurement,
    )
    assert "127.0.0.1:9" in measurement.metadata["error"]
    assert set(measurement.metadata) == {"backbone", "error"}
    assert "could not be measured" in capsys.readouterr().out
    written = json.loads((tmp_path / "measurement" / "measurement.json").read_text(encoding="utf-8"))
    assert written["error"] == measurement.metadata["error"]


def test_compare_backbones_returns_the_best_and_writes_a_page(artifacts, tmp_path: Path) -> None:
    comparison, page = output(dsl.Artifact, tmp_path / "comparison"), output(dsl.HTML, tmp_path / "page")
    best = compare_backbones.python_func(
        measurements=[
            measured(tmp_path / "0", "vgg16", None),
            measured(tmp_path / "1", "efficientnet_lite0", artifacts.evaluation),
        ],
        seed=0,
        comparison=comparison,
        comparison_page=page,
    )
    assert best == "efficientnet_lite0"
    assert comparison.metadata["best"] == comparison.metadata["fastest"] == best
    rows = json.loads((tmp_path / "comparison" / "comparison.json").read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == ["efficientnet_lite0", "vgg16"]
    assert "vgg16 is away" in (tmp_path / "page").read_text(encoding="utf-8")


def test_compare_backbones_fails_where_nothing_was_measured(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="At least one backbone must be measured. Received: vgg16: vgg16 is away"
    ):
        compare_backbones.python_func(
            measurements=[measured(tmp_path / "0", "vgg16", None)],
            seed=0,
            comparison=output(dsl.Artifact, tmp_path / "comparison"),
            comparison_page=output(dsl.HTML, tmp_path / "page"),
        )
