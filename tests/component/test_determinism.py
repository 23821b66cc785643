"""The same seed gives the same bytes: artifacts made by two processes, compared file by file.

`tests/stress/test_same_seed.py` does the same with another backbone, an attacked training and the commands that look at
a run's model, and `tests/stress/test_whole_runs_again.py` with whole runs.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.component import twice

KINDS = (
    "dataset",
    "features",
    "features_from_cache",
    "head",
    "mlp_head",
    "model",
    "saved_model",
    "evaluation",
)
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
for name in ("features", "features_from_cache"):
    features.write_features(
        paths[name],
        dataset_path=paths["dataset"],
        backbone="efficientnet_lite0",
        weights="imagenet",
        cache=Path(root) / "cache",
    )
heads.write_head(paths["head"], features_path=paths["features"])
heads.write_head(paths["mlp_head"], features_path=paths["features"], head_type="mlp")
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
    "features_from_cache/features.json": {("seconds",): "how long the cache took"},
    "saved_model/3/assets.extra/lineage.json": {
        ("run_id",): "which run exported it",
        ("dataset", "source"): "where the pictures are",
    },
    "saved_model/export.json": {("sha256",): "of the folder that holds lineage.json"},
}


@pytest.fixture(scope="module")
def both(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of the artifacts that two processes made at the same time, of two classes of eight tiles."""
    root = tmp_path_factory.mktemp("determinism")
    folders = [root / name for name in twice.NAMES]
    pictures = twice.copies(picture_folder, root)
    twice.run_both(
        *(
            [sys.executable, "-c", SCRIPT, str(source), str(folder), *KINDS]
            for source, folder in zip(pictures, folders, strict=True)
        )
    )
    return folders


@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_made_twice_has_the_same_bytes(both: list[Path], kind: str) -> None:
    names = twice.files_of(both[0] / kind)
    assert "SHA256SUMS" in names
    assert len(names) > 1
    may_differ = {
        name.removeprefix(f"{kind}/"): fields
        for name, fields in MAY_DIFFER.items()
        if name.startswith(f"{kind}/")
    }
    assert not twice.different(both[0] / kind, both[1] / kind, may_differ)


def test_features_from_the_cache_are_the_computed_ones_bit_for_bit(both: list[Path]) -> None:
    computed, cached = both[0] / "features", both[0] / "features_from_cache"
    told = [
        json.loads((folder / "features.json").read_text(encoding="utf-8")) for folder in (computed, cached)
    ]
    assert [row["computed"] for row in told] == [16, 0]
    where_from = {("seconds",): "how long it took", ("computed",): "", ("cached",): "what it is about"}
    assert not twice.different(computed, cached, {"features.json": where_from})
