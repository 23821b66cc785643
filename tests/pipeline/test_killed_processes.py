"""What becomes of a step whose run is killed, of a run whose step is, and of what both leave behind."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines import run_local, run_step
from pipelines.console import RunConsole
from pipelines.run_index import Run

ROOT = Path(__file__).resolve().parents[2]
# A step without TensorFlow, by its name; what it does is the test's.
LAUNCHER = """
import sys
from pipelines.step_processes import StepProcesses
source, executor_input = sys.argv[1:]
arguments = ["--executor_input", executor_input, "--function_to_execute", "check_settings"]
sys.exit(StepProcesses().run(["sh", "-ec", "python3 -m kfp.dsl.executor_main", source, *arguments]))
"""
STEP = "import os, signal, time\ndef check_settings():\n    print('at work in', os.getpid(), flush=True)\n    {does}\n"


def launch(does: str, folder: Path) -> subprocess.Popen:
    """Start a process that runs one step, which does what it is told."""
    told = {"inputs": {}, "outputs": {"outputFile": str(folder / "output.json")}}
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, STEP.format(does=does), json.dumps(told)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def is_at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere steps are not forked")
def test_a_step_whose_run_is_killed_ends_too(tmp_path: Path) -> None:
    with launch("time.sleep(600)", tmp_path) as run:
        pid = next(int(line.split()[-1]) for line in run.stdout if line.startswith("at work in"))
        assert is_at_work(pid)
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while is_at_work(pid):
        assert time.monotonic() < deadline, "the step works on, for nobody"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere steps are not forked")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSEGV])
def test_a_step_that_a_signal_ends_is_told_as_one(tmp_path: Path, ending: signal.Signals) -> None:
    with launch(f"os.kill(os.getpid(), {ending})", tmp_path) as run:
        log = run.stdout.read()
    assert run.returncode == 128 + ending
    error = [line for line in log.splitlines() if line.strip()][-1]
    assert error == f"ProcessError: the step was ended by {ending.name}, perhaps out of memory"
    assert run_local._ERROR.match(error)


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        # A library that ends the process by itself leaves no Python error.
        (["fitting", "OpenBLAS error: giving up.", ""], "OpenBLAS error: giving up."),
        (["a.errors.InputError: broken rule", "", "later words"], "broken rule"),
        (["MemoryError"], "MemoryError"),
        (
            ["ImportError: libx.so: failed to map segment from shared object"],
            "ImportError: libx.so: failed to map segment from shared object, perhaps out of memory",
        ),
        (
            ["RuntimeError: can't start new thread"],
            "RuntimeError: can't start new thread, perhaps out of memory",
        ),
        (
            ["x.AbortedError: Operation failed. Status: 1, message: could not create a primitive"],
            "AbortedError: Operation failed. Status: 1, message: could not create a primitive, perhaps out "
            "of memory",
        ),
        # Keras tells first where it was.
        (
            [
                "ValueError: Exception encountered when calling Conv2D.call().",
                "",
                "\x1b[1mbad shape\x1b[0m",
                "",
                "x",
            ],
            "ValueError: bad shape",
        ),
        ([], ""),  # then kfp's own words are told
    ],
)
def test_the_error_of_a_run_is_what_its_step_said_last(tmp_path: Path, printed: list[str], told: str) -> None:
    observer = run_local.Observer(
        Run(tmp_path, {}),
        locate=lambda: None,
        cache=tmp_path,
        log=io.StringIO(),
        console=RunConsole(io.StringIO()),
    )
    before = ["12:00:00.000 - INFO - Executing task 'train-head'", "12:00:00.001 - INFO - Streamed logs:", ""]
    for line in [*before, *printed, "12:00:01.000 - INFO - Task 'train-head' finished with status FAILURE"]:
        observer.line(line)
    assert observer.failure == told


def test_an_error_of_the_launcher_itself_is_told_too(tmp_path: Path) -> None:
    nothing = {"locate": lambda: None, "cache": tmp_path, "log": io.StringIO()}
    observer = run_local.Observer(Run(tmp_path, {}), **nothing, console=RunConsole(io.StringIO()))
    observer.line("Task for-loop-1-iteration-0 failed with exception: can't start new thread")
    assert observer.failure == "RuntimeError: can't start new thread, perhaps out of memory"


def test_what_a_library_raises_in_a_single_step_ends_in_one_line_too(monkeypatch, capsys, tmp_path) -> None:
    def fail(*_: object) -> int:
        raise ImportError("libx.so: failed to map segment from shared object")

    monkeypatch.setattr(run_step, "_run_and_save", fail)
    monkeypatch.setattr(run_step, "interrupt_on_sigterm", lambda: None)
    assert run_step.main(["export_model", f"--runs={tmp_path}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    said = "ImportError: libx.so: failed to map segment from shared object, perhaps out of memory"
    assert last == f"error: export_model: {said}"


def test_a_run_removes_what_killed_runs_left_aside_and_nothing_else(tmp_path: Path) -> None:
    killed, saved = tmp_path / "transfer-learning-1", tmp_path / "transfer-learning-2"
    for folder in (killed, saved):
        (folder / "fine-tune" / ".model.x.partial" / "deep").mkdir(parents=True)
        (folder / "fine-tune" / "model").mkdir()
    Run(saved, {}).save()
    run_local.remove_of_killed(tmp_path, "transfer-learning")
    assert [path.name for path in (killed / "fine-tune").iterdir()] == ["model"]
    assert (saved / "fine-tune" / ".model.x.partial").is_dir(), "a saved run is nobody's to tidy"


def test_a_loop_is_read_in_its_order_whatever_the_clock_says(tmp_path: Path) -> None:
    for number in (0, 1, 10):
        folder = tmp_path / f"for-loop-1-iteration-{number}" / "extract-features"
        folder.mkdir(parents=True)
        os.utime(folder, (10**9 - number, 10**9 - number))  # the clock is set back meanwhile
    assert run_local._newest(tmp_path, "extract-features").parent.name == "for-loop-1-iteration-10"
    assert run_local._newest(tmp_path, "train-head") == tmp_path / "train-head"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_more_is_named_in_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The launcher's own log is what meets a disk that has filled up between two steps."""

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_local, "run_pipeline", full)
    assert run_local.main([f"--runs={tmp_path}", f"--store={tmp_path / 'store'}"]) == 1
    assert capsys.readouterr().err == f"error: Cannot write in folder '{tmp_path}': {os.strerror(number)}.\n"
