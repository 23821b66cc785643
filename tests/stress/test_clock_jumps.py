"""A clock that jumps a day back and ten years on while a run goes on and a server serves: nothing but dates differs."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from graftflow import files, releases
from graftflow.serving.client import Client
from pipelines import run_index
from pipelines.settings import STEPS
from tests.stress.jumping_clock import sitecustomize as clock
from tests.stress.step_runs import ROOT, VALUES
from tests.unit.serving_model import free_port

ENVIRONMENT = {
    **os.environ,
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONPATH": f"{Path(clock.__file__).parent}:{ROOT}/src:{ROOT}",
}
SMALL = {
    "fine_tune_epochs": 1,
    "fine_tune_views": 1,
    "attack_steps": 1,
    "attack_pictures": 2,
    "ideal_steps": 1,
    "version": 0,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("clock")


def start_run(place: Path, pictures: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run the whole pipeline under the jumping clock; returns how it ended and how many seconds it took."""
    flags = {**VALUES, **SMALL, "dataset": f"directory:{pictures}"}
    flags |= {name: place / name for name in ("runs", "cache", "store")}
    started = time.monotonic()
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipelines.run_local",
            *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()),
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=2400,
    )
    return ended, time.monotonic() - started


@pytest.fixture(scope="module")
def run(place: Path, picture_folder: Path) -> run_index.Run:
    before = time.time()
    ended, seconds = start_run(place, picture_folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = run_index.load(place / "runs" / "latest")
    assert run.status == "succeeded"
    assert {name: step.status for name, step in run.steps.items()} == dict.fromkeys(STEPS, "done")
    assert all(0 <= step.seconds <= seconds for step in run.steps.values())
    version = files.read_json(Path(run.artifact("saved_model")["uri"]) / "export.json")["version"]
    assert any(0 <= version - offset - before < seconds + 1 for offset in clock.OFFSETS)
    return run


def test_processes_see_the_clock_jump() -> None:
    program = "import time, datetime as d; print(time.time(), d.datetime.now(d.UTC).timestamp())"
    seen = set()
    deadline = time.monotonic() + 60
    while len(seen) < len(clock.OFFSETS):
        assert time.monotonic() < deadline, seen
        told = subprocess.run(
            [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, check=True
        )
        seen |= {
            offset
            for moment in map(float, told.stdout.split())
            for offset in clock.OFFSETS
            if abs(moment - offset - time.time()) < 3600
        }


def test_a_run_ends_well_and_is_served(place: Path, run: run_index.Run) -> None:
    """What it says and holds is checked where it is made; here, that its version is the stable one."""
    (row,) = releases.list_versions(store=str(place / "store"), model_name="tiles")
    assert (str(row.version), row.label) == (run.artifact("deployment")["metadata"]["version"], "stable")
    assert "Traceback" not in (run.folder / "run.log").read_text(encoding="utf-8")
    assert not list((place / "runs").rglob(".*.partial*"))


def test_the_same_run_again_takes_every_step_and_is_the_latest(
    place: Path, run: run_index.Run, picture_folder: Path
) -> None:
    ended, _ = start_run(place, picture_folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    again = run_index.load(place / "runs" / "latest")
    assert again.folder != run.folder
    status = {name: step.status for name, step in again.steps.items()}
    assert status == {
        **dict.fromkeys(STEPS, "cached"),
        "deploy_model": "done",
    }  # the store is looked at each time


@contextlib.contextmanager
def jumping_server(store: Path) -> Iterator[tuple[str, str]]:
    """Yield the addresses, REST and gRPC, of a server of a store whose clock jumps."""
    rest, grpc = free_port(), free_port()
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "graftflow.serving",
            f"--rest_api_port={rest}",
            f"--port={grpc}",
            f"--model_config_file={store / 'models.config'}",
            "--model_config_file_poll_wait_seconds=1",
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert any(re.search("serving .+ at http", line) for line in server.stdout)
        yield f"http://127.0.0.1:{rest}", f"grpc://127.0.0.1:{grpc}"
    finally:
        server.terminate()
        said = server.communicate(timeout=60)[0]
    assert "Traceback" not in said


def test_a_server_answers_and_follows_labels_to_a_lower_version(
    place: Path, run: run_index.Run, picture_folder: Path, tmp_path: Path
) -> None:
    """As an export has it that was made after the clock was set back for good."""
    store = Path(shutil.copytree(place / "store", tmp_path / "store"))
    (first,) = releases.list_versions(store=str(place / "store"), model_name="tiles")
    config = (store / "models.config").read_text(encoding="utf-8")
    (store / "models.config").write_text(config.replace(str(place / "store"), str(store)), encoding="utf-8")
    picture = next(iter(sorted(picture_folder.rglob("*.png"))))
    with jumping_server(store) as addresses:
        clients = [Client(url, "tiles", timeout=60) for url in addresses]

        def answers() -> list[list[tuple[str, float]]]:
            return [next(client.classify_each([picture.read_bytes])) for client in clients]

        expected = answers()
        end = time.monotonic() + 2 * clock.PERIOD * len(clock.OFFSETS)
        slowest = 0.0
        while time.monotonic() < end:
            started = time.monotonic()
            assert answers() == expected
            slowest = max(slowest, time.monotonic() - started)
        print(f"slowest answers: {slowest:.2f} s")
        lower = first.version - 10 * 365 * 24 * 3600 if first.version > 10**9 else 1
        shutil.copytree(store / "tiles" / str(first.version), store / "tiles" / str(lower))
        releases.release(store=str(store), model_name="tiles", version=lower)
        deadline = time.monotonic() + 120
        while (found := served_by(addresses[0])) != {lower}:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        assert answers() == expected
        asked = subprocess.run(
            [
                sys.executable,
                "-m",
                "graftflow.serving.query",
                "--url",
                addresses[0],
                "--model",
                "tiles",
                picture,
            ],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert asked.returncode == 0, asked.stderr
        assert expected[0][0][0] in asked.stdout
        for client in clients:
            client.close()


def served_by(url: str) -> set[int]:
    """Return the versions that a server has available."""
    told = requests.get(f"{url}/v1/models/tiles", timeout=30).json()["model_version_status"]
    return {int(version["version"]) for version in told if version["state"] == "AVAILABLE"}
