"""``python -m graftflow.releases``, and a server process that follows what it does."""

import base64
import json
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import requests

from graftflow import release_commands, releases
from graftflow.releases import Row
from tests.unit.labelled_stores import Store
from tests.unit.serving_model import CLASSES, ROOT, picture, running_server, save_model


@pytest.fixture
def folder(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def test_the_table_tells_labels_accuracy_and_what_happened(folder, capsys):
    folder.add(1)
    folder.deploy(2, facts={"accuracy": 0.96125})
    folder.deploy(3, facts={"accuracy": 0.5})
    releases.rollback(**folder.where)
    folder.deploy(4, "canary", facts={"accuracy": 0.97})
    folder.remove(1)
    flags = ["--store", folder.uri, "--model-name=pets"]
    assert release_commands.main(["list", *flags, "--format=json"]) == 0
    rows = [Row(**row) for row in json.loads(capsys.readouterr().out)]
    assert [(r.version, r.label, r.accuracy, r.note) for r in rows] == [
        (4, "canary", 0.97, ""),
        (3, "", 0.5, "rolled back"),
        (2, "stable", 0.96125, ""),
        (1, "", None, "loaded for a rollback, not in the store"),
    ]
    assert release_commands.main(["list", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["version", "label", "since", "accuracy"]
    assert lines[1].split()[:2] == ["4", "canary"]
    assert lines[3].endswith("UTC  0.961")


def test_the_commands_tell_what_they_did(folder, capsys):
    flags = ["--store", folder.uri, "--model-name=pets"]
    folder.deploy(1)
    folder.deploy(2, "canary")

    def told(*arguments: str) -> str:
        assert release_commands.main([*arguments, *flags]) == 0
        return capsys.readouterr().out

    assert told("promote") == (
        "pets: version 2 is stable now, version 1 is not; a rollback goes to version 1\n"
    )
    assert told("promote", "--version=2") == "pets: version 2 is stable already\n"
    assert told("rollback") == "pets: version 1 is stable again, version 2 is not\n"
    folder.deploy(3, "canary")
    assert told("withdraw") == "pets: version 3 is no longer the canary\n"
    assert release_commands.main(["rollback", *flags]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: rollback needs a version")
    assert said.err.count("\n") == 1


def test_the_command_line_needs_no_tensorflow(folder):
    folder.deploy(1)
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['releases', 'list', '--store', {folder.uri!r}, '--model-name', 'pets']\n"
        "try:\n    runpy.run_module('graftflow.releases', run_name='__main__')\n"
        "except SystemExit as end:\n    sys.exit(end.code or int('tensorflow' in sys.modules))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, timeout=60
    )
    assert (process.returncode, process.stderr) == (0, b"")
    assert b"stable" in process.stdout


def test_a_server_follows_a_promotion_and_a_rollback_without_a_failed_request(tmp_path):
    """Clients that ask for the label ``stable``: red is ``red`` by versions 1 and 3, and ``blue`` by version 2."""
    store = tmp_path / "store"
    for version, scale in ((1, 4.0), (2, -4.0)):
        save_model(tmp_path / str(version), scale=scale)
    where = {"store": str(store), "model_name": "toy"}
    (store / "toy").mkdir(parents=True)
    shutil.copytree(tmp_path / "1", store / "toy" / "1")
    releases.release(**where, version=1)
    body = {"signature_name": "ranked", "instances": [{"b64": base64.b64encode(picture()).decode()}]}
    flags = (
        f"--model_config_file={store / 'models.config'}",
        "--model_config_file_poll_wait_seconds=0.1",
        "--allow_version_labels_for_unavailable_models",
    )
    with running_server(None, tmp_path / "log", *flags) as server:
        answers: list[str] = []
        failures: list[object] = []
        stop = threading.Event()

        def ask() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    url = f"{server.url}/v1/models/toy/labels/stable:predict"
                    response = session.post(url, json=body, timeout=20)
                    if response.status_code == 200:
                        answers.append(response.json()["predictions"][0]["classes"][0])
                    else:
                        failures.append(response.text)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for version, change, expected in (
                (2, lambda: releases.release(**where, version=2), "blue"),
                (None, lambda: releases.rollback(**where), "red"),
            ):
                if version:
                    shutil.copytree(tmp_path / str(version), tmp_path / "aside")
                    (tmp_path / "aside").rename(store / "toy" / str(version))
                change()
                server.wait(lambda expected=expected: answers and answers[-1] == expected)
            server.wait(lambda: server.states() == {"1": "AVAILABLE", "2": "END"})
        finally:
            stop.set()
            thread.join()
        assert failures == []
        assert set(answers) <= set(CLASSES)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
