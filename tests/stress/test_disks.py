"""Full and read-only disks: one clear error, and nothing half-written."""

from pathlib import Path

import pytest

from graftflow import releases
from tests.stress.small_disks import kilobytes_of, small_disk
from tests.stress.step_runs import Ended, SmallRun, check_visible, differences, step_server

WRITERS = (
    "download_data",
    "extract_features",
    "merge_features",
    "train_head",
    "fine_tune",
    "export_model",
    "evaluate",
    "write_report",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory, picture_folder: Path):
    with step_server() as server:
        yield SmallRun(tmp_path_factory.mktemp("disks"), picture_folder, server)


def last_error(ended: Ended) -> str:
    """Return the line that a launcher shows of a failed step; a step that ended well or by a signal fails the test."""
    assert ended.code == 1, (ended.code, ended.log[-2000:])
    return ended.log.strip().splitlines()[-1]


def check_whole(small: SmallRun, step: str, folder: Path, ended: Ended) -> None:
    """Check that a step ended with the artifacts of an undisturbed run."""
    assert ended.code == 0, ended.log[-3000:]
    for path in small.folder_of(step).iterdir():
        assert not differences(path, folder / path.name), path.name


def check_nothing_visible(small: SmallRun, step: str, folder: Path, *, killed: bool = False) -> None:
    """Check that a failed step left whole artifacts or none, and nothing aside unless it was ended like by a kill."""
    check_visible(small.folder_of(step), folder, asides=killed)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("step", WRITERS)
def test_a_full_disk_is_told_and_a_larger_one_is_enough(
    small: SmallRun, step: str, share: float, tmp_path: Path
) -> None:
    small.unbroken(step)
    needed = kilobytes_of(small.folder_of(step))
    with small_disk(tmp_path / "run", min(round(share * needed), needed - 4)) as disk:
        folder = disk.folder / step
        places = {"cache": tmp_path / "cache", "store": tmp_path / "store"}
        error = last_error(small.run(step, folder, **places))
        assert "InputError" in error, error
        assert "space left" in error or "room" in error
        check_nothing_visible(small, step, folder)
        disk.become(f"size={20 * needed + 65536}k")
        check_whole(small, step, folder, small.run(step, folder, **places))


@pytest.mark.parametrize("kilobytes", [4, 24, 1024])
@pytest.mark.parametrize("step", ["download_data", "extract_features", "fine_tune"])
def test_a_full_cache_is_told_or_done_without(
    small: SmallRun, step: str, kilobytes: int, tmp_path: Path
) -> None:
    small.unbroken(step)
    with small_disk(tmp_path / "cache", kilobytes) as disk:
        places = {"cache": disk.folder, "store": tmp_path / "store"}
        ended = small.run(step, tmp_path / step, **places)
        if ended.code:
            error = last_error(ended)
            assert "InputError" in error, error
            assert str(disk.folder) in error
            check_nothing_visible(small, step, tmp_path / step)
            disk.become("size=256m")
            ended = small.run(step, tmp_path / step, **places)
        check_whole(small, step, tmp_path / step, ended)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_full_store_publishes_nothing_and_keeps_its_labels(
    small: SmallRun, share: float, tmp_path: Path
) -> None:
    small.unbroken("deploy_model")
    whole = kilobytes_of(small.folder / "reference" / "store")
    with small_disk(tmp_path / "store", 64 + round(share * whole)) as disk:
        earlier = disk.folder / "tiles" / "3"
        earlier.mkdir(parents=True)
        (earlier / "saved_model.pb").write_bytes(b"graph")
        releases.release(store=str(disk.folder), model_name="tiles", version=3)
        config = (disk.folder / "models.config").read_bytes()
        places = {"cache": tmp_path / "cache", "store": disk.folder}
        error = last_error(small.run("deploy_model", tmp_path / "deploy_model", **places))
        assert "The model store is full" in error, error
        assert (disk.folder / "models.config").read_bytes() == config
        assert not (disk.folder / "tiles" / "7").exists()
        assert not list(disk.folder.rglob(".*.partial*"))
        disk.become("size=256m")
        assert small.run("deploy_model", tmp_path / "deploy_model", **places).code == 0
        rows = releases.list_versions(store=str(disk.folder), model_name="tiles")
        assert [(row.version, row.label) for row in rows] == [(7, "stable"), (3, "")]


@pytest.mark.parametrize("place", ["run", "cache", "store"])
def test_a_disk_that_only_reads_is_told(small: SmallRun, place: str, tmp_path: Path) -> None:
    step = {"run": "train_head", "cache": "extract_features", "store": "deploy_model"}[place]
    small.unbroken(step)
    with small_disk(tmp_path / place, 4096) as disk:
        places = {"cache": tmp_path / "cache", "store": tmp_path / "store"}
        folder = tmp_path / "run" / step
        folder.mkdir(parents=True)  # kfp makes it, so that the step is the first to meet the disk
        before = sorted(disk.folder.rglob("*"))
        disk.become("ro")
        error = last_error(small.run(step, folder, **places))
        told = {
            "run": f"InputError: Cannot write in folder '{folder}': Read-only file system.",
            "cache": f"InputError: cache must be a folder that can be written. Received: '{disk.folder}'.",
            "store": "InputError: store must be writable",
        }
        assert told[place] in error
        assert sorted(disk.folder.rglob("*")) == before
