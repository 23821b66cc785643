"""Whole runs: killed and started again, two of them at once with one cache and one store; and a server killed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from graftflow import files, releases
from pipelines import run_index
from tests.stress.step_runs import ROOT, VALUES, differences

ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
# What two runs of the same settings share: figures and weights, not their versions.
SAME = ("dataset", "features", "head", "model", "evaluation", "adversarial")


_started: list[subprocess.Popen] = []


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    yield tmp_path_factory.mktemp("runs")
    for run in _started:  # of a test that failed
        if run.poll() is None:
            run.terminate()
            run.communicate()


def started(place: Path, runs: str, pictures: Path) -> subprocess.Popen:
    """Start a whole run in a folder of its own, with the cache and the store of the others."""
    values = {**VALUES, "version": 0, "dataset": f"directory:{pictures}", "runs": place / runs}
    values |= {"cache": place / "cache", "store": place / "store"}
    run = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run_local"]
        + [f"--{name.replace('_', '-')}={value}" for name, value in values.items()],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(run)
    return run


def is_at_work(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def killed(place: Path, picture_folder: Path) -> list[psutil.Process]:
    """Kill a run by SIGKILL in the middle of fine-tuning; returns the processes that it had."""
    run = started(place, "one", picture_folder)
    deadline = time.monotonic() + 600
    while not list((place / "cache").glob("checkpoints/*/view-0.npy")):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    assert children
    run.send_signal(signal.SIGKILL)
    run.communicate()
    return children


@pytest.fixture(scope="module")
def runs(place: Path, picture_folder: Path, killed) -> dict[str, tuple[str, str]]:
    """The same run once more, and at the same time another one; returns the words of both, and of a third."""
    one, two = (started(place, name, picture_folder) for name in ("one", "two"))
    while not (place / "two" / ".run.log").exists():  # it holds the lock of its folder
        assert two.poll() is None, two.communicate()
        time.sleep(0.05)
    third = started(place, "two", picture_folder)
    said = {
        name: run.communicate(timeout=2400) for name, run in (("third", third), ("one", one), ("two", two))
    }
    assert (one.returncode, two.returncode) == (0, 0), said
    assert third.returncode == 1
    return said


def test_no_step_of_a_killed_run_works_on(killed: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 30
    while left := [process for process in killed if is_at_work(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_the_run_after_a_killed_one_takes_its_steps_and_leaves_nothing_aside(place: Path, runs) -> None:
    latest = run_index.load(place / "one" / "latest")
    assert latest.status == "succeeded"
    status = {name: step.status for name, step in latest.steps.items()}
    before = ("check_settings", "download_data", "extract_features", "merge_features", "train_head")
    assert all(status[step] == "cached" for step in before), status
    assert status["fine_tune"] == "done"
    assert not list((place / "one").rglob(".*.partial*"))
    assert not list((place / "cache").rglob(".*.partial*"))


def test_two_runs_at_once_share_cache_and_store_and_agree(place: Path, runs) -> None:
    one, two = (run_index.load(place / name / "latest") for name in ("one", "two"))
    for name in SAME:
        first, second = (Path(run.artifact(name)["uri"]) for run in (one, two))
        assert not differences(first, second), name
    rows = releases.list_versions(store=str(place / "store"), model_name="tiles")
    versions = {
        files.read_json(Path(run.artifact("saved_model")["uri"]) / "export.json")["version"]
        for run in (one, two)
    }
    assert {row.version for row in rows} == versions
    assert len(versions) == 2
    assert sum(row.label == "stable" for row in rows) == 1
    assert all("not in the store" not in row.note for row in rows)
    for run in (one, two):
        export = files.read_json(Path(run.artifact("saved_model")["uri"]) / "export.json")
        assert files.sha256_directory(place / "store" / "tiles" / str(export["version"])) == export["sha256"]
    history = json.loads((place / "store" / "releases.json").read_text())["models"]["tiles"]
    assert [event["action"] for event in history] == ["deploy", "deploy"]
    assert history[1]["replaced"] == history[0]["version"]


def test_a_second_run_in_one_folder_is_refused_in_one_line(runs) -> None:
    last = runs["third"][1].strip().splitlines()[-1]
    assert last.startswith("error: Only one run at a time can work in a runs' folder. Received: ")


def test_a_killed_server_starts_again_at_the_same_ports(place: Path, runs, picture_folder: Path) -> None:
    with socket.socket() as free, socket.socket() as other:
        for each in (free, other):
            each.bind(("127.0.0.1", 0))
        ports = free.getsockname()[1], other.getsockname()[1]
    command = [sys.executable, "-m", "graftflow.serving", f"--rest_api_port={ports[0]}", f"--port={ports[1]}"]
    command += [f"--model_config_file={place / 'store' / 'models.config'}"]
    for ending in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert any(re.search("serving .+ at http", line) for line in server.stdout)
            url = f"http://127.0.0.1:{ports[0]}/v1/models/tiles/labels/stable"
            (told,) = requests.get(url, timeout=10).json()["model_version_status"]
            assert told["state"] == "AVAILABLE"
        finally:
            server.send_signal(ending)
            server.stdout.close()
            server.wait(60)
