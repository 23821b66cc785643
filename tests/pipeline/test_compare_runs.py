"""Two runs compared on the command line, through their run.json."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from graftflow.seals import seal
from pipelines import compare_runs
from pipelines.run_index import Run, Step


@pytest.fixture
def runs(artifacts, tmp_path: Path) -> tuple[Path, Path]:
    """A run with the real evaluation, and one whose model took two of its pictures for another class."""
    other = tmp_path / "other-evaluation"
    shutil.copytree(artifacts.evaluation, other)
    with (other / "predictions.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    right = [row for row in rows if row[1] == row[2]][:2]
    for row in right:
        wrong = next(name for name in head[3:] if name != row[1])
        row[3:] = ["0.9" if name == wrong else "0.05" for name in head[3:]]
    with (other / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    seal(other)
    folders = []
    for name, evaluation in (("one", artifacts.evaluation), ("two", other)):
        run = Run(tmp_path / "runs" / name, {})
        run.steps["evaluate"] = Step("done", 1.0, {"evaluation": {"uri": str(evaluation), "metadata": {}}})
        run.save()
        folders.append(run.folder)
    return folders[0], folders[1]


def test_both_figures_and_a_sentence_are_printed(runs, capsys) -> None:
    assert compare_runs.main([str(runs[0]), str(runs[1])]) == 0
    printed = capsys.readouterr().out
    assert (
        "2 pictures only one got right, 0 only two: no difference that 12 pictures can show (p = 0.5)"
        in printed
    )
    assert "+16.7 points" in printed
    assert "log loss" in printed


def test_the_order_is_that_of_the_command_line_and_json_can_be_had(runs, capsys) -> None:
    assert compare_runs.main(["--json", str(runs[1]), str(runs[0])]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["only_first"], found["only_second"]) == (0, 2)
    assert found["accuracy"]["difference"] == pytest.approx(-2 / 12)
    assert found["log_loss"]["difference"] > 0


def test_latest_is_a_run_like_any_other(runs, capsys) -> None:
    assert compare_runs.main([str(runs[0].parent / "latest"), str(runs[1])]) == 0
    assert "Both got the same pictures right: no difference on 12 pictures" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_in_one_line(runs, tmp_path: Path, capsys) -> None:
    bare = Run(tmp_path / "runs" / "bare", {})
    bare.save()
    evaluation = tmp_path / "other-evaluation" / "predictions.csv"
    for pair, rule in (
        ((runs[0], tmp_path / "nowhere"), "must be the folder of a run"),
        ((runs[0], bare.folder), "'evaluation' of evaluate, which 'bare' lacks. Run: make evaluate RUN="),
        ((runs[0], runs[1]), "1 that only the first has, 0 that only the second has"),
    ):
        lines = evaluation.read_text(encoding="utf-8").splitlines()
        evaluation.write_text("\n".join(lines[:12]) + "\n", encoding="utf-8")
        seal(evaluation.parent)
        assert compare_runs.main([str(path) for path in pair]) == 1
        captured = capsys.readouterr()
        assert rule in captured.err
        assert captured.err.count("\n") == 1
