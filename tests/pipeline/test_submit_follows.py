"""Following a run on a cluster: each change of a step, the results, and every way that it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kfp_server import FakeKfp, Snapshot, serving
from submissions import one_line, prepare, run

from pipelines import follow, submit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kfp(monkeypatch):
    prepare(monkeypatch)
    with serving(FakeKfp()) as server:
        yield server


LEARNING = {"Train head": "SUCCEEDED", "fine-tune": "RUNNING", "fine-tune-driver": "RUNNING"}


def test_waiting_tells_each_change_once_and_the_results_at_the_end(kfp, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "ROOT", tmp_path)
    kfp.script = [
        Snapshot("PENDING"),
        Snapshot("RUNNING", {"Train head": "RUNNING"}),
        Snapshot("RUNNING", LEARNING),
        Snapshot("RUNNING", LEARNING),
        Snapshot(
            "SUCCEEDED",
            {"Train head": "SUCCEEDED", "fine-tune": "SUCCEEDED", "Generate adversarial samples": "SKIPPED"},
            outputs={"fine-tune": {"fine_tune_metrics": "7", "model": "8"}, "Train head": {"report": "9"}},
        ),
    ]
    kfp.files["/signed/report"] = b"<html>report</html>"
    kfp.artifacts = {
        "7": {"artifact_id": "7", "metadata": {"accuracy": 0.98765}},
        "9": {"artifact_id": "9", "download_url": f"{kfp.url}/signed/report?signature=1"},
    }
    assert run(kfp, "--wait") == 0
    out = capsys.readouterr().out
    steps = [" ".join(line.split("] ")[1].split()) for line in out.splitlines() if "] " in line]
    assert steps == [
        "train-head running",
        "train-head succeeded after 1:15",
        "fine-tune running",
        "fine-tune succeeded after 1:15",
        "generate-adversarial skipped after 1:15",
    ]
    assert "fine_tune_metrics: accuracy 0.9877" in out
    (run_id,) = kfp.runs
    report = tmp_path / "runs" / "cluster" / f"{run_id}.html"
    assert f"report: {report}" in out
    assert report.read_bytes() == b"<html>report</html>"


def test_a_long_step_is_told_again_now_and_then(kfp, capsys, monkeypatch):
    monkeypatch.setattr(follow, "_HEARTBEAT", 0.02)
    kfp.script = [Snapshot("RUNNING", {"fine-tune": "RUNNING"})] * 9 + [Snapshot("SUCCEEDED")]
    assert run(kfp, "--wait") == 0
    assert "running: fine-tune\n" in capsys.readouterr().out


def test_what_a_server_says_cannot_move_the_terminal(kfp, capsys):
    kfp.faults["*"] = [(503, "application/json", b'{"message": "\\u001b[2Jgone"}')]
    assert run(kfp) == 3
    assert "\x1b" not in capsys.readouterr().err


def test_a_server_without_artifacts_gets_the_pages_of_them(kfp, capsys):
    kfp.script = [
        Snapshot("SUCCEEDED", {"evaluate": "SUCCEEDED"}, outputs={"evaluate": {"test_metrics": "7"}})
    ]
    assert run(kfp, "--wait") == 0
    assert f"test_metrics: {kfp.url}/#/artifacts/7" in capsys.readouterr().out


def test_a_failed_run_names_the_step_its_error_and_its_pod(kfp, capsys):
    kfp.script = [Snapshot("FAILED", {"download-data": "FAILED"}, errors={"download-data": "No space\nleft"})]
    assert run(kfp, "--wait") == 1
    shown = capsys.readouterr()
    assert (
        "download-data failed: No space left (logs: kubectl logs pod-of-download-data -c main)" in shown.out
    )
    assert "the run was not successful: failed" in one_line(shown.err)


def test_a_cancelled_run_ends_the_waiting(kfp, capsys):
    kfp.script = [Snapshot("RUNNING"), Snapshot("CANCELING"), Snapshot("CANCELED")]
    assert run(kfp, "--wait") == 1
    assert "the run was not successful: canceled" in one_line(capsys.readouterr().err)


def test_a_stuck_run_ends_with_124_and_goes_on(kfp, capsys):
    kfp.script = [Snapshot("RUNNING", {"fine-tune": "PENDING"})]
    assert run(kfp, "--wait", "--timeout", "0.1") == 124
    (run_id,) = kfp.runs
    assert f"--follow {run_id} follows it, --cancel {run_id} ends it" in one_line(capsys.readouterr().err)
    assert "cancelled" not in kfp.runs[run_id]
    assert run(kfp, "--cancel", run_id) == 0
    assert run(kfp, "--follow", run_id) == 1


def test_following_survives_moments_without_an_answer_and_no_more(kfp, capsys):
    assert run(kfp) == 0
    (run_id,) = kfp.runs
    path = f"/apis/v2beta1/runs/{run_id}"
    kfp.faults[path] = ["drop", (503, "text/plain", b"restarting")]
    assert run(kfp, "--follow", run_id) == 0
    assert capsys.readouterr().out.count("trying again") == 2
    kfp.faults[path] = [(503, "text/plain", b"gone")] * 20
    assert run(kfp, "--follow", run_id) == 3
    assert f"--follow {run_id} looks again" in one_line(capsys.readouterr().err)
    assert len(kfp.faults[path]) == 14


@pytest.mark.parametrize("flag", ["--follow", "--cancel"])
def test_a_run_that_is_not_there_is_told(kfp, capsys, flag):
    assert run(kfp, flag, "nonsense") == 2
    assert "Run nonsense not found" in one_line(capsys.readouterr().err)


def test_ctrl_c_leaves_the_run_going_and_says_how_to_follow_it(kfp):
    kfp.script = [Snapshot("RUNNING", {"fine-tune": "RUNNING"})]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.submit", "--host", kfp.url, "--wait", "--poll-seconds", "0.05"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert kfp.looked.wait(60)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    (run_id,) = kfp.runs
    assert re.search(rf"interrupted; the run goes on; --follow {run_id}", one_line(err))
    assert "cancelled" not in kfp.runs[run_id]


def test_the_help_tells_the_exit_codes():
    command = [sys.executable, "-m", "pipelines.submit", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for code in ("0 ", "1 ", "2 ", "3 ", "124 ", "130 "):
        assert f"\n  {code}" in done.stdout
    assert "--fine-tune-blocks" in done.stdout
