"""A run's model is challenged from the command line, on the run's own artifacts."""

import json
from pathlib import Path

import pytest

from pipelines import run_challenge
from pipelines.run_index import Run, Step


@pytest.fixture
def run(artifacts, tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "one", {"mirrors": "", "cache": str(tmp_path / "cache"), "seed": 3})
    for step, name in (("download_data", "dataset"), ("fine_tune", "model")):
        held = {name: {"uri": str(getattr(artifacts, name)), "metadata": {}}}
        run.steps[step] = Step("done", 1.0, held)
    run.save()
    return run


def arguments(run: Run, *more: str) -> list[str]:
    return ["--dataset=digits", f"--run={run.folder}", *more]


def test_the_verdict_is_printed_and_the_page_written(run: Run, capsys) -> None:
    assert run_challenge.main(arguments(run, "--num-pictures=40")) == 0
    printed = capsys.readouterr().out
    assert "The model has not learned these pictures" in printed
    (folder,) = run.folder.parent.glob("challenge-*")
    assert str(folder / "challenge.html") in printed
    assert "<html" in (folder / "challenge.html").read_text(encoding="utf-8")
    found = json.loads((folder / "challenge" / "challenge.json").read_text(encoding="utf-8"))
    assert found["pictures"] == 40
    assert found["source"] == "digits"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (["--dataset=cats"], "source must be one of"),
        (["--num-pictures=0"], "num_pictures must be"),
        (["--run=/nowhere"], "RUN must be the folder of a run"),
    ],
)
def test_a_bad_setting_is_one_line_and_leaves_nothing(run: Run, change, rule, capsys) -> None:
    assert run_challenge.main(arguments(run, *change)) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: challenge_model: ")
    assert rule in errors
    assert errors.count("\n") == 1
    assert not list(run.folder.parent.glob("challenge-*"))


def test_a_run_without_a_model_names_the_step_that_makes_one(run: Run, capsys) -> None:
    del run.steps["fine_tune"]
    run.save()
    assert run_challenge.main(arguments(run)) == 1
    assert "make fine-tune" in capsys.readouterr().err
