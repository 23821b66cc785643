"""Limits of memory, open files and their sizes, and disks that fill in a run: one clear error, nothing half-written."""

import io
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftflow import releases
from pipelines import run_index
from pipelines.console import RunConsole
from pipelines.run_local import Observer
from pipelines.step_processes import how_it_ended
from tests.stress.small_disks import kilobytes_of, small_disk
from tests.stress.step_runs import ROOT, VALUES, Ended, SmallRun, differences, step_server

MIB = 2**20
SMALL = {
    "fine_tune_epochs": 1,
    "fine_tune_views": 1,
    "attack_steps": 1,
    "attack_pictures": 2,
    "ideal_steps": 1,
}
# How graftflow, Python, NumPy, OpenBLAS and TensorFlow say that memory has ended.
MEMORY = re.compile(r"[Mm]emory|Unable to allocate|OOM when allocating")
# Seconds for what a step does in a few, on a machine with much else to do; OpenBLAS would ask for memory for ever.
PATIENCE = 600


@pytest.fixture(scope="module")
def small(tmp_path_factory, picture_folder: Path):
    with step_server() as server:
        run = SmallRun(tmp_path_factory.mktemp("limits"), picture_folder, server)
        run.values.update(SMALL)
        yield run


def told(step: str, ended: Ended) -> str:
    """Return what a run tells of a step that failed: by its log, and by the signal that ended it."""
    assert ended.code != 0
    assert ended.seconds < PATIENCE, f"{step} did not end:\n{ended.log[-2000:]}"
    run = run_index.Run(Path(), {})
    nothing = {"locate": lambda: None, "cache": Path(), "log": io.StringIO()}
    observer = Observer(run, **nothing, console=RunConsole(io.StringIO()))
    ending = [f"ProcessError: the step {how_it_ended(ended.code)}"] if ended.code < 0 else []
    task = step.replace("_", "-")
    for line in [
        f"Executing task '{task}'",
        *ended.log.splitlines(),
        *ending,
        f"Task '{task}' finished with status FAILURE",
    ]:
        observer.line(line)
    return observer.failure


def check_nothing_visible(small: SmallRun, step: str, folder: Path) -> None:
    """Check that of a failed step there are whole artifacts or none; what a signal left aside is nobody's."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (path.name.startswith(".") and ".partial" in path.name):
            assert not differences(small.folder_of(step) / path.name, path), path.name


def check_whole(small: SmallRun, step: str, folder: Path, ended: Ended) -> None:
    """Check that a step ended with the artifacts of an undisturbed run."""
    assert ended.code == 0, ended.log[-3000:]
    for path in small.folder_of(step).iterdir():
        assert not differences(path, folder / path.name), path.name


@pytest.mark.parametrize(
    "step",
    [
        "download_data",
        "extract_features",
        "train_head",
        "fine_tune",
        "export_model",
        "generate_adversarial",
        "visualise_model",
    ],
)
def test_memory_that_ends_is_told_and_more_is_enough(small: SmallRun, step: str, tmp_path: Path) -> None:
    """From hopeless to nearly enough, of address space, as ``ulimit -v`` has it; beyond what the process began with.

    With 1 MiB Python itself may wait for ever for a thread that found no memory to begin with.
    """
    small.unbroken(step)
    places = {"cache": tmp_path / "cache", "store": tmp_path / "store"}
    met = 0
    for mebibytes in (64, 150, 300, 600):
        limits = {"RLIMIT_AS": mebibytes * MIB}
        ended = small.run(step, tmp_path / step, limits=limits, kill_after=PATIENCE, **places)
        if ended.code == 0:  # it was enough
            check_whole(small, step, tmp_path / step, ended)
            break
        met += 1
        said = told(step, ended)
        assert MEMORY.search(said), (mebibytes, said, ended.log[-2000:])
        print(f"{step} with {mebibytes} MiB: {said[:150]}")
        check_nothing_visible(small, step, tmp_path / step)
    assert met
    shutil.rmtree(tmp_path / step)
    check_whole(small, step, tmp_path / step, small.run(step, tmp_path / step, **places))


@pytest.mark.parametrize(
    ("step", "limits", "words"),
    [
        ("train_head", {"RLIMIT_FSIZE": 1000}, "File too large"),
        ("fine_tune", {"RLIMIT_FSIZE": 2 * MIB}, "File too large"),
        ("export_model", {"RLIMIT_FSIZE": 5 * MIB}, "File too large"),
        ("train_head", {"RLIMIT_NOFILE": 4}, "Too many open files"),
        ("extract_features", {"RLIMIT_NOFILE": 4}, "Too many open files"),
    ],
    ids=str,
)
def test_a_limit_of_files_is_told_and_a_higher_one_is_enough(
    small: SmallRun, step: str, limits: dict[str, int], words: str, tmp_path: Path
) -> None:
    small.unbroken(step)
    places = {"cache": tmp_path / "cache", "store": tmp_path / "store"}
    ended = small.run(step, tmp_path / step, limits=limits, kill_after=PATIENCE, **places)
    said = told(step, ended)
    assert words in said
    check_nothing_visible(small, step, tmp_path / step)
    check_whole(small, step, tmp_path / step, small.run(step, tmp_path / step, **places))


@pytest.mark.parametrize("share", [0.05, 0.95])
@pytest.mark.parametrize("step", ["generate_adversarial", "visualise_model", "deploy_model"])
def test_a_full_disk_is_told_by_the_steps_that_write_pictures_and_by_the_last(
    small: SmallRun, step: str, share: float, tmp_path: Path
) -> None:
    """A version that was published before its ``deployment`` had room is there already, the next time."""
    small.unbroken(step)
    needed = kilobytes_of(small.folder_of(step))
    with small_disk(tmp_path / "run", min(round(share * needed), needed - 4)) as disk:
        folder = disk.folder / step
        places = {"cache": tmp_path / "cache", "store": tmp_path / "store"}
        ended = small.run(step, folder, **places)
        assert ended.code == 1, ended.log[-2000:]
        said = told(step, ended)
        assert re.search("space left|room", said), said
        assert "InputError" in ended.log.strip().splitlines()[-1]
        check_nothing_visible(small, step, folder)
        assert not list(folder.glob(".*.partial"))
        disk.become(f"size={20 * needed + 65536}k")
        check_whole(small, step, folder, small.run(step, folder, **places))
    if step == "deploy_model":
        (row,) = releases.list_versions(store=str(tmp_path / "store"), model_name="tiles")
        assert (row.version, row.label) == (7, "stable")


class Launched:
    """Runs of one folder, cache and store, each started as ``make run`` or a step's target starts it.

    Attributes:
        unbroken: folder of the first run, which met no limit.
    """

    unbroken: Path

    def __init__(self, place: Path, pictures: Path) -> None:
        self.place = place
        self._flags = {**VALUES, **SMALL, "dataset": f"directory:{pictures}"}
        self._flags |= {name: place / name for name in ("runs", "cache", "store")}

    def __call__(
        self, *what: str, limits: dict[str, int] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a module with its arguments, under limits."""
        flags = {**self._flags, **more}

        def limit() -> None:
            for name, most in (limits or {}).items():
                resource.setrlimit(getattr(resource, name), (most, most))

        return subprocess.run(
            [
                sys.executable,
                "-m",
                *what,
                *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()),
            ],
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
            preexec_fn=limit,
            capture_output=True,
            text=True,
            timeout=2400,
        )


@pytest.fixture(scope="module")
def launched(tmp_path_factory, picture_folder: Path) -> Launched:
    """A run that has gone well."""
    launched = Launched(tmp_path_factory.mktemp("launched"), picture_folder)
    ended = launched("pipelines.run_local")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    launched.unbroken = (launched.place / "runs" / "latest").resolve()
    return launched


def test_a_run_whose_memory_ends_says_so_in_its_last_line(launched: Launched) -> None:
    """``ulimit -v`` of the launcher and all it starts; the earlier steps come from the cache."""
    ends = []
    for number, gibibytes in enumerate((0.25, 1, 1.75, 2.25, 3)):
        before = set((launched.place / "runs").iterdir())
        limits = {"RLIMIT_AS": int(gibibytes * 2**30)}
        ended = launched("pipelines.run_local", limits=limits, version=20 + number)
        ends.append(ended.returncode)
        if ended.returncode == 0:
            break
        last = ended.stderr.strip().splitlines()[-1]
        print(f"{gibibytes} GiB: {last}")
        # With the least of it the launcher itself may end, before a step does or before it is loaded.
        assert last.startswith("error: ") or number == 0, last
        assert MEMORY.search(last) or (number == 0 and "failed to map segment" in last), last
        failed = last.split(": ")[1].replace("_", "-")
        for run in set((launched.place / "runs").iterdir()) - before:
            assert not [path for path in run.glob(f"{failed}/*") if path.is_dir()], run
            assert not list(run.rglob(".*.partial*")), run
    assert any(ends)
    ended = launched("pipelines.run_local", version=30)
    assert ended.returncode == 0, ended.stderr
    rows = releases.list_versions(store=str(launched.place / "store"), model_name="tiles")
    assert (rows[0].version, rows[0].label) == (30, "stable")
    latest = run_index.load(launched.place / "runs" / "latest")
    assert latest.steps["fine_tune"].status == "cached"


def test_a_single_step_that_meets_a_limit_says_so_in_its_last_line(launched: Launched) -> None:
    before = {path.name for path in (launched.place / "runs").iterdir()}
    for limits, words in (
        ({"RLIMIT_FSIZE": MIB}, "File too large"),
        ({"RLIMIT_AS": int(1.25 * 2**30)}, "emory"),
    ):
        ended = launched("pipelines.run_step", "export_model", limits=limits, run=launched.unbroken)
        assert ended.returncode == 1, ended.stderr[-2000:]
        last = ended.stderr.strip().splitlines()[-1]
        assert last.startswith("error: export_model: "), last
        assert words in last, last
        assert {path.name for path in (launched.place / "runs").iterdir()} == before


@pytest.mark.parametrize("kilobytes", [8, 200, 6000])
def test_a_run_whose_disk_fills_says_so_and_goes_on_with_more(
    launched: Launched, kilobytes: int, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "runs", kilobytes) as disk:
        places = {"runs": disk.folder, "store": tmp_path / "store"}
        ended = launched("pipelines.run_local", **places)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        last = ended.stderr.strip().splitlines()[-1]
        print(f"{kilobytes} KiB: {last}")
        assert last.startswith("error: "), last
        assert re.search("space left|room", last), last
        assert "Traceback" not in ended.stderr
        assert not list(disk.folder.rglob(".*.partial*"))
        disk.become("size=512m")
        ended = launched("pipelines.run_local", **places)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        latest = run_index.load(disk.folder / "latest")
        assert latest.status == "succeeded"
        kept = kilobytes == 6000  # then it was fine_tune that had no room
        assert latest.steps["train_head"].status == ("cached" if kept else "done")
        reference = run_index.load(launched.unbroken)
        for name in ("dataset", "head", "model", "evaluation"):
            pair = [Path(run.artifact(name)["uri"]) for run in (reference, latest)]
            assert not differences(*pair), name
