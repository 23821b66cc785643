"""What a person waits for before a command does anything: none of these loads TensorFlow, which takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import orchestration
from benchmarks.rows import Row
from tests.unit.scripted_server import RANKED, scripted_server
from tests.unit.serving_model import picture

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
IN_PYTHON = [name for name, command in orchestration.COMMANDS.items() if command[0] != "make"]


def start(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a command of this Python; returns it and the names of all modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done, orchestration.imported_by(done.stderr)


@pytest.mark.parametrize("name", IN_PYTHON)
def test_a_command_starts_without_tensorflow(name: str, tmp_path: Path) -> None:
    command = [part.format(folder=tmp_path) for part in orchestration.COMMANDS[name]]
    _, imported = start(*command)
    assert "argparse" in imported, "the list of imports was read"
    assert not imported & {"tensorflow", "keras", "sklearn", "matplotlib"}
    if "compile" in name:
        assert "generate-adversarial" in (tmp_path / "pipeline.yaml").read_text()


def test_a_query_is_answered_without_tensorflow(tmp_path: Path) -> None:
    """From the picture's bytes to the printed classes, and without kfp, which takes its time too."""
    file = tmp_path / "cat.jpg"
    file.write_bytes(picture())
    with scripted_server() as script:
        done, imported = start(
            "-m", "graftflow.serving.query", "--url", script.url, "--format", "json", str(file)
        )
        assert len(script.requests) >= 1
    assert RANKED["classes"][0] in json.dumps(json.loads(done.stdout))
    assert not imported & {"tensorflow", "keras", "kfp", "sklearn"}


def test_help_needs_no_python_at_all(tmp_path: Path) -> None:
    """It is shown before there is an environment, and makes none."""
    done = subprocess.run(
        ["make", "-s", "help", f"PYTHON={tmp_path}/none", f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "make run" in done.stdout
    assert "make query" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_the_imports_of_a_command_are_read_from_what_python_says() -> None:
    said = "import time: self [us] | cumulative | imported package\nimport time:       102 |   9000 |     keras.src\n"
    assert orchestration.imported_by(said + "a warning | keras\n") == {"keras.src"}


def test_a_runs_row_holds_its_steps_work_against_its_seconds() -> None:
    """Imports are no work, wherever they happen; the goal is a tenth above the work."""
    steps = {
        "evaluate": {"seconds": 51.0, "import_seconds": 1.0, "cpu": 60.0, "import_cpu": 1.0, "total": 52.0},
        "fine_tune": {"seconds": 50.0, "import_seconds": 0.0, "cpu": 90.0, "import_cpu": 0.0, "total": 50.0},
    }

    def whole(seconds: float, cached: float) -> list[Row]:
        fresh = orchestration.Measured(seconds, 200.0, steps)
        rest = orchestration.Measured(cached, 5.0, {})
        return orchestration.to_rows(fresh, rest, {}, None)

    assert whole(109.0, 14.0)[0].limit == 100.0
    assert [row.held for row in whole(109.0, 14.0)] == [True, True]
    assert [row.held for row in whole(111.0, 16.0)] == [False, False]
