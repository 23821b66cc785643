"""Every step killed with SIGKILL at random moments and run again: the artifact of an unbroken run, never half of one.

``GRAFTFLOW_SEED`` repeats the moments of a run that failed; ``GRAFTFLOW_KILLS`` sets how many a step there are.
"""

import os
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from graftflow import releases
from graftflow.feature_cache import FeatureCache
from pipelines.settings import STEPS
from tests.stress.step_runs import Ended, SmallRun, differences, step_server

KILLS = int(os.environ.get("GRAFTFLOW_KILLS", "10"))
SEED = int(os.environ.get("GRAFTFLOW_SEED", random.SystemRandom().randrange(10**6)))

# Steps that take over what a killed one has done, or that change what outlives a run.
RESUMED = ("download_data", "extract_features", "fine_tune", "deploy_model")


@pytest.fixture(scope="module")
def small(tmp_path_factory, picture_folder: Path):
    print(f"\nGRAFTFLOW_SEED={SEED} repeats these kills")
    with step_server() as server:
        yield SmallRun(tmp_path_factory.mktemp("kills"), picture_folder, server)


class Trial:
    """One kill of a step and the run after it, with a cache and a store of their own.

    Args:
        small: the run.
        step: the step.
        folder: empty; for the artifacts, the cache and the store of this trial.
    """

    def __init__(self, small: SmallRun, step: str, folder: Path) -> None:
        self.small, self.step, self.folder = small, step, folder
        self.cache, self.store, self.artifacts = folder / "cache", folder / "store", folder / step
        self.name = small.values["model_name"]

    def run(self, kill_after: float | None = None, **more: object) -> Ended:
        """Run the step, killed after some seconds where these are given."""
        places = {"cache": self.cache, "store": self.store}
        return self.small.run(self.step, self.artifacts, kill_after=kill_after, **places, **more)

    def check_visible(self) -> None:
        """Check that what can be seen now is whole: artifacts are absent or as in the unbroken run."""
        expected = self.small.folder_of(self.step)
        for path in self.artifacts.iterdir() if self.artifacts.is_dir() else ():
            if not (path.name.startswith(".") and ".partial" in path.name):
                assert not differences(expected / path.name, path), path.name
        for model in self.store.glob("[!.]*/"):
            for version in model.glob("[!.]*"):
                known = self.small.folder / "reference" / "store" / model.name / version.name
                assert not differences(known, version), version
        if self.store.exists():
            self.served()

    def served(self) -> list[tuple[int, str]]:
        """Return the store's versions and labels; a store that cannot be read fails the test."""
        if not list(self.store.glob("[!.]*")):
            return []  # nothing was published
        rows = releases.list_versions(store=str(self.store), model_name=self.name)
        assert all("not in the store" not in row.note for row in rows if row.label)
        return [(row.version, row.label) for row in rows]

    def rows_kept(self) -> int:
        """Return for how many pictures the cache holds features."""
        return sum(len(FeatureCache(folder, width=1280)) for folder in self.cache.glob("features/*/"))

    def pictures_kept(self) -> int:
        """Return how many pictures the journal of a conversion holds."""
        journals = list(self.cache.glob("conversions/*/journal"))
        return sum(journal.read_bytes().count(b"\n") for journal in journals)

    def epochs_kept(self) -> int:
        """Return how many epochs of fine-tuning the checkpoint holds."""
        kept = sorted(self.cache.glob("checkpoints/*/checkpoint.npz*"))
        if not kept:
            return 0
        with np.load(kept[0]) as arrays:  # the last one, or where a kill has met its renaming, the one before
            return arrays["history"].tobytes().count(b'"epoch"')


def check_resumed(trial: Trial, kept: dict[str, int], again: Ended) -> None:
    """Check that the run after a kill took over what had been kept, and did only the rest."""
    if trial.step == "download_data":
        told = re.search(r"(\d+) pictures were looked at by an earlier run", again.log)
        assert (int(told[1]) if told else 0) == kept["pictures"]
    if trial.step == "extract_features":
        assert again.told["metadata"]["feature_shard"]["cached"] == kept["rows"]
    if trial.step == "fine_tune":
        trained = {int(n) for n in re.findall(r"fine-tuning, epoch (\d+) of", again.log)}
        epochs = trial.small.values["fine_tune_epochs"]
        assert trained == set(range(kept["epochs"] + 1, epochs + 1))
    if trial.step == "deploy_model":
        assert trial.served() == [(7, "stable")]


def check_again(trial: Trial) -> None:
    """Run the step once more, and check its artifacts, what it resumed and what it left."""
    kept = {"pictures": trial.pictures_kept(), "rows": trial.rows_kept(), "epochs": trial.epochs_kept()}
    again = trial.run()
    assert again.code == 0, again.log[-3000:]
    expected = trial.small.folder_of(trial.step)
    for path in expected.iterdir():
        assert not differences(path, trial.artifacts / path.name), path.name
    assert again.told["returned"] == trial.small.reference[trial.step].told["returned"]
    check_resumed(trial, kept, again)
    assert not list(trial.store.rglob(".*.partial*"))
    assert not list(trial.cache.glob("conversions/*")) + list(trial.cache.glob("checkpoints/*"))


@pytest.mark.parametrize("step", STEPS)
def test_a_step_killed_at_any_moment_runs_again_as_if_nothing_had_been(
    small: SmallRun, step: str, tmp_path: Path
) -> None:
    """A step that resumes runs again after each kill; one that begins anew is killed again, and runs after the last."""
    duration = small.unbroken(step).seconds
    moments = random.Random(f"{SEED} {step}")
    killed = ended = 0
    trial = Trial(small, step, tmp_path / "trial")
    while killed < KILLS and ended < KILLS:
        broken = trial.run(moments.uniform(0.0, duration))
        assert broken.code in (0, -9), broken.log[-3000:]
        killed, ended = killed + (broken.code != 0), ended + (broken.code == 0)
        if broken.code == 0:
            duration = min(duration, broken.seconds)
        trial.check_visible()
        if step in RESUMED:
            check_again(trial)
            shutil.rmtree(trial.folder)
    if step not in RESUMED:
        check_again(trial)
    assert killed >= KILLS // 2, f"{step} ends before a kill reaches it"


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_step_killed_while_it_publishes_leaves_nothing_half_published(
    small: SmallRun, step: str, tmp_path: Path
) -> None:
    """Random moments seldom fall between two renames; these do: just before each of a step's last changes of names."""
    total = small.unbroken(step).told["changes"]
    trial = Trial(small, step, tmp_path / "trial")
    for last in (1, 0):
        assert trial.run(die_at=total - last).code == -9
        trial.check_visible()
        if step in RESUMED:
            check_again(trial)
            shutil.rmtree(trial.folder)
    if step not in RESUMED:
        check_again(trial)


def test_no_process_of_a_killed_step_lives_on(small: SmallRun, tmp_path: Path) -> None:
    small.unbroken("evaluate")
    trial = Trial(small, "deploy_model", tmp_path)
    assert trial.run(3.0).code == -9  # the model server is importing TensorFlow then
    deadline = time.monotonic() + 10
    while servers := [p for p in psutil.process_iter(["cmdline"]) if _serves_for(p, small.pid)]:
        assert time.monotonic() < deadline, servers
        time.sleep(0.1)


def _serves_for(process: psutil.Process, pid: int) -> bool:
    words = process.info["cmdline"] or []
    return "graftflow.server_processes" in words and str(pid) in words
