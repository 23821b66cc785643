"""The steps of a local run in containers of their own, through kfp's DockerRunner: Docker's socket or Podman's.

kfp 2.17.0 tells a step whose container crashed from one that ended well by the container's exit code, but lets the
engine remove the container first, and takes a container that is gone for a success (kubeflow/pipelines#13332).
``truthful`` puts a handler in the place of kfp's that keeps a container until its exit code is known, and that
believes in no success without the file of outputs that every component writes last.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from docker.types import Mount
from kfp import local
from kfp.local import docker_task_handler, status

import docker

ROOT = Path(__file__).resolve().parents[1]
SOCKETS = (Path("/var/run/docker.sock"), Path("/run/podman/podman.sock"))
# What the steps must be told to reach an object store, where they may reach one at all.
_CLOUD = ("AWS_", "FSSPEC_", "GOOGLE_CLOUD_", "http_proxy", "https_proxy", "no_proxy")
_KILLED = 137
_TMP = "/tmp"  # noqa: S108  # nosec B108 # inside the container, its own
# The containers at work, by their ids.
_live: dict[str, Any] = {}
_printing = threading.Lock()


class RunnerError(ValueError):
    """Steps cannot run in containers; the message is one line: rule, received value, choices."""


@dataclass(frozen=True)
class Place:
    """What the containers of one run see of this machine.

    Attributes:
        folders: that the steps write to: the runs', the cache's and the store's, where it is a local one.
        sources: files and folders that they only read: pictures and weights.
        network: whether a setting names something that is not on this machine.
    """

    folders: tuple[Path, ...]
    sources: tuple[Path, ...] = ()
    network: bool = False

    def mounts(self) -> list[Mount]:
        """Return the mounts, each at its own path; what lies inside of another comes with it."""
        read_only = dict.fromkeys(self.sources, True) | dict.fromkeys(self.folders, False)
        return [
            Mount(target=str(path), source=str(path), type="bind", read_only=only)
            for path, only in read_only.items()
            if not any(outer in path.parents and (only or not read_only[outer]) for outer in read_only)
        ]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what a run may be told of containers."""
    parser.add_argument(
        "--runner", choices=("local", "docker"), default="local",
        help="local: the steps are processes here; docker: each has a container (Docker's socket or Podman's)",
    )  # fmt: skip
    parser.add_argument("--image", default="", help="of the steps' containers (default: that of this commit)")
    parser.add_argument(
        "--user",
        default=f"{os.getuid()}:{os.getgid()}",
        help="whom the containers run as (default: %(default)s)",
    )


def image_of_commit(root: Path = ROOT) -> str:
    """Return the name that ``docker/build.sh`` gives the CPU image of the tree as it is.

    Raises:
        RunnerError: where there is no git commit to name it after.
    """

    def git(*arguments: str) -> str:
        # The git of whoever calls, as make itself finds it.
        command = ["git", *arguments]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain") else ""
        return f"graftflow-python-cpu:{git('rev-parse', 'HEAD')[:12]}{dirty}"
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunnerError(
            f"The image's name comes from the git commit. Received: '{root}' without one (pass --image)"
        ) from error


def connect() -> Any:
    """Return a client of Docker's or Podman's socket; kfp looks at ``DOCKER_HOST`` too, which is set here.

    Raises:
        RunnerError: where no socket answers.
    """
    if "DOCKER_HOST" not in os.environ:
        own = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"), "podman", "podman.sock")
        usable = [path for path in (*SOCKETS, own) if os.access(path, os.R_OK | os.W_OK)]
        if usable:
            os.environ["DOCKER_HOST"] = f"unix://{usable[0]}"
    host = os.environ.get("DOCKER_HOST", f"unix://{SOCKETS[0]}")
    client = None
    try:
        if host.startswith("unix://"):
            Path(host.removeprefix("unix://")).stat()
        client = docker.from_env()
        client.ping()
    except (
        Exception
    ) as error:  # a missing socket, a refused connection, a broken address, a server that is none
        if client is not None:
            client.close()
        raise RunnerError(
            f"RUNNER=docker needs the socket of Docker or Podman. Received: DOCKER_HOST={host}, which does not answer "
            "(start one: podman system service --time=0 unix:///tmp/podman.sock, and set "
            "DOCKER_HOST=unix:///tmp/podman.sock)"
        ) from error
    return client


def identify(image: str) -> str:
    """Return ``name@id`` of an image that is here: kfp's cache goes by it, and notices an image built anew.

    Raises:
        RunnerError: where no socket answers, or the image is not here.
    """
    client = connect()
    try:
        return f"{image}@{client.images.get(image).id}"
    except docker.errors.ImageNotFound as error:
        raise RunnerError(
            f"The image must be on this machine. Received: '{image}' (make images builds it; IMAGE=… names another)"
        ) from error
    finally:
        client.close()


def read_place(values: dict[str, Any], runs: Path) -> Place:
    """Return what the containers must see; local paths among the values become absolute.

    Args:
        values: the pipeline's checked parameters; ``dataset`` and ``weights`` may be changed in place.
        runs: absolute folder of the runs.
    """
    from graftflow import archives, backbones, sources

    found, network = [], "://" in values["store"]
    kind, place = sources.parse_source(values["dataset"])
    if kind in ("directory", "archive") and not archives.is_url(place):
        path = Path(place).expanduser().resolve()
        values["dataset"] = f"{kind}:{path}"
        # A table of labels names pictures beside it.
        found.append(path.parent if kind == "directory" and path.is_file() else path)
    network |= kind == "tfds" or archives.is_url(place)
    weights = values["weights"]
    if backbones.is_file(weights):
        found.append(path := Path(weights).expanduser().resolve())
        values["weights"] = str(path)
    network |= "://" in weights
    network |= weights == "imagenet" and backbones.get(values["backbone"]).application is not None
    folders = [runs, Path(values["cache"])]
    if "://" not in values["store"]:
        folders.append(Path(values["store"]))
    return Place(tuple(folders), tuple(found), network)


def make_runner(place: Place, user: str, environment: Mapping[str, str] = os.environ) -> local.DockerRunner:
    """Return kfp's runner: no network unless needed, no right that a step has no use for, a read-only root.

    Args:
        place: what the containers see.
        user: ``uid:gid``; its own files are the only ones that it can write.
        environment: of this process, of which the steps are told what they need.
    """
    owner, _, group = user.partition(":")
    for folder in place.folders:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            if os.getuid() == 0 and owner.isdecimal() and group.isdecimal():
                os.chown(folder, int(owner), int(group))
    told = {
        # An unknown number has no name, which some libraries ask for.
        "USER": "graftflow",
        "LOGNAME": "graftflow",
        "KERAS_HOME": str(place.folders[1] / "keras"),
    }
    if run_id := environment.get("GRAFTFLOW_RUN_ID"):
        told["GRAFTFLOW_RUN_ID"] = run_id
    settings: dict[str, Any] = {"network_mode": "none"}
    if place.network:
        settings = {}
        told |= {name: value for name, value in environment.items() if name.startswith(_CLOUD)}
    return local.DockerRunner(
        user=user,
        mounts=place.mounts(),
        environment=told,
        read_only=True,
        tmpfs={_TMP: "mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        **settings,
    )


class TruthfulHandler(docker_task_handler.DockerTaskHandler):  # type: ignore[misc]
    """Runs a step in a container that is removed by us, once its exit code is known."""

    def run(self) -> status.Status:
        """Run the step; what it prints is printed line by line."""
        client = docker.from_env(timeout=None)
        try:
            code, out_of_memory = self._run_container(client)
        finally:
            client.close()
        failure = read_failure(code, out_of_memory, outputs_of(self.full_command))
        if failure:
            print(failure)
        succeeded = code == 0 and not failure
        return status.Status.SUCCESS if succeeded else status.Status.FAILURE

    def _run_container(self, client: Any) -> tuple[int, bool]:
        container = client.containers.create(
            # name@id, as identify wrote it
            self.image.rpartition("@")[2],
            self.full_command,
            environment=self.env_vars,
            volumes=self.get_volumes_to_mount(client),
            **self.runner.container_run_args,
        )
        _live[container.id] = container
        try:
            container.start()
            # Each stream alone: a line of one may arrive between two pieces of a line of the other.
            streams = [{"stdout": True, "stderr": False}, {"stdout": False, "stderr": True}]
            # Asked by their threads: Podman answers with the first word, and a stream may have none.
            with ThreadPoolExecutor(len(streams)) as pool:
                printed = list(pool.map(lambda one: print_lines(_follow(container, one)), streams))
            code = int(container.wait()["StatusCode"])
            # Podman may end the stream before a container's last words.
            for stream, count in zip(streams, printed, strict=True):
                print_lines(iter([container.logs(**stream)[count:]]))
            container.reload()
            return code, bool(container.attrs["State"].get("OOMKilled"))
        finally:
            end_container(container)

    def get_volumes_to_mount(self, client: Any = None) -> dict[str, Any]:
        """Return no volumes: everything that a step sees is among the runner's mounts."""
        return {}


def print_lines(chunks: Iterator[bytes]) -> int:
    """Print what arrives in pieces of any length as whole lines; returns the number of bytes. Threads may call it."""
    rest, count = b"", 0
    for chunk in chunks:
        count += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _print(line)
    if rest:
        _print(rest)
    return count


def _follow(container: Any, stream: Mapping[str, bool]) -> Iterator[bytes]:
    with contextlib.suppress(docker.errors.NotFound):  # an interrupt has removed it
        yield from container.logs(stream=True, follow=True, **stream)


def _print(line: bytes) -> None:
    with _printing:
        print(line.decode(errors="replace"))


def outputs_of(command: Sequence[str]) -> Path | None:
    """Return the file of outputs that a component writes when it has ended, read from its command.

    Returns:
        The path, or None for a command that is no Python component's.
    """
    for flag, value in itertools.pairwise(command):
        if flag == "--executor_input":
            return Path(json.loads(value)["outputs"]["outputFile"])
    return None


def read_failure(code: int, out_of_memory: bool, outputs: Path | None) -> str:
    """Return why a step whose container ended has failed; empty for a success, or where it said so itself.

    Args:
        code: exit code of the container.
        out_of_memory: whether the engine says so.
        outputs: file that the step must have written.
    """
    if out_of_memory:
        return f"ContainerError: the step was killed, out of memory (exit code {code})"
    if code == _KILLED:
        return f"ContainerError: the step was killed, perhaps out of memory (exit code {code})"
    if code not in (0, 1):  # with 1 ends a step that raised, and it has printed that
        return f"ContainerError: the step ended with exit code {code}"
    if code == 0 and outputs is not None and not outputs.is_file():
        return f"ContainerError: the step ended without its outputs ({outputs.name} is missing)"
    return ""


def end_container(container: Any) -> None:
    """Remove a container; it is killed if it still runs."""
    _live.pop(container.id, None)
    with contextlib.suppress(docker.errors.NotFound):
        container.remove(force=True)


@contextlib.contextmanager
def truthful() -> Iterator[None]:
    """Have kfp's DockerRunner tell a crashed step from one that ended well, for as long as this is entered.

    A signal that interrupts the run ends its containers first: they are no children of this process.
    """
    original = docker_task_handler.DockerTaskHandler
    docker_task_handler.DockerTaskHandler = TruthfulHandler
    before = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        for container in list(_live.values()):
            end_container(container)
        then = before[number]
        if callable(then):
            then(number, frame)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, then in before.items():
            signal.signal(number, then)
        docker_task_handler.DockerTaskHandler = original
