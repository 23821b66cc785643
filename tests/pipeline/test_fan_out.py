"""A run whose features are extracted in three shards, what a repetition finds of them, and single steps after it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines import run_index

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "weights": "none",
    "validation-fraction": 0.25,
    "test-fraction": 0.25,
    # No backbone has so many: the run ends behind the steps that are tested here.
    "fine-tune-blocks": 99,
}


def run(module: str, *positional: str, **flags: object) -> subprocess.CompletedProcess[str]:
    named = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    command = [sys.executable, "-m", f"pipelines.{module}", *positional, *named]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def flags(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    place = tmp_path_factory.mktemp("fan-out")
    where = {"runs": place / "runs", "store": place / "store", "dataset": f"directory:{picture_folder}"}
    return {**SMALL, **where, "shards": 3}


@pytest.fixture(scope="module")
def first(flags) -> subprocess.CompletedProcess[str]:
    result = run("run_local", **flags)
    assert "error: fine_tune: num_blocks" in result.stderr, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def fanned(first, flags) -> run_index.Run:
    return run_index.load(flags["runs"] / "latest")


def test_three_shards_run_and_are_gathered(first, fanned: run_index.Run) -> None:
    shards = [name for name in fanned.steps if run_index.step_of(name) == "extract_features"]
    assert shards == ["extract_features", "extract_features 2", "extract_features 3"]
    assert fanned.steps["check_settings"].outputs["Output"] == [0, 1, 2]
    told = [
        json.loads((Path(artifact["uri"]) / "shard.json").read_text())
        for artifact in fanned.artifacts("feature_shard")
    ]
    assert sorted(shard["shard"] for shard in told) == [0, 1, 2]
    assert [shard["computed"] for shard in told] == [16, 16, 16]
    features = Path(fanned.artifact("features")["uri"])
    counts = json.loads((features / "features.json").read_text())["counts"]
    for split, count in counts.items():
        with np.load(features / f"{split}.npz") as arrays:
            assert arrays["features"].shape == (count, 1280)
            assert "places" not in arrays
    assert fanned.steps["train_head"].status == "done"
    assert "shard 3 of 3: 16 pictures, 0 of them in the cache" in first.stdout
    assert "features in 3 shards" in first.stdout


def test_another_number_of_shards_gives_the_same_features_and_finds_the_rows(fanned, flags) -> None:
    result = run("run_step", "extract_features", **{**flags, "shards": 2, "run": fanned.folder})
    assert result.returncode == 0, result.stdout + result.stderr
    alone = run_index.load(flags["runs"] / "latest")
    assert [name for name in alone.steps if "features" in name] == [
        "extract_features",
        "extract_features 2",
        "merge_features",
    ]
    assert "train_head" not in alone.steps
    ours, before = (Path(found.artifact("features")["uri"]) for found in (alone, fanned))
    for split in ("train", "validation", "test"):
        assert (ours / f"{split}.npz").read_bytes() == (before / f"{split}.npz").read_bytes()
    assert json.loads((ours / "features.json").read_text())["cached"] == 48
    following = run("run_step", "train_head", **{**flags, "run": alone.folder})
    assert following.returncode == 0, following.stderr
    merged = run("run_step", "merge_features", **{**flags, "run": fanned.folder})
    assert merged.returncode == 0, merged.stderr


def test_a_failed_run_again_takes_every_shard_from_the_cache(first, fanned, flags) -> None:
    run("run_local", **flags)
    again = run_index.load(flags["runs"] / "latest")
    assert again.artifacts("feature_shard") == fanned.artifacts("feature_shard")
    assert {step.status for name, step in again.steps.items() if "features" in name} == {"cached"}
