"""What a run moves: its artifacts as its components declare them, and nothing where KFP's cache answers."""

import json
from pathlib import Path

import pytest

from benchmarks import bytes_moved
from graftflow import seals
from pipelines.run_index import Run, Step


def written(root: Path, task: str, size: int) -> dict:
    """An artifact of ``size`` bytes, its seal included."""
    folder = root / task
    (folder / "inside").mkdir(parents=True)
    line = f"{'0' * 64}  inside/data\n"
    (folder / "inside" / "data").write_bytes(bytes(size - len(line)))
    seals.seal(folder)
    return {"uri": str(folder), "metadata": {}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Pictures of 4,000 bytes in two shards of 500 and 600 that were gathered into 1,000."""
    steps = {
        "check_settings": Step("done", 1.0, {}, {"Output": [0, 1]}),
        "download_data": Step("cached", 0.0, {"dataset": written(tmp_path, "dataset", 4000)}),
        "extract_features": Step("cached", 0.0, {"feature_shard": written(tmp_path, "0", 500)}),
        "extract_features 2": Step("done", 1.0, {"feature_shard": written(tmp_path, "1", 600)}),
        "merge_features": Step("done", 1.0, {"features": written(tmp_path, "features", 1000)}),
        "train_head": Step("failed", 1.0),
    }
    found = Run(tmp_path / "run", {}, steps, status="failed")
    found.save()
    return found


def test_a_task_moves_its_declared_inputs_and_its_outputs(run: Run) -> None:
    tasks = {task.task: task for task in bytes_moved.moved_by(run)}
    assert "train_head" not in tasks
    assert (tasks["check_settings"].downloads, tasks["check_settings"].uploads) == ({}, {})
    assert tasks["extract_features 2"].downloads == {"dataset": 4000}
    assert tasks["extract_features 2"].uploads == {"feature_shard": 600}
    assert tasks["merge_features"].downloads == {"feature_shards": 1100}
    assert tasks["merge_features"].uploads == {"features": 1000}
    assert [name for name, task in tasks.items() if task.cached] == ["download_data", "extract_features"]


def test_a_cached_task_moves_nothing_in_this_run(run: Run, tmp_path: Path, capsys) -> None:
    assert bytes_moved.main(["--run", str(run.folder), "--output", str(tmp_path / "moved.json")]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    this_run = {row[0].strip(): row[-1].strip() for row in rows}
    assert this_run["`download_data`"] == this_run["`extract_features`"] == "0 (cached)"
    assert this_run["all"] == "0.01 MB"  # 4,000 + 600 of the second shard, 1,100 + 1,000 of the gather
    (_, data, *_) = json.loads((tmp_path / "moved.json").read_text())
    assert data == {"task": "download_data", "downloads": {}, "uploads": {"dataset": 4000}, "cached": True}


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    assert bytes_moved.main(["--run", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: RUN must be the folder of a run")
