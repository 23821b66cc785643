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
from tests.stress.step_runs import Ended, SmallRun, check_visible, differences, step_server

KILLS = int(os.environ.get("GRAFTFLOW_KILLS", "10"))
SEED = int(os.environ.get("GRAFTFLOW_SEED", random.SystemRandom().randrange(10**6)))

# Minutes long each where others take seconds, and nothing of a killed one is taken over: these run again after the last
# kill only.
LONG = ("generate_adversarial", "visualise_model")
# Runs that end before their kill: so many for each kill, then the test fails.
TRIES = 20
# What the log of a killed step says was done; of an epoch that it has begun.
DONE = {"download_data": r"progress: audit (\d+)/", "fine_tune": r"fine-tuning, epoch (\d+) of"}


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
        """Check that what can be seen now is whole: artifacts are absent or as in the unbroken run, and sealed."""
        check_visible(self.small.folder_of(self.step), self.artifacts, asides=True)
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

    def published(self) -> bool:
        """Return whether an artifact has its name."""
        return self.artifacts.is_dir() and any(not p.name.startswith(".") for p in self.artifacts.iterdir())

    def kept(self) -> int:
        """Return how many pictures, rows of features or epochs a killed step has left for the next one to take over."""
        if self.step == "download_data":
            journals = list(self.cache.glob("conversions/*/journal"))
            return sum(journal.read_bytes().count(b"\n") for journal in journals)
        if self.step == "extract_features":
            return sum(len(FeatureCache(folder, width=1280)) for folder in self.cache.glob("features/*/"))
        checkpoints = sorted(self.cache.glob("checkpoints/*/checkpoint.npz*"))
        if not checkpoints:
            return 0
        with np.load(checkpoints[0]) as arrays:  # the last, or where a kill met its renaming the one before
            return arrays["history"].tobytes().count(b'"epoch"')

    def all_of_it(self) -> int:
        """Return how many there are of what :meth:`kept` counts; 0 of a step that keeps nothing."""
        metadata = self.small.reference[self.step].told["metadata"]
        if self.step == "download_data":
            return metadata["dataset"]["pictures"] + metadata["dataset"]["left_out"]
        if self.step == "extract_features":
            return metadata["feature_shard"]["computed"]
        return self.small.values["fine_tune_epochs"] if self.step == "fine_tune" else 0


def check_resumed(trial: Trial, kept: int, again: Ended) -> None:
    """Check that the run after a kill took over what had been kept, and did only the rest."""
    if trial.step == "download_data":
        told = re.search(r"(\d+) pictures were looked at by an earlier run", again.log)
        assert (int(told[1]) if told else 0) == kept
    if trial.step == "extract_features":
        assert again.told["metadata"]["feature_shard"]["cached"] == kept
    if trial.step == "fine_tune":
        trained = {int(n) for n in re.findall(DONE["fine_tune"], again.log)}
        assert trained == set(range(kept + 1, trial.all_of_it() + 1))
    if trial.step == "deploy_model":
        assert trial.served() == [(7, "stable")]


def check_again(trial: Trial, least: int) -> None:
    """Run the step once more, and check its artifacts, what it resumed and what it left.

    Args:
        trial: after the last kill.
        least: what this kill must have left for the next run, unless the artifact was there already.
    """
    kept = trial.kept()
    assert kept >= least or trial.published(), f"{kept} of {least} kept"
    again = trial.run()
    assert again.code == 0, again.log[-3000:]
    expected = trial.small.folder_of(trial.step)
    for path in expected.iterdir():
        assert not differences(path, trial.artifacts / path.name), path.name
    assert again.told["returned"] == trial.small.reference[trial.step].told["returned"]
    check_resumed(trial, kept, again)
    assert not list(trial.store.rglob(".*.partial*"))
    assert not list(trial.cache.glob("conversions/*")) + list(trial.cache.glob("checkpoints/*"))


def done(step: str, log: str) -> int:
    """Return how many pictures or whole epochs the log of a killed step tells of."""
    found = [int(number) for number in re.findall(DONE[step], log)] if step in DONE else []
    return max(found, default=0) - (step == "fine_tune" and bool(found))


def kill(trial: Trial, part: tuple[float, float], duration: float, moments: random.Random) -> Ended:
    """Kill the step once, in a part of its duration; a run that ends before is whole, and another one is killed."""
    for _ in range(TRIES):
        broken = trial.run(moments.uniform(*part) * duration)
        trial.check_visible()
        if broken.code == -9:
            return broken
        assert broken.code == 0, broken.log[-3000:]
        # A little less each time: of a step of a tenth of a second the clock's own noise is a large part.
        duration = 0.95 * min(duration, broken.seconds)
        shutil.rmtree(trial.folder)
    raise AssertionError(f"{trial.step} ends before a kill reaches it")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_killed_at_any_moment_runs_again_as_if_nothing_had_been(
    small: SmallRun, step: str, tmp_path: Path
) -> None:
    """The kills are spread over the step's duration, each at a random moment of its own part."""
    duration = small.unbroken(step).seconds
    moments = random.Random(f"{SEED} {step}")
    trial = Trial(small, step, tmp_path / "trial")
    for number in range(KILLS):
        broken = kill(trial, (number / KILLS, (number + 1) / KILLS), duration, moments)
        if step not in LONG or number == KILLS - 1:
            check_again(trial, done(step, broken.log))
            shutil.rmtree(trial.folder)


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_step_killed_while_it_publishes_leaves_nothing_half_published(
    small: SmallRun, step: str, tmp_path: Path
) -> None:
    """Random moments seldom fall between two renames; these do.

    Just before the artifact takes its name nothing of the work may be lost, just after it the artifact is there: what
    was kept for the next run goes last.
    """
    changes = small.unbroken(step).told["changes"]
    naming = next(
        number
        for number, (event, name) in enumerate(changes, start=1)
        if event == "os.rename" and Path(name).parent.name == step and ".partial" in name
    )
    trial = Trial(small, step, tmp_path / "trial")
    for change in sorted({naming, naming + 1, len(changes) - 1, len(changes)}):
        if change > len(changes):
            continue  # the naming is the last one
        assert trial.run(die_at=change).code == -9
        trial.check_visible()
        assert trial.published() == (change > naming)
        if step not in LONG or change == len(changes):
            check_again(trial, trial.all_of_it())
        shutil.rmtree(trial.folder)


def test_no_process_of_a_killed_step_lives_on(small: SmallRun, tmp_path: Path) -> None:
    small.unbroken("evaluate")
    trial = Trial(small, "deploy_model", tmp_path)
    broken = trial.run(kill_when=lambda pid: bool(servers_for(pid)))
    assert broken.code == -9, broken.log[-3000:]
    deadline = time.monotonic() + 10
    while servers := servers_for(small.pid):
        assert time.monotonic() < deadline, servers
        time.sleep(0.1)


def servers_for(pid: int) -> list[psutil.Process]:
    """Return the model servers that a step's process has started, from its number."""
    return [process for process in psutil.process_iter(["cmdline"]) if _serves_for(process, pid)]


def _serves_for(process: psutil.Process, pid: int) -> bool:
    words = process.info["cmdline"] or []
    return "graftflow.server_processes" in words and str(pid) in words
