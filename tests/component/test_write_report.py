"""The step that writes the page, as KFP calls it."""

from pathlib import Path

import pytest
from kfp import dsl

from components.write_report import write_report
from graftflow.errors import InputError
from graftflow.seals import seal
from tests.unit.report_artifacts import Run


def run_step(artifacts: dict[str, Path], report: Path, min_accuracy: float = 0.9) -> None:
    models = ("head", "model", "saved_model")
    kinds = {"dataset": dsl.Dataset, "features": dsl.Dataset, **dict.fromkeys(models, dsl.Model)}
    inputs = {name: kinds.get(name, dsl.Artifact)(uri=str(path)) for name, path in artifacts.items()}
    write_report.python_func(
        **inputs,
        min_accuracy=min_accuracy,
        min_robust_accuracy=0.0,
        robust_epsilon="1/255",
        report=dsl.HTML(uri=str(report)),
    )


def test_the_step_writes_one_page(tmp_path: Path) -> None:
    report = tmp_path / "out" / "report"
    run_step(Run(tmp_path / "run", ["cat", "dog"]).write(), report)
    page = report.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "Gate passed" in page
    assert [path.name for path in report.parent.iterdir()] == ["report"]


def test_a_failed_step_leaves_no_page(tmp_path: Path) -> None:
    artifacts = Run(tmp_path / "run", ["cat", "dog"]).write()
    (artifacts["evaluation"] / "evaluation.json").unlink()
    seal(artifacts["evaluation"])  # as if it had been written so
    with pytest.raises(InputError, match="The 'evaluation' artifact"):
        run_step(artifacts, tmp_path / "out" / "report")
    assert not (tmp_path / "out" / "report").exists()


def test_the_compiled_component_describes_its_settings() -> None:
    spec = write_report.component_spec
    assert all(found.description for found in spec.inputs.values())
    assert set(spec.outputs) == {"report"}
