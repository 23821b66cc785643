"""The same seed on the same machine gives the same bytes, in another process, with other hashes of strings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What tests/conftest.py makes in this process, made once more.
SCRIPT = """
import sys
from pathlib import Path
from graftflow import datasets, evaluation, export, features, heads, training
from graftflow.recipes import Recipe

pictures, root = sys.argv[1], Path(sys.argv[2])
paths = {name: root / name for name in ("dataset", "features", "head", "model", "saved_model", "evaluation")}
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
    recipe=Recipe(epochs=1, learning_rate=1e-4, batch_size=8),
)
export.write_saved_model(
    paths["saved_model"], model_path=paths["model"], dataset_path=paths["dataset"], version=3
)
evaluation.write_evaluation(
    paths["evaluation"], saved_model_path=paths["saved_model"], dataset_path=paths["dataset"]
)
"""


@pytest.fixture(scope="module")
def again(artifacts, tmp_path_factory) -> Path:
    """The artifacts of :func:`artifacts`, made by a process of their own from pictures that were touched since."""
    root = tmp_path_factory.mktemp("again") / "elsewhere"
    for picture in artifacts.pictures.rglob("*.png"):
        os.utime(picture, (1_500_000_000, 1_500_000_000))
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", SCRIPT, str(artifacts.pictures), str(root)]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return root


def names_in(folder: Path) -> list[str]:
    """A folder's files but for its seal, which follows from them and which the step's component writes."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in found if name != "SHA256SUMS")


@pytest.mark.parametrize("kind", ["dataset", "features", "head", "model", "saved_model", "evaluation"])
def test_an_artifact_made_twice_has_the_same_bytes(artifacts, again: Path, kind: str) -> None:
    first, second = getattr(artifacts, kind), again / kind
    names = names_in(first)
    assert names
    assert names == names_in(second)
    different = [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]
    # How long it took is all that may differ.
    assert different in ([], ["features.json"])
    for name in different:
        timed = [json.loads((folder / name).read_text(encoding="utf-8")) for folder in (first, second)]
        assert all(figures.pop("seconds") >= 0 for figures in timed)
        assert timed[0] == timed[1]
