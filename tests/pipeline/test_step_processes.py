"""Steps are forks of one process: what that keeps apart, what it saves, and how such a process ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines import fork_server
from pipelines.settings import STEPS
from pipelines.step_processes import WITHOUT_TENSORFLOW, StepProcesses, _as_kfp_does

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere steps are not forked")
Step = Callable[..., tuple[int, list[str]]]


def command(step: str, body: str, folder: Path) -> list[str]:
    """What kfp makes of a component of this name, which has this body."""
    source = f"def {step}():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    told = json.dumps({"inputs": {}, "outputs": {"outputFile": str(folder / "output.json")}})
    script = (
        f'printf "%s" "$0" > {folder}/kfp.py\n'
        f'_KFP_RUNTIME=true {sys.executable} -m kfp.dsl.executor_main --component_module_path {folder}/kfp.py "$@"'
    )
    return ["sh", "-ec", script, source, "--executor_input", told, "--function_to_execute", step]


@pytest.fixture
def processes() -> Iterator[StepProcesses]:
    running = StepProcesses()
    yield running
    running.close()


@pytest.fixture
def step(processes: StepProcesses, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Step:
    """Runs a step without TensorFlow, or of another name with it; returns its exit code and what it said."""

    def run(body: str, name: str = "check_settings", **variables: str) -> tuple[int, list[str]]:
        code = processes.run(command(name, body, tmp_path), variables or None)
        lines = capsys.readouterr().out.splitlines()
        return code, [line.removeprefix("said ") for line in lines if line.startswith("said ")] or lines

    return run


def test_a_step_is_a_process_of_its_own(step: Step, processes: StepProcesses) -> None:
    """What one leaves in its memory or its environment, the next does not find."""
    body = """\
import os, json
seen = [hasattr(json, "left"), os.environ.get("LEFT"), os.environ.get("GIVEN"), os.getpid(), os.getppid()]
json.left = os.environ["LEFT"] = "behind"
print("said " + json.dumps(seen))"""
    (_, (first,)), (_, (second,)) = step(body, GIVEN="1"), step(body)
    *seen, pid, parent = json.loads(first)
    assert seen == [False, None, "1"]
    *seen, other, same = json.loads(second)
    assert seen == [False, None, None]
    assert pid != other
    assert parent == same == processes._server.pid
    assert not psutil.pid_exists(pid)


def test_a_step_finds_what_a_new_interpreter_would_find(step: Step, tmp_path: Path, capsys) -> None:
    """Search path, arguments, folder, encoding, signals: the same in a fork as kfp starts it."""
    body = """\
import os, signal, sys
print("said " + repr([
    sys.path[1:], sys.argv[3:], os.getcwd(), sys.stdout.encoding, __name__,
    signal.getsignal(signal.SIGINT).__name__, signal.getsignal(signal.SIGTERM),
]))"""
    _, forked = step(body)
    assert _as_kfp_does(command("check_settings", body, tmp_path)) == 0
    as_kfp = [line.removeprefix("said ") for line in capsys.readouterr().out.splitlines() if "said" in line]
    assert [line.replace("ephemeral_component", "kfp") for line in forked] == as_kfp


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('no')", 1),
        ("raise ValueError('no')", 1),
        ("raise KeyboardInterrupt", 130),
        ("import os; os.abort()", 128 + signal.SIGABRT),
        ("import os; os._exit(3)", 3),
    ],
)
def test_a_step_ends_with_its_code(step: Step, body: str, code: int) -> None:
    assert step(body)[0] == code


def test_an_error_is_the_last_line_of_the_log(step: Step) -> None:
    _, log = step("raise ValueError('what is wrong')")
    assert [line for line in log if line][-1] == "ValueError: what is wrong"
    assert any(line.startswith("Traceback") for line in log)


def test_what_a_step_has_begun_is_finished_at_its_end(step: Step, tmp_path: Path) -> None:
    """The interpreter is not taken apart, but threads are waited for, exit functions run, and streams flushed."""
    body = f"""\
import atexit, sys, threading, time
def late():
    time.sleep(0.3)
    open({str(tmp_path / "thread")!r}, "w").write("done")
threading.Thread(target=late).start()
atexit.register(lambda: open({str(tmp_path / "atexit")!r}, "w").write("done"))
atexit.register(sys.stdout.write, "said no line's end")"""
    assert step(body) == (0, ["no line's end"])
    assert (tmp_path / "thread").read_text() == (tmp_path / "atexit").read_text() == "done"


def test_bytes_that_are_no_text_do_not_break_the_log(step: Step) -> None:
    code, log = step("import sys; sys.stdout.buffer.write(b'said \\xff\\xfe bytes\\n')")
    assert (code, log) == (0, ["\ufffd\ufffd bytes"])


def test_other_commands_run_as_kfp_runs_them(processes: StepProcesses, capsys) -> None:
    assert processes.run(["sh", "-ec", 'echo "said $0"; exit 3', "by the shell"]) == 3
    assert "said by the shell" in capsys.readouterr().out


def test_after_the_forking_process_was_killed_the_next_step_runs(
    step: Step, processes: StepProcesses
) -> None:
    assert step("print('said hello')") == (0, ["hello"])
    body = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    code, log = step(body)
    assert code == 1
    said = "ProcessError: the process that starts the steps was ended by SIGKILL, perhaps out of memory"
    assert [line for line in log if line][-1] == said
    assert step("print('said again')") == (0, ["again"])


def test_nothing_is_left_behind(step: Step, processes: StepProcesses) -> None:
    """No process, and no file: kfp's own way leaves each step's code in the folder of temporary files."""
    before = set(psutil.Process().children(recursive=True))
    _, (file,) = step("import sys; print('said', sys._getframe().f_code.co_filename)")
    assert set(psutil.Process().children(recursive=True)) - before
    assert not Path(file).parent.exists()
    processes.close()
    assert set(psutil.Process().children(recursive=True)) == before


def test_tensorflow_computes_in_a_fork_as_in_a_new_interpreter(
    step: Step, processes: StepProcesses, tmp_path: Path, capsys
) -> None:
    """Bit by bit; and the process that forks has none of its threads, which a fork of it would wait for for ever."""
    body = """\
import hashlib, keras, tensorflow as tf
keras.utils.set_random_seed(3)
model = keras.Sequential([keras.layers.Conv2D(8, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
pixels = tf.random.stateless_uniform((16, 32, 32, 3), (1, 2))
model.fit(pixels, tf.range(16) % 2, epochs=2, batch_size=4, verbose=0)
print("said " + hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest())"""
    first, threads = step(body, "fine_tune"), psutil.Process(processes._server.pid).num_threads()
    assert first[0] == 0, first[1]
    assert step(body, "fine_tune") == first
    assert psutil.Process(processes._server.pid).num_threads() == threads
    looks = """\
from pipelines import fork_server
import tensorflow
print("said", fork_server.has_runtime(), tensorflow.ones(1).shape, fork_server.has_runtime())"""
    assert step(looks, "fine_tune") == (0, ["False (1,) True"])
    assert _as_kfp_does(command("fine_tune", body, tmp_path)) == 0
    assert f"said {first[1][0]}" in capsys.readouterr().out


def test_the_steps_that_do_without_tensorflow_are_steps() -> None:
    assert set(STEPS) >= WITHOUT_TENSORFLOW - {"check_comparison"}


def test_a_step_ends_where_the_kernel_gives_no_handle_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise PermissionError("forbidden in a sandbox")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"]) as child:
        assert fork_server.end_of(child.pid, ours) == 5
