"""A run on this machine has the id by which its model names it: the name of its folder."""

import os
import subprocess
from pathlib import Path

import pytest
from kfp.local import executor_input_utils

from pipelines import run_origins

NAMES = ("GRAFTFLOW_RUN_ID", "GRAFTFLOW_COMMIT", "GRAFTFLOW_IMAGE")


def git(folder: Path, *arguments: str) -> None:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A working copy with one commit."""
    folder = tmp_path / "copy"
    folder.mkdir()
    git(folder, "init")
    (folder / "code.py").write_text("1")
    git(folder, "add", "code.py")
    git(folder, "commit", "-m", "One")
    return folder


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_the_steps_are_told_the_run_and_kfp_takes_its_name():
    with run_origins.new_run("transfer-learning", "graftflow:source") as run_id:
        assert run_id.startswith("transfer-learning-20")
        assert executor_input_utils.get_local_pipeline_resource_name("transfer-learning") == run_id
        told = {name: os.environ[name] for name in NAMES}
        assert told == {
            "GRAFTFLOW_RUN_ID": run_id,
            "GRAFTFLOW_COMMIT": run_origins.read_commit(),
            "GRAFTFLOW_IMAGE": "graftflow:source",
        }
    assert not set(NAMES) & os.environ.keys()
    assert executor_input_utils.get_local_pipeline_resource_name("x") != run_id


def test_a_commit_that_is_told_is_kept(monkeypatch):
    monkeypatch.setenv("GRAFTFLOW_COMMIT", "told")
    with run_origins.told("run", "image"):
        assert os.environ["GRAFTFLOW_COMMIT"] == "told"
    assert os.environ["GRAFTFLOW_COMMIT"] == "told"


def test_the_commit_of_a_working_copy_and_whether_it_was_changed(copy):
    commit = run_origins.read_commit(copy)
    assert len(commit) == 40
    git(copy, "tag", "v1")
    (copy / "notes.txt").write_text("not tracked")
    assert run_origins.read_commit(copy) == commit
    (copy / "code.py").write_text("2")
    assert run_origins.read_commit(copy) == f"{commit}-dirty"


def test_without_git_or_outside_a_working_copy_no_commit_is_told(copy, tmp_path, monkeypatch):
    assert run_origins.read_commit(tmp_path) == ""
    # Another project's commit says nothing of the code in a folder of it.
    (copy / "inside").mkdir()
    assert run_origins.read_commit(copy / "inside") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_origins.read_commit(copy) == ""
