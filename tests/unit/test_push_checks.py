"""A push that a server judges: what does not load, or answers otherwise than evaluated, is not published."""

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import psutil
import pytest

from graftflow import push_checks, releases, server_processes, stored_lineages
from graftflow.errors import InputError
from graftflow.files import read_json, write_json
from graftflow.push_checks import check_push, read_predictions
from graftflow.pushes import push
from graftflow.serving.config_texts import read_models
from graftflow.serving.model_sets import ModelSet, ModelSpec
from graftflow.serving.saved_models import LoadedVersion
from tests.unit.pushed_models import Pushed, copy_export, seal, write_export, write_pushed
from tests.unit.serving_model import ROOT


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> Pushed:
    return write_pushed(tmp_path_factory.mktemp("pushed"))


@pytest.fixture
def store(tmp_path) -> Path:
    """A store whose version 2 is stable."""
    store = tmp_path / "store"
    write_export(store / "toy", version=2)
    (store / "toy" / "export.json").unlink()
    releases.release(store=str(store), model_name="toy", version=2)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def children(process: int) -> list[psutil.Process]:
    try:
        return [c for c in psutil.Process(process).children() if "graftflow.server_processes" in c.cmdline()]
    except psutil.Error:
        return []


def refused(pushed: Pushed, store: Path, **inputs: Path) -> str:
    """What a push that is refused says; it must leave no trace."""
    before = contents(store)
    with pytest.raises(InputError) as caught:
        push(**pushed.inputs(**inputs), store=str(store), model_name="toy")
    assert contents(store) == before
    assert children(os.getpid()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_version_that_answers_as_evaluated_becomes_stable(pushed, store):
    facts = push(**pushed.inputs(), store=str(store), model_name="toy")
    validation = facts.pop("validation")
    assert facts == {
        "uri": str(store / "toy" / "3"),
        "version": "3",
        "status": "published",
        "model_name": "toy",
        "label": "stable",
        "previous": "2",
        "lineage": None,
    }
    assert validation["pictures"] == 8
    assert validation["largest_difference"] == max(validation["rest"], validation["grpc"]) <= 1e-5
    assert 0 < validation["seconds"] < 600
    stable, before = releases.list_versions(store=str(store), model_name="toy")
    assert (stable.version, stable.label, stable.accuracy) == (3, "stable", 1.0)
    assert before.note == "loaded for a rollback"
    found = stored_lineages.find("toy", store=str(store))
    assert (found.version, found.verified, found.recorded_in) == (3, True, "releases.json")
    assert found.metrics == read_json(pushed.evaluation / "evaluation.json")["metrics"]
    assert children(os.getpid()) == []


def test_a_version_of_a_clock_that_was_set_back_is_served_and_told(pushed, tmp_path, capsys):
    """A later export with a lower number: labels decide what is served, and who looks at numbers alone is told."""
    store = tmp_path / "store"
    write_export(store / "toy", version=9)
    (store / "toy" / "export.json").unlink()
    releases.release(store=str(store), model_name="toy", version=9)
    assert push(**pushed.inputs(), store=str(store), model_name="toy")["previous"] == "9"
    assert "version 9 in the store is higher" in (said := capsys.readouterr().out)
    assert "VERSION=10" in said
    models = ModelSet(LoadedVersion)
    models.configure(read_models(store / "models.config"))
    try:
        for spec in (ModelSpec("toy"), ModelSpec("toy", label="stable")):
            assert models.get(spec).number == 3
    finally:
        models.close()


def test_other_variables_than_those_evaluated_are_refused(pushed, store, tmp_path):
    other = write_export(tmp_path / "other", scale=-4.01)
    said = refused(pushed, store, saved_model=other)
    assert said.startswith(
        "Version 3 must pass in a model server before it is published. Its answers must be"
    )
    assert "within 1e-05" in said
    assert "over REST in a batch of 1" in said


def test_an_evaluation_on_a_gpu_is_compared_as_exactly_as_a_gpu_rounds(pushed, store, tmp_path):
    """A GPU multiplies with 10 bits: an honest version differs by more than 1e-5, another one by far more."""
    on_gpu = Path(shutil.copytree(pushed.evaluation, tmp_path / "on-gpu"))
    facts = read_json(on_gpu / "evaluation.json")
    assert facts["device"] == "CPU"
    write_json(on_gpu / "evaluation.json", facts | {"device": "abacus"})
    assert "Received: 'abacus'" in refused(pushed, store, evaluation=on_gpu)
    write_json(on_gpu / "evaluation.json", facts | {"device": "GPU"})
    close = write_export(tmp_path / "close", scale=-4.01)
    facts = push(**pushed.inputs(saved_model=close, evaluation=on_gpu), store=str(store), model_name="toy")
    assert 1e-5 < facts["validation"]["largest_difference"] < 1e-2
    other = write_export(tmp_path / "other", version=4, scale=4.0)
    assert "within 0.01" in refused(pushed, store, saved_model=other, evaluation=on_gpu)


def test_a_version_that_does_not_load_is_refused_with_the_servers_words(pushed, store, tmp_path):
    broken = copy_export(pushed, tmp_path / "broken")
    (broken / "3" / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    seal(broken)
    said = refused(pushed, store, saved_model=broken)
    assert "The model server says: version 3 of toy does not load, nothing serves yet: " in said


def test_a_server_that_does_not_come_up_in_time_is_ended(pushed):
    started = time.monotonic()
    with pytest.raises(InputError, match=r"must be ready within \d seconds\. Received: "):
        check_push(**pushed.inputs(), model_name="toy", timeout=0.3)
    assert time.monotonic() - started < 20
    assert children(os.getpid()) == []


def test_a_server_that_ends_says_why(pushed, monkeypatch):
    monkeypatch.setattr(server_processes, "_free_ports", lambda count: [8, 8][:count])
    with pytest.raises(InputError, match="ended with code 2: error: --port and --rest_api_port must differ"):
        check_push(**pushed.inputs(), model_name="toy")


def test_a_port_that_somebody_took_is_replaced(pushed, monkeypatch):
    free_ports, taken = server_processes._free_ports, []
    with server_processes.socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()

        def unlucky(count):
            ports = free_ports(count)
            if not taken:
                taken.append(ports[0])
                return [busy.getsockname()[1], *ports[1:]]
            return ports

        monkeypatch.setattr(server_processes, "_free_ports", unlucky)
        assert check_push(**pushed.inputs(), model_name="toy").pictures == 8
    assert taken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [["nothing"]], "must hold a predictions.csv"),
        (lambda lines: lines[:1], "must hold a predictions.csv"),
        (lambda lines: [*lines[:1], lines[1][:-1]], "must hold a predictions.csv"),
        (lambda lines: [*lines[:1], [*lines[1][:3], "a", "b"]], "must hold a predictions.csv"),
    ],
)
def test_an_evaluation_that_is_none_is_refused_before_a_server_starts(
    pushed, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(server_processes.subprocess, "Popen", None)
    with (pushed.evaluation / "predictions.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(change(lines))
    with pytest.raises(InputError, match=message) as caught:
        check_push(**pushed.inputs(evaluation=tmp_path))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(InputError, match="FileNotFoundError"):
        read_predictions(tmp_path / "nowhere")


def test_of_many_predictions_only_the_asked_are_kept(tmp_path):
    names = [f"class-{number}" for number in range(10)]
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "predicted", *names])
        writer.writerows([f"{row}.jpg", names[0], names[1], *[f"0.{row:05}"] * 10] for row in range(5000))
    tracemalloc.start()
    classes, found = read_predictions(tmp_path, {"17.jpg", "none.jpg"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (classes, found) == (names, {"17.jpg": (0.00017,) * 10})
    assert peak < 1e6  # all of them are 5 MB


def test_an_evaluation_of_other_pictures_is_refused(pushed, store, tmp_path):
    other = Path(shutil.copytree(pushed.evaluation, tmp_path / "other"))
    text = (other / "predictions.csv").read_text()
    (other / "predictions.csv").write_text(text.replace("red/", "rot/"))
    assert "must be of the dataset's test pictures. Received: one without 'red/" in refused(
        pushed, store, evaluation=other
    )


def test_a_store_that_is_not_in_order_is_told_before_a_server_starts(pushed, store, monkeypatch):
    monkeypatch.setattr(server_processes.subprocess, "Popen", None)
    (store / "models.config").write_text("{")
    assert "must be a ModelServerConfig" in refused(pushed, store)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"probabilities": [0.25, 0.75], "label": "red"}, None),
        ({"probabilities": [0.2501, 0.7499], "label": "red"}, "Received: .* with probability .* not "),
        (
            {"probabilities": [math.nan, 0.75], "label": "red"},
            "Received: blue with probability nan, not 0.25",
        ),
        ({"probabilities": [0.25, 0.75], "label": "blue"}, "most probable class, red. Received: blue"),
        (
            {"probabilities": [0.25, 0.5, 0.25], "label": "red"},
            "2 classes. Received: 3 for 'a.png' over REST",
        ),
        ({"scores": [0.25, 0.75]}, "must answer with probabilities and a label"),
        (0.5, "must answer with probabilities and a label"),
    ],
)
def test_an_answer_is_compared_in_full(row, message):
    picture = push_checks._Picture("a.png", b"", (0.25, 0.75))

    def compare():
        return push_checks._difference(picture, row, ["blue", "red"], "'a.png' over REST", 1e-5)

    if message is None:
        assert compare() == 0
        return
    with pytest.raises(InputError, match=message):
        compare()


PUSH = """
import sys
from graftflow.pushes import push
saved_model, evaluation, dataset, store = sys.argv[1:]
push(saved_model, evaluation=evaluation, dataset=dataset, store=store, model_name="toy")
"""


@pytest.mark.parametrize(
    ("number", "line"),
    [(signal.SIGKILL, "loading"), (signal.SIGTERM, "asking"), (signal.SIGINT, "asking")],
)
def test_a_push_that_is_ended_leaves_no_server_and_an_untouched_store(pushed, store, number, line):
    before = contents(store)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PUSH, *map(str, pushed.inputs().values()), str(store)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        while not process.stdout.readline().startswith(line):
            assert process.poll() is None
        deadline = time.monotonic() + 20
        while not (server := children(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(30) != 0
    gone, alive = psutil.wait_procs(server, timeout=10)
    assert (len(gone), alive) == (1, [])
    assert contents(store) == before
