"""Two processes that find each other on this machine train what one trains, and the first alone writes the model."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from graftflow import files, training_workers
from graftflow.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "graftflow.training_workers", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_machines_write_one_model_the_same_as_one_machine_s(artifacts, tmp_path: Path) -> None:
    options = [
        "--num-blocks=1",
        "--epochs=1",
        "--learning-rate=1e-4",
        "--batch-size=7",
        "--precision=float32",
    ]
    options += [f"--dataset={artifacts.dataset}", f"--head={artifacts.head}"]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    workers = []
    for index in range(2):
        told = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        workers.append(start([*options, f"--output={tmp_path / str(index)}"], TF_CONFIG=told))
    try:
        outputs = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for worker, (_, errors) in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, errors[-2000:]
    assert outputs[0][0].splitlines()[-1].startswith(f"wrote {tmp_path / '0'}: head_accuracy")
    assert outputs[1][0].splitlines()[-1] == "trained; the first machine writes the model"
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    with start([*options, f"--output={tmp_path / 'alone'}"]) as alone:
        _, errors = alone.communicate(timeout=300)
    assert alone.returncode == 0, errors[-2000:]
    together, single = (files.read_json(tmp_path / name / "model.json") for name in ("0", "alone"))
    assert together["history"][0] == pytest.approx(single["history"][0], abs=1e-5)
    assert together["fine_tuned"] == pytest.approx(single["fine_tuned"], abs=1e-5)
    assert (tmp_path / "0" / "model.keras").stat().st_size == pytest.approx(
        (tmp_path / "alone" / "model.keras").stat().st_size, rel=0.01
    )


def test_a_machine_that_is_lost_ends_the_others_and_no_model_is_written(artifacts, tmp_path: Path) -> None:
    options = ["--num-blocks=1", "--epochs=2000", "--patience=2000", "--learning-rate=1e-6", "--batch-size=8"]
    options += [
        f"--dataset={artifacts.dataset}",
        f"--head={artifacts.head}",
        f"--output={tmp_path / 'model'}",
    ]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    told = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
    first, second = (start(options, TF_CONFIG=text) for text in told)
    slow = threading.Timer(300, second.kill)
    slow.start()
    try:
        for line in second.stdout:
            if "epoch 2 of" in line:
                break
        second.kill()
        _, errors = first.communicate(timeout=120)
    finally:
        slow.cancel()
        for worker in (first, second):
            worker.kill()
            worker.communicate()
    assert first.returncode == 1, errors[-2000:]
    assert errors.splitlines()[-1].startswith("error: All machines must train to the end. Received: ")
    assert list(tmp_path.iterdir()) == []


def test_a_pod_of_an_indexed_job_knows_all_machines_and_its_own_number() -> None:
    text = training_workers.cluster_text("tune-node-0-{index}.tune", num_nodes=3, index=2)
    assert json.loads(text) == {
        "cluster": {
            "worker": ["tune-node-0-0.tune:2222", "tune-node-0-1.tune:2222", "tune-node-0-2.tune:2222"]
        },
        "task": {"type": "worker", "index": 2},
    }


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_nodes": 0}, "nodes must be a whole number from 1. Received: 0"),
        ({"index": 2}, "JOB_COMPLETION_INDEX must be a whole number from 0 to 1. Received: 2"),
        ({"hosts": "tune"}, "hosts must hold {index}, such as .* Received: 'tune'"),
        ({"port": 70000}, "port must be a whole number from 1 to 65535. Received: 70000"),
    ],
)
def test_a_wrong_cluster_is_refused(change: dict, rule: str) -> None:
    given = {"hosts": "tune-{index}", "num_nodes": 2, "index": 0, **change}
    with pytest.raises(InputError, match=rule):
        training_workers.cluster_text(given.pop("hosts"), **given)


def test_a_pod_without_a_number_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv(training_workers.INDEX, raising=False)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    code = training_workers.main(["--dataset=d", "--head=h", "--output=o", "--nodes=2", "--hosts=a-{index}"])
    assert code == 2
    assert capsys.readouterr().err == (
        "error: JOB_COMPLETION_INDEX must be a whole number from 0, as an indexed Job sets it. Received: ''\n"
    )
