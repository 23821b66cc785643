"""Several processes that do the same at once: each is right, or is told that another one was faster."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graftflow import files, releases

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = """
import sys, time
from graftflow import deployment, releases
from graftflow.errors import InputError
export, store, version, start = sys.argv[1:]
while time.time() < float(start):
    time.sleep(0.001)
try:
    print(deployment.deploy(export, store=store, model_name="pets").status)
    releases.release(store=store, model_name="pets", version=int(version))
except InputError as error:
    print(error)
    sys.exit(3)
"""


@pytest.fixture
def deploy(tmp_path: Path):
    """Deploy several exports at once; returns exit code and words of each."""

    def run(*exports: Path) -> list[tuple[int, str]]:
        start = str(time.time() + 1.0)  # by when all have imported what they need
        processes = []
        for export in exports:
            version = files.read_json(export / "export.json")["version"]
            arguments = [str(export), str(tmp_path / "store"), version]
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", DEPLOY, *arguments, start],
                    env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        said = [
            (process.communicate(timeout=60)[0].splitlines(), process.returncode) for process in processes
        ]
        return [(code, [line for line in lines if "waiting for" not in line][-1]) for lines, code in said]

    return run


def export(folder: Path, version: int, content: str) -> Path:
    model = folder / str(version)
    model.mkdir(parents=True)
    (model / "saved_model.pb").write_text(content * 100_000)
    told = {"version": str(version), "sha256": files.sha256_directory(model)}
    files.write_json(folder / "export.json", told)
    return folder


def test_versions_deployed_at_once_are_all_there_and_one_is_stable(deploy, tmp_path: Path) -> None:
    exports = [export(tmp_path / f"export-{version}", version, f"{version}") for version in range(1, 6)]
    assert deploy(*exports) == [(0, "published")] * 5
    rows = releases.list_versions(store=str(tmp_path / "store"), model_name="pets")
    assert sorted(row.version for row in rows) == [1, 2, 3, 4, 5]
    assert sum(row.label == "stable" for row in rows) == 1
    events = json.loads((tmp_path / "store" / "releases.json").read_text())["models"]["pets"]
    deployed = [event for event in events if event["action"] == "deploy"]
    assert {event["version"] for event in deployed} >= {1, 2, 3, 4, 5} - {events[0]["version"]}
    for earlier, later in itertools.pairwise(deployed):
        assert later["replaced"] == earlier["version"], "no change was written over another one"
    for version in range(1, 6):
        told = files.read_json(tmp_path / f"export-{version}" / "export.json")
        assert files.sha256_directory(tmp_path / "store" / "pets" / str(version)) == told["sha256"]
    assert not list((tmp_path / "store").rglob(".*"))


def test_one_version_deployed_twice_at_once_is_published_once(deploy, tmp_path: Path) -> None:
    same = export(tmp_path / "export", 7, "graph")
    ended = deploy(same, same, same)
    assert [code for code, _ in ended] == [0, 0, 0]
    assert sorted(words for _, words in ended) == ["already there", "already there", "published"]


def test_two_contents_of_one_version_at_once_are_one_version_and_one_refusal(deploy, tmp_path: Path) -> None:
    one, other = export(tmp_path / "one", 7, "graph"), export(tmp_path / "other", 7, "other")
    ended = sorted(deploy(one, other))
    assert [code for code, _ in ended] == [0, 3]
    assert "A published version is never overwritten. Received: version 7" in ended[1][1]
    digest = files.sha256_directory(tmp_path / "store" / "pets" / "7")
    assert digest in {files.read_json(folder / "export.json")["sha256"] for folder in (one, other)}
