"""Steps in containers: what they see, and that a crash is never taken for a success. Containers are Podman's."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import dsl, local

import docker
from pipelines import docker_runner, run_local
from pipelines.docker_runner import Place, RunnerError

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "tests" / "images" / "containers.conf"
IMAGE = "localhost/graftflow-test-shell:1"


def values(**changed: object) -> dict[str, object]:
    settings = {"dataset": "closeups", "backbone": "efficientnet_lite0", "weights": "imagenet"}
    return {**settings, "store": "/s", "cache": "/c", **changed}


# What a container sees.


def test_folders_are_written_and_sources_only_read(tmp_path: Path) -> None:
    place = Place(
        (tmp_path / "runs", tmp_path / "runs" / ".cache", tmp_path / "store"), (tmp_path / "pictures",)
    )
    assert {(m["Target"], m["ReadOnly"]) for m in place.mounts()} == {
        (str(tmp_path / "runs"), False),  # with its cache in it
        (str(tmp_path / "store"), False),
        (str(tmp_path / "pictures"), True),
    }


def test_runs_among_the_pictures_can_be_written(tmp_path: Path) -> None:
    place = Place((tmp_path / "pictures" / "runs",), (tmp_path / "pictures", tmp_path / "pictures" / "w.h5"))
    assert [(m["Target"], m["ReadOnly"]) for m in place.mounts()] == [
        (str(tmp_path / "pictures"), True),
        (str(tmp_path / "pictures" / "runs"), False),
    ]


def test_a_folder_that_is_read_and_written_is_written(tmp_path: Path) -> None:
    assert [m["ReadOnly"] for m in Place((tmp_path,), (tmp_path,)).mounts()] == [False]


def test_relative_paths_become_those_that_a_container_sees(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "w.h5").touch()
    monkeypatch.chdir(tmp_path)
    given = values(dataset="directory:photos", weights="w.h5")
    place = docker_runner.read_place(given, tmp_path / "runs")
    assert given["dataset"] == f"directory:{tmp_path}/photos"
    assert given["weights"] == str(tmp_path / "w.h5")
    assert place.sources == (tmp_path / "photos", tmp_path / "w.h5")
    assert place.folders == (tmp_path / "runs", Path("/c"), Path("/s"))


@pytest.mark.parametrize(
    ("changed", "network"),
    [
        ({}, False),
        ({"backbone": "vgg16", "weights": "none"}, False),
        ({"backbone": "vgg16"}, True),
        ({"weights": "https://mirror.example/w.h5"}, True),
        ({"dataset": "tfds:cats_vs_dogs"}, True),
        ({"dataset": "archive:https://mirror.example/pets.zip"}, True),
        ({"store": "gs://bucket/models"}, True),
    ],
)
def test_there_is_a_network_only_where_a_setting_needs_one(changed, network: bool) -> None:
    assert docker_runner.read_place(values(**changed), Path("/runs")).network is network


def test_the_steps_are_told_of_the_run_and_of_nothing_else(tmp_path: Path) -> None:
    environment = {"GRAFTFLOW_RUN_ID": "r1", "AWS_SECRET_ACCESS_KEY": "s", "PATH": "/bin"}
    folders = (tmp_path / "runs", tmp_path / "cache")
    alone = docker_runner.make_runner(Place(folders), "7:7", environment).container_run_args
    assert alone["network_mode"] == "none"
    assert alone["environment"]["GRAFTFLOW_RUN_ID"] == "r1"
    assert not {"AWS_SECRET_ACCESS_KEY", "PATH"} & alone["environment"].keys()
    reaching = docker_runner.make_runner(Place(folders, network=True), "7:7", environment).container_run_args
    assert "network_mode" not in reaching
    assert reaching["environment"]["AWS_SECRET_ACCESS_KEY"] == "s"
    assert all(folder.is_dir() for folder in folders)


# What is said where it cannot be done.


def test_without_a_socket_the_error_says_how_to_start_one(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    code = run_local.main(
        ["--runner=docker", "--image=x:1", f"--runs={tmp_path}/runs", f"--store={tmp_path}/store"]
    )
    assert code == 1
    message = capsys.readouterr().err
    assert message.startswith(
        "error: RUNNER=docker needs the socket of Docker or Podman. Received: DOCKER_HOST=unix://"
    )
    assert "podman system service" in message
    assert message.count("\n") == 1


def test_the_image_is_that_of_the_commit(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="comes from the git commit. Received: "):
        docker_runner.image_of_commit(tmp_path)

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "-m", "One")
    commit = git("rev-parse", "HEAD")[:12]
    assert docker_runner.image_of_commit(tmp_path) == f"graftflow-python-cpu:{commit}"
    (tmp_path / "file").write_text("2")
    assert docker_runner.image_of_commit(tmp_path) == f"graftflow-python-cpu:{commit}-dirty"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"CONTAINER_TOOL": "nerdctl"},
            "CONTAINER_TOOL must be docker, podman or buildah. Received: 'nerdctl'",
        ),
        ({"TARGETS": "tpu"}, "TARGETS must be of cpu, gpu. Received: 'tpu'"),
        ({}, "one of them must work. Received: none that is installed"),
    ],
)
def test_images_are_refused_in_one_line(tmp_path: Path, told: dict[str, str], message: str) -> None:
    for program in ("bash", "git", "sed", "dirname"):  # and no tool that builds
        (tmp_path / program).symlink_to(subprocess.check_output(["which", program], text=True).strip())
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "GIT_CONFIG_COUNT": "1",
                   "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*", **told}  # fmt: skip
    result = subprocess.run(
        ["bash", ROOT / "docker/build.sh"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


# A crash is no success.


@pytest.mark.parametrize(
    ("code", "out_of_memory", "written", "said"),
    [
        (0, False, True, ""),
        (1, False, False, ""),  # it raised, and has printed what
        (0, False, False, "ended without its outputs (executor_output.json is missing)"),
        (137, False, False, "was killed, perhaps out of memory (exit code 137)"),
        (137, True, False, "was killed, out of memory (exit code 137)"),
        (139, False, True, "ended with exit code 139"),
    ],
)
def test_why_a_step_failed(tmp_path: Path, code: int, out_of_memory: bool, written: bool, said: str) -> None:
    outputs = tmp_path / "executor_output.json"
    if written:
        outputs.write_text("{}")
    failure = docker_runner.read_failure(code, out_of_memory, outputs)
    assert failure.endswith(said)
    assert bool(failure) is bool(said)


def test_the_outputs_file_is_read_from_the_steps_command() -> None:
    said = json.dumps({"outputs": {"outputFile": "/runs/r/evaluate/executor_output.json"}})
    command = ["sh", "-c", "…", "--executor_input", said, "--function_to_execute", "evaluate"]
    assert docker_runner.outputs_of(command) == Path("/runs/r/evaluate/executor_output.json")
    assert docker_runner.outputs_of(["true"]) is None


def test_lines_are_whole_however_they_arrive(capsys) -> None:
    docker_runner.print_lines(iter([b"one\ntw", b"o \xc3", b"\xa9\n", b"", b"last"]))
    assert capsys.readouterr().out == "one\ntwo é\nlast\n"


# With a real socket.


@pytest.fixture(scope="module")
def socket(tmp_path_factory) -> Iterator[str]:
    """Podman's socket, with an image that holds this machine's shell and nothing else."""
    folder = tmp_path_factory.mktemp("podman")
    environment = {**os.environ, "CONTAINERS_CONF": str(CONF)}

    def podman(*arguments: str) -> None:
        try:
            subprocess.run(
                ["podman", *arguments],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            )
        except FileNotFoundError:
            pytest.skip("podman is not installed")
        except subprocess.SubprocessError as error:
            pytest.skip(f"podman cannot run containers here: {getattr(error, 'stderr', error)}")

    with tarfile.open(folder / "shell.tar", "w") as tar:
        programs = ["/bin/sh", "/bin/mkdir"]
        told = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout.split()
        for file in {*programs, *(word for word in told if word.startswith("/") and not word.endswith(":"))}:
            tar.add(Path(file).resolve(), arcname=file)
        for name in ("tmp", "proc", "dev", "sys", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
    podman("import", str(folder / "shell.tar"), IMAGE)
    podman("run", "--rm", "--network=none", IMAGE, "/bin/sh", "-c", "exit 0")
    path = folder / "podman.sock"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time=0", f"unix://{path}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            if path.exists() or service.poll() is not None:
                break
            time.sleep(0.1)
        if not path.exists():
            pytest.skip("podman's socket does not come up here")
        yield f"unix://{path}"
    finally:
        service.terminate()
        service.wait(timeout=10)


@pytest.fixture
def docker_host(socket: str, monkeypatch) -> str:
    monkeypatch.setenv("DOCKER_HOST", socket)
    return socket


def run_step(tmp_path: Path, script: str) -> None:
    """Run one step, a shell script, through kfp; raises RuntimeError where kfp takes it for failed."""
    image = docker_runner.identify(IMAGE)

    @dsl.container_component
    def step():
        return dsl.ContainerSpec(
            image=image, command=["/bin/sh", "-c", script, "step"], args=["--executor_input", "{{$}}"]
        )

    @dsl.pipeline(name="one-step")
    def pipeline():
        step()

    runs = tmp_path / "runs"
    runner = docker_runner.make_runner(Place((runs, tmp_path / "cache")), f"{os.getuid()}:{os.getgid()}", {})
    local.init(runner, pipeline_root=str(runs))
    with docker_runner.truthful():
        pipeline()


# What a component does last: a file beside its artifacts, at the path that kfp's JSON names.
OUTPUTS = (
    """file=${2##*'"outputFile": "'}; file=${file%%'"'*}; /bin/mkdir -p "${file%/*}"; echo {} > "$file" """
)


def containers(host: str) -> list[str]:
    client = docker.DockerClient(base_url=host)
    try:
        return [container.name for container in client.containers.list(all=True, ignore_removed=True)
                if IMAGE in str(container.attrs)]  # fmt: skip
    finally:
        client.close()


def test_a_step_that_ends_well_is_a_success(tmp_path: Path, docker_host: str) -> None:
    run_step(tmp_path, f"echo hello; {OUTPUTS}")
    (outputs,) = tmp_path.glob("runs/one-step-*/step/executor_output.json")
    assert outputs.read_text() == "{}\n"
    assert containers(docker_host) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "ended without its outputs (executor_output.json is missing)"),
        ("exit 137", "was killed, perhaps out of memory (exit code 137)"),
        ("exit 3", "ended with exit code 3"),
        ("echo ValueError: no such class; exit 1", "ValueError: no such class"),
    ],
)
def test_a_crash_is_a_failure(tmp_path: Path, docker_host: str, capsys, script: str, said: str) -> None:
    with pytest.raises(RuntimeError, match="finished with status .*FAILURE"):
        run_step(tmp_path, script)
    assert said in capsys.readouterr().out
    assert containers(docker_host) == []


def test_a_step_cannot_write_elsewhere_nor_reach_the_network(
    tmp_path: Path, docker_host: str, capsys
) -> None:
    script = "(echo x > /x); for card in /sys/class/net/*; do echo ${card}; done; echo u > /tmp/x && echo tmp; exit 1"
    with pytest.raises(RuntimeError, match="FAILURE"):
        run_step(tmp_path, script)
    said = capsys.readouterr().out
    assert "Read-only file system" in said
    assert "    tmp\n" in said
    assert [word.strip() for word in said.splitlines() if "/sys/class/net/" in word] in (
        ["/sys/class/net/lo"],
        ["/sys/class/net/*"],
    )


def test_lines_of_one_stream_never_part_those_of_the_other(tmp_path: Path, docker_host: str, capsys) -> None:
    mixed = "printf 'half a ' >&2; echo whole; printf 'line\\n' >&2; i=$((i + 1))"
    with pytest.raises(RuntimeError, match="FAILURE"):
        run_step(tmp_path, f"i=0; while [ $i -lt 100 ]; do {mixed}; done; printf 'no end'; exit 1")
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [said.count(line) for line in ("whole", "half a line", "no end")] == [100, 100, 1]


def test_an_image_that_is_not_here_is_not_looked_for_elsewhere(docker_host: str) -> None:
    with pytest.raises(
        RunnerError, match="The image must be on this machine. Received: 'graftflow-python-cpu:none'"
    ):
        docker_runner.identify("graftflow-python-cpu:none")


def test_an_interrupt_ends_the_container(tmp_path: Path, docker_host: str) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests/pipeline'); import test_docker_runner as t; "
        f"t.run_step(Path({str(tmp_path)!r}), 'echo at work; while :; do :; done')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "at work" in line:
            break
    assert containers(docker_host)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    process.stdout.close()
    assert containers(docker_host) == []
