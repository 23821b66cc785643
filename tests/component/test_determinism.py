"""The same seed gives the same bytes: artifacts made by two processes, compared file by file.

The two differ in what may not matter: hashes of strings, time zone, output folder, and of the pictures the folder, the
order in which they were copied and their times. `tests/stress/test_whole_runs_again.py` does the same with whole runs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("dataset", "features", "head", "model", "saved_model", "evaluation")
SCRIPT = """
import sys
from pathlib import Path
from graftflow import datasets, evaluation, export, features, heads, seals, training
from graftflow.lineages import Origin
from graftflow.recipes import Recipe

pictures, root, *kinds = sys.argv[1:]
paths = {kind: Path(root) / kind for kind in kinds}
for path in paths.values():
    path.mkdir(parents=True)
datasets.write_dataset(
    paths["dataset"], source=f"directory:{pictures}", seed=0, validation_fraction=0.25, test_fraction=0.25
)
features.write_features(
    paths["features"], dataset_path=paths["dataset"], backbone="efficientnet_lite0", weights="imagenet"
)
heads.write_head(paths["head"], features_path=paths["features"])
training.write_model(
    paths["model"],
    dataset_path=paths["dataset"],
    head_path=paths["head"],
    weights="imagenet",
    num_blocks=1,
    recipe=Recipe(epochs=1, learning_rate=1e-4, batch_size=4),
)
export.write_saved_model(
    paths["saved_model"],
    model_path=paths["model"],
    dataset_path=paths["dataset"],
    version=3,
    origin=Origin(run_id=Path(root).name),
)
evaluation.write_evaluation(
    paths["evaluation"], saved_model_path=paths["saved_model"], dataset_path=paths["dataset"]
)
for path in paths.values():
    seals.seal(path)
"""
# All that may differ, by file and field, and why.
MAY_DIFFER: dict[str, dict[tuple[str, ...], str]] = {
    "dataset/dataset.json": {("source",): "where the pictures are"},
    "features/features.json": {("seconds",): "how long the backbone took"},
    "saved_model/3/assets.extra/lineage.json": {
        ("run_id",): "which run exported it",
        ("dataset", "source"): "where the pictures are",
    },
    "saved_model/export.json": {("sha256",): "of the folder that holds lineage.json"},
}
# These two numbers put sets of the class names, and of the splits, in different orders. The time of
# the day differs between the time zones, however close to each other two processes write.
SURROUNDINGS = (
    {"PYTHONHASHSEED": "1", "TZ": "UTC"},
    {"PYTHONHASHSEED": "3", "TZ": "Asia/Tokyo"},
)


@pytest.fixture(scope="module")
def twice(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of the artifacts that two processes made at the same time, of two classes of eight tiles."""
    root = tmp_path_factory.mktemp("determinism")
    pictures = sorted(
        path for name in ("brick", "rocket") for path in (picture_folder / name).glob("0[0-7].*")
    )
    started = []
    for name, order, surroundings in zip(("one", "the other"), (1, -1), SURROUNDINGS, strict=True):
        for picture in pictures[::order]:
            copy = root / f"pictures of {name}" / picture.parent.name / picture.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(picture.read_bytes())
            os.utime(copy, (1_500_000_000 * (2 + order) // 3,) * 2)
        command = [sys.executable, "-c", SCRIPT, str(root / f"pictures of {name}"), str(root / name), *KINDS]
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **surroundings},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for process in started:
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said[-2000:]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [root / "one", root / "the other"]


def files_of(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def without(value: Any, fields: dict[tuple[str, ...], str]) -> Any:
    """A JSON value without some of its fields, each of which must be there."""
    for *parents, last in fields:
        place = value
        for parent in parents:
            place = place[parent]
        del place[last]
    return value


def content(kind: str, name: str, path: Path) -> Any:
    """What must be the same of a file: its bytes, or all fields but the named ones; of a seal, other files' lines."""
    fields = MAY_DIFFER.get(f"{kind}/{name}", {})
    if fields:
        return list(without(json.loads(path.read_text(encoding="utf-8")), fields).items())
    if name == "SHA256SUMS":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if f"{kind}/{line.split(maxsplit=1)[1]}" not in MAY_DIFFER]
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_made_twice_has_the_same_bytes(twice: list[Path], kind: str) -> None:
    one, other = (files_of(folder / kind) for folder in twice)
    assert one.keys() == other.keys()
    assert "SHA256SUMS" in one
    assert len(one) > 1
    different = [name for name in one if content(kind, name, one[name]) != content(kind, name, other[name])]
    assert not different
