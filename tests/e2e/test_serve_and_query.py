"""From the exported model to an answer on the command line: what is served is what was evaluated."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from graftflow import datasets, deployment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def url(artifacts, tmp_path_factory) -> Iterator[str]:
    """A server process on the deployed model, ended at the end."""
    store = tmp_path_factory.mktemp("store")
    published = deployment.deploy(artifacts.saved_model, store=str(store), model_name="graftflow")
    assert published.status == "published"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "graftflow.serving",
            f"--rest_api_port={port}",
            "--model_name=graftflow",
            f"--model_base_path={store / 'graftflow'}",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                status = requests.get(f"{address}/v1/models/graftflow", timeout=5).json()
                if status["model_version_status"][0]["state"] == "AVAILABLE":
                    break
            except (requests.ConnectionError, KeyError, IndexError):
                time.sleep(0.2)
        else:
            pytest.fail("the model server did not come up within 90 seconds")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def evaluated(artifacts) -> dict[str, dict[str, str]]:
    with open(artifacts.evaluation / "predictions.csv", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def sent(artifacts, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sent")
    files = {}
    for index, record in enumerate(datasets.read_split(artifacts.dataset, "test")):
        file = folder / f"{index}.png"
        file.write_bytes(record["image"].numpy())
        files[record["path"].numpy().decode()] = file
    return files


def test_served_equals_evaluated(url: str, sent, evaluated) -> None:
    command = [sys.executable, "-m", "graftflow.serving.query", "--url", url, "--format", "json"]
    result = subprocess.run(
        [*command, *map(str, sent.values())], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    assert len(answers) == len(sent) == 12
    for (path, file), answer in zip(sent.items(), answers, strict=True):
        assert answer["picture"] == str(file)
        told = {guess["class"]: guess["probability"] for guess in answer["predictions"]}
        assert set(told) == {"brick", "coffee", "rocket"}
        for name, probability in told.items():
            assert probability == pytest.approx(float(evaluated[path][name]), abs=1e-5)


def test_make_query_prints_classes_with_probabilities(url: str, sent, evaluated) -> None:
    path, file = next(iter(sent.items()))
    result = subprocess.run(
        [sys.executable, "-m", "graftflow.serving.query", "--url", url, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert evaluated[path]["predicted"] in result.stdout
    assert f"{float(evaluated[path][evaluated[path]['predicted']]):.4f}" in result.stdout


def test_no_server_is_one_clear_line(sent) -> None:
    file = next(iter(sent.values()))
    result = subprocess.run(
        [sys.executable, "-m", "graftflow.serving.query", "--url", "http://127.0.0.1:9", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "make serve" in result.stderr
    assert result.stderr.count("\n") == 1
