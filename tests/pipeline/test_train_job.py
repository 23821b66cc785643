"""A job on several machines is created and followed to its end, and what goes wrong is said in one line."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from graftflow import training_workers
from manifests import kustomizations, schemas
from pipelines import train_job
from tests.unit.kubeflow_fields import TRAIN_JOB, TRAINING_RUNTIME, unknown

ROOT = Path(__file__).resolve().parents[2]
PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
NO_CRD = (404, b"404 page not found\n")


def state(kind: str = "", message: str = "", **counts: int) -> tuple[int, dict[str, Any]]:
    conditions = (
        [{"type": kind, "status": "True", "reason": f"Jobs{kind}", "message": message}] if kind else []
    )
    jobs = [{"name": "node", **counts}] if counts else []
    return 200, {"kind": "TrainJob", "status": {"conditions": conditions, "jobsStatus": jobs}}


def refusal(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"kind": "Status", "status": "Failure", "message": message, "code": status}


class Cluster(ThreadingHTTPServer):
    """Plays the API of Kubernetes: takes one job, and tells of it what it is given, the last word for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.creation: tuple[int, Any] = (201, None)
        self.states = [state()]
        self.created: list[tuple[str, dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.created.append((self.path, body))
        status, answer = self.server.creation
        self.answer(status, body if answer is None else answer)

    def do_GET(self) -> None:
        assert self.path == f"{PATH}/fine-tune"
        states = self.server.states
        self.answer(*(states.pop(0) if len(states) > 1 else states[0]))

    def answer(self, status: int, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(tmp_path: Path, port: int, *arguments: str) -> int:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    own = [f"--kubeconfig={file}", "--namespace=team", "--interval=0.01", "--timeout=20"]
    return train_job.main([*own, *arguments])


def test_a_job_is_created_and_followed_to_its_end(cluster: Cluster, tmp_path: Path, capsys) -> None:
    cluster.states = [
        state(),
        state(active=1, ready=0),
        state(active=1, ready=1),
        state(active=1, ready=1),
        refusal(503, "the server is starting"),
        state("Complete", active=0, succeeded=1),
    ]
    assert run(tmp_path, cluster.server_port, "--nodes=3", "--", "--epochs=2") == 0
    assert capsys.readouterr().out.splitlines() == [
        "fine-tune: created in team, 3 machines",
        "fine-tune: created, no worker yet",
        "fine-tune: running; jobs: 1 active",
        "fine-tune: running; jobs: 1 active, 1 ready",
        "fine-tune: complete",
        "fine-tune: the model is in the claim, under fine-tune/model",
    ]
    ((path, job),) = cluster.created
    assert path.split("?")[0] == PATH
    assert job["spec"]["trainer"]["numNodes"] == 3
    assert job["spec"]["trainer"]["args"][-1] == "--epochs=2"


@pytest.mark.parametrize(
    ("creation", "words"),
    [
        (
            refusal(403, "forbidden for you"),
            "Access to trainjobs.trainer.kubeflow.org in the namespace 'team' must be",
        ),
        (
            NO_CRD,
            "Kubeflow Trainer must be installed in the cluster (trainjobs.trainer.kubeflow.org/v1alpha1)",
        ),
        (refusal(409, "it exists"), "The job's name must be new in its namespace. Received: 409 it exists"),
        (refusal(422, "no such\nruntime"), "apply -k manifests/trainer)? Received: 422 no such runtime"),
        (refusal(500, "out of order"), "The cluster must answer. Received: 500 out of order"),
        ((200, b"<html>Log in</html>"), "The cluster must answer with a TrainJob. Received: "),
    ],
)
def test_a_refused_job_says_why_in_one_line(
    creation: tuple[int, Any], words: str, cluster: Cluster, tmp_path: Path, capsys
) -> None:
    cluster.creation = creation
    assert run(tmp_path, cluster.server_port) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (
            [state(active=1), state("Failed", "a worker\nran out of memory", failed=1)],
            "must end well. Received: JobsFailed: a worker ran out of memory (kubectl -n team logs",
        ),
        (
            [state(active=1), refusal(404, "not found")],
            "The job must still be there. Received: 404 not found",
        ),
        ([state(active=1), refusal(503, "gone away")], "The cluster must answer. Received: 503 gone away"),
    ],
)
def test_a_job_that_ends_badly_is_a_failure(
    states: list, words: str, cluster: Cluster, tmp_path: Path, capsys
) -> None:
    cluster.states = states
    assert run(tmp_path, cluster.server_port) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_job_that_takes_too_long_is_left_to_itself(cluster: Cluster, tmp_path: Path, capsys) -> None:
    cluster.states = [state(active=1)]
    began = time.monotonic()
    assert run(tmp_path, cluster.server_port, "--timeout=0.3") == 1
    assert time.monotonic() - began < 10
    assert (
        "must end within 0.3 s; it goes on by itself. Received: running; jobs: 1 active"
        in capsys.readouterr().err
    )


def test_no_cluster_is_said_in_one_line(tmp_path: Path, capsys) -> None:
    assert train_job.main([f"--kubeconfig={tmp_path / 'none'}"]) == 1
    assert "A cluster must be named by a kubeconfig" in capsys.readouterr().err
    with Cluster() as closed:
        port = closed.server_port
    assert run(tmp_path, port) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: The cluster must be reachable. Received: MaxRetryError")


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--name=Fine_Tune"], "name must be at most 40 small letters, digits and hyphens"),
        (["--name=" + "a" * 41], "name must be at most 40 small letters"),
        (["--nodes=0"], "nodes must be a whole number from 1. Received: 0"),
        (["--gpus=-1"], "gpus must be a whole number from 0. Received: -1"),
        (["--gpus=1"], "image must name the image for GPUs where gpus are asked for. Received: ''"),
    ],
)
def test_a_wrong_job_is_not_created(
    arguments: list[str], rule: str, cluster: Cluster, tmp_path: Path, capsys
) -> None:
    assert run(tmp_path, cluster.server_port, *arguments) == 1
    assert rule in capsys.readouterr().err
    assert cluster.created == []


def runtime() -> dict[str, Any]:
    (document,) = kustomizations.render(ROOT / "manifests" / "trainer")
    return document


def test_trainer_knows_every_field_of_job_and_runtime() -> None:
    job = train_job.build_job("tune", num_nodes=2, image="registry.example.com/gpu:1", gpus=4)
    assert unknown(job["spec"], TRAIN_JOB) == []
    assert unknown(runtime()["spec"], TRAINING_RUNTIME) == []
    reference = job["spec"]["runtimeRef"]
    assert reference["name"] == runtime()["metadata"]["name"]
    assert f"{reference['apiGroup']}/v1alpha1" == job["apiVersion"] == runtime()["apiVersion"]
    assert reference["kind"] == runtime()["kind"]


def test_the_runtime_s_pods_are_sound_and_called_as_the_workers_expect() -> None:
    (replicated,) = runtime()["spec"]["template"]["spec"]["replicatedJobs"]
    template = replicated["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", **template, "metadata": {"name": "tune-node-0"}}
    # The two together are what each pod runs.
    created = train_job.build_job("tune", num_nodes=3)
    pod = template["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for number in (3, None):
        counted = {"completions": number, "parallelism": number} if number else {}
        for release in schemas.RELEASES:
            assert schemas.problems({**job, "spec": {**job["spec"], **counted}}, release) == []
    assert template["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert (replicated["name"], container["name"], template["spec"]["completionMode"]) == (
        "node",
        "node",
        "Indexed",
    )
    read = training_workers.build_parser().parse_args(created["spec"]["trainer"]["args"])
    assert re.fullmatch(r"tune-node-0-\{index\}\.tune", read.hosts)
    assert read.nodes == created["spec"]["trainer"]["numNodes"]
    assert [port["containerPort"] for port in container["ports"]] == [read.port]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(read.output).startswith(mounts["training"])
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["command"][1:] == ["-m", "graftflow.training_workers"]
