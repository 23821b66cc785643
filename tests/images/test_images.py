"""The images, built here without a registry, and every step of the pipeline run inside them: ``make test-images``.

What pip needs on this machine (certificates, its configuration) is mounted while it builds, and is in no image.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import run_index
from pipelines.settings import STEPS

pytestmark = pytest.mark.skipif(
    os.environ.get("GRAFTFLOW_TEST_IMAGES") != "1",
    reason="images take minutes and gigabytes to build: make test-images",
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BASE = "localhost/graftflow-test-base:bookworm"
TARGETS = os.environ.get("TARGETS", "cpu").replace(",", " ").split()
USER = "65532:65532"
MOUNTED = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
SMALL = {
    "validation-fraction": 0.25,
    "test-fraction": 0.25,
    "fine-tune-blocks": 1,
    "fine-tune-epochs": 1,
    "min-accuracy": 0.3,
    "version": 7,
    "epsilons": "4/255",
    "attack-steps": 1,
    "attack-pictures": 2,
    "ideal-classes": "zebra",
    "ideal-steps": 1,
}
ENVIRONMENT = {**os.environ, "CONTAINERS_CONF": str(HERE / "containers.conf")}


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman; where it must succeed and does not, its own words are the failure's."""
    result = subprocess.run(
        ["podman", *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def inside(image: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a step is run: no network, a root that nobody can write."""
    return podman(
        "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", image, *command, check=False
    )


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """The name of the built image of each target."""
    # Whoever asked for these tests wants the images tested: what keeps them from it is a failure, not a reason to skip.
    assert os.getuid() == 0, "debootstrap and podman's store are root's here: run it as root"
    made = subprocess.run([HERE / "base.sh", BASE], env=ENVIRONMENT, capture_output=True, text=True)
    assert made.returncode == 0, f"no base image could be made: {made.stderr[-2000:]}"
    flags = ["--network=host", *(f"--volume={p}:{p}:ro" for p in MOUNTED if Path(p).is_file())]
    told = {"CONTAINER_TOOL": "podman", "BASE_IMAGE": BASE, "TARGETS": " ".join(TARGETS)}
    built = subprocess.run(
        [ROOT / "docker" / "build.sh"],
        env={**ENVIRONMENT, **told, "BUILD_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    listed = built.stdout.strip().splitlines()[-len(TARGETS) :]
    print("\n".join(listed))
    return dict(zip(TARGETS, (line.split()[0] for line in listed), strict=True))


@pytest.fixture(scope="module")
def socket(images, tmp_path_factory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("podman") / "podman.sock"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time=0", f"unix://{path}"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not path.exists():
        assert service.poll() is None
        time.sleep(0.1)
    yield f"unix://{path}"
    service.terminate()
    service.wait(timeout=10)


def whole_run(place: Path, pictures: Path, name: str, *flags: str, **environment: str) -> run_index.Run:
    """Run the whole pipeline and return its run."""
    settings = {
        **SMALL,
        "dataset": f"directory:{pictures}",
        "runs": place / name,
        "store": place / f"{name}-store",
    }
    result = subprocess.run(
        [sys.executable, "-m", "pipelines.run_local", *(f"--{k}={v}" for k, v in settings.items()), *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return run_index.load(place / name / "latest")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder that the images' user may enter: pytest's own are their owner's alone."""
    place = tmp_path_factory.mktemp("images")
    for folder in (place, *list(place.parents)[:2]):
        folder.chmod(0o755)
    return place


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_has_a_fixed_user_and_no_build_tools(images, target: str) -> None:
    code = (
        "import os, shutil; from importlib.util import find_spec; "
        "print(os.getuid(), os.getgid(), [x for x in ('pip', 'pip3', 'gcc', 'cc', 'g++', 'make', 'ld') "
        "if shutil.which(x)], find_spec('pip'), os.environ['GRAFTFLOW_IMAGE'], os.environ['GRAFTFLOW_COMMIT'])"
    )
    uid, gid, tools, pip, image, commit = inside(images[target], "python3", "-c", code).stdout.split()
    assert (uid, gid, tools, pip) == ("65532", "65532", "[]", "None")
    assert image == images[target]
    assert commit[:12] == image.partition(":")[2][:12]
    labels = json.loads(podman("image", "inspect", images[target]).stdout)[0]["Labels"]
    assert labels["org.opencontainers.image.revision"] == commit
    assert labels["org.opencontainers.image.base.name"] == BASE


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_tmp_can_be_written(images, target: str) -> None:
    for path in ("/x", "/opt/venv/x", "/etc/x", "/usr/lib/x"):
        refused = inside(images[target], "python3", "-c", f"open('{path}', 'w')")
        assert refused.returncode == 1
        assert "Read-only file system" in refused.stderr or "Permission denied" in refused.stderr
    assert inside(images[target], "python3", "-c", "open('/tmp/x', 'w')").returncode == 0


@pytest.mark.parametrize("target", TARGETS)
def test_what_pip_was_told_is_not_in_the_image(images, target: str) -> None:
    code = (
        "import os; print(os.path.exists('/etc/pip.conf') and os.path.getsize('/etc/pip.conf'), "
        "os.path.exists('/opt/pip'), os.path.exists('/build'))"
    )
    configuration, pip, build = inside(images[target], "python3", "-c", code).stdout.split()
    assert configuration in ("False", "0")  # an empty file may be what a mount was made on
    assert (pip, build) == ("False", "False")


@pytest.mark.parametrize("target", TARGETS)
def test_every_step_in_its_container_finds_what_a_run_without_containers_finds(
    images, socket: str, place: Path, picture_folder: Path, target: str
) -> None:
    subprocess.run(["cp", "-r", picture_folder, place / f"pictures-{target}"], check=True)
    pictures = place / f"pictures-{target}"
    subprocess.run(["chmod", "-R", "a+rX", pictures], check=True)
    contained = whole_run(
        place, pictures, f"in-{target}", "--runner=docker", f"--image={images[target]}", f"--user={USER}",
        DOCKER_HOST=socket, CONTAINERS_CONF=ENVIRONMENT["CONTAINERS_CONF"],
    )  # fmt: skip
    plain = whole_run(place, pictures, f"plain-{target}")
    assert contained.status == plain.status == "succeeded"
    assert set(STEPS) <= set(contained.steps) | {"merge_features"}
    owners = {path.stat().st_uid for path in contained.folder.rglob("*/executor_output.json")}
    assert owners == {65532}
    for artifact, file, names in (
        ("evaluate", "evaluation.json", ("metrics", "confusion", "per_class", "mistakes")),
        ("generate_adversarial", "adversarial.json", ("clean_accuracy", "worst_case", "attacks")),
    ):
        one, other = (
            json.loads(next((run.folder / artifact.replace("_", "-")).rglob(file)).read_text())
            for run in (contained, plain)
        )
        for name in names:
            assert_equal(one[name], other[name], f"{file}: {name}")


def assert_equal(one: object, other: object, where: str) -> None:
    """Numbers to six digits, everything else exactly."""
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6), where
    else:
        assert one == other, where
