"""The same seed gives the same bytes: of what `tests/component/test_determinism.py` has no time for.

Another backbone, a perceptron, a training under attack, and the commands that look at a run's model or compare
backbones, each by two processes at once.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.run_index import Run, Step
from tests.component import twice

KINDS = ("dataset", "features", "head", "model", "saved_model", "evaluation")
SCRIPT = """
import sys
from pathlib import Path
from graftflow import datasets, evaluation, export, features, heads, seals, training
from graftflow.recipes import Recipe

pictures, root, *kinds = sys.argv[1:]
paths = {kind: Path(root) / kind for kind in kinds}
for path in paths.values():
    path.mkdir(parents=True)
datasets.write_dataset(
    paths["dataset"], source=f"directory:{pictures}", seed=0, validation_fraction=0.25, test_fraction=0.25
)
features.write_features(
    paths["features"], dataset_path=paths["dataset"], backbone="mobilenetv3small", weights="none"
)
heads.write_head(paths["head"], features_path=paths["features"], head_type="mlp")
training.write_model(
    paths["model"],
    dataset_path=paths["dataset"],
    head_path=paths["head"],
    weights="none",
    num_blocks=1,
    recipe=Recipe(epochs=1, learning_rate=1e-3, batch_size=4, adversarial_training="fgsm", clean_tolerance=0.99),
)
export.write_saved_model(
    paths["saved_model"], model_path=paths["model"], dataset_path=paths["dataset"], version=3
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
    "saved_model/3/assets.extra/lineage.json": {("dataset", "source"): "where the pictures are"},
    "saved_model/export.json": {("sha256",): "of the folder that holds lineage.json"},
}
COMPARED = ("mobilenetv3small=none", "mobilenetv2=none")
# Of a comparison: how long steps and answers took, and so which backbone is fastest.
TIMES: dict[tuple[str, ...], str] = {
    ("fastest",): "who answered fastest",
    **{("rows", row, name): "how long it took" for row in ("0", "1") for name in ("seconds", "milliseconds")},
}
MINUTE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")


@pytest.fixture(scope="module")
def pictures(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return twice.copies(picture_folder, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def both(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of the artifacts that two processes made at the same time, of two classes of eight tiles."""
    folders = [tmp_path_factory.mktemp("same-seed") / name for name in twice.NAMES]
    twice.run_both(
        *(
            [sys.executable, "-c", SCRIPT, str(source), str(folder), *KINDS]
            for source, folder in zip(pictures, folders, strict=True)
        )
    )
    return folders


@pytest.fixture(scope="module")
def runs(both: list[Path]) -> list[Path]:
    """A run's folder around the artifacts of each."""
    folders = []
    for folder in both:
        run = Run(folder / "runs" / "run", {"seed": 0})
        for step, name in (("download_data", "dataset"), ("fine_tune", "model")):
            run.steps[step] = Step("done", 1.0, {name: {"uri": str(folder / name), "metadata": {}}})
        run.save()
        folders.append(run.folder)
    return folders


def run_module(name: str, *flags: list[str]) -> None:
    twice.run_both(*([sys.executable, "-m", f"pipelines.{name}", *given] for given in flags))


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_another_backbone_a_perceptron_and_an_attacked_training_repeat(both: list[Path], kind: str) -> None:
    assert len(twice.files_of(both[0] / kind)) > 1
    may_differ = {
        name.removeprefix(f"{kind}/"): fields
        for name, fields in MAY_DIFFER.items()
        if name.startswith(f"{kind}/")
    }
    assert not twice.different(both[0] / kind, both[1] / kind, may_differ)


@pytest.mark.parametrize("attack", [["--attack=pgd", "--target=rocket"], ["--attack=ensemble"]])
def test_an_attacked_picture_repeats(
    runs: list[Path], pictures: list[Path], tmp_path: Path, attack: list[str]
) -> None:
    outputs = [tmp_path / name for name in twice.NAMES]
    run_module(
        "attack_picture",
        *(
            [
                *attack,
                "--steps=4",
                f"--image={source / 'brick' / '00.png'}",
                f"--run={run}",
                f"--output={output}",
            ]
            for source, run, output in zip(pictures, runs, outputs, strict=True)
        ),
    )
    assert {"adversarial.png", "side_by_side.png", "attack.json"} == twice.files_of(outputs[0]).keys()
    assert not twice.different(*outputs, {})


@pytest.mark.parametrize("more", [["--class=brick"], ["--class=zebra", "--backbone=efficientnet_lite0"]])
def test_an_ideal_image_repeats(runs: list[Path], tmp_path: Path, more: list[str]) -> None:
    outputs = [tmp_path / name for name in twice.NAMES]
    run_module(
        "draw_ideal",
        *(
            [*more, "--size=64", "--steps=4", f"--run={run}", f"--output={output}"]
            for run, output in zip(runs, outputs, strict=True)
        ),
    )
    assert {"ideal.png", "ideal.webp", "ideal.json"} == twice.files_of(outputs[0]).keys()
    assert not twice.different(*outputs, {})


def test_a_challenge_repeats(runs: list[Path], pictures: list[Path]) -> None:
    run_module("run_challenge", *(["--dataset=digits", "--num-pictures=12", f"--run={run}"] for run in runs))
    found = [only(run.parent, "challenge-*") for run in runs]
    source = {("dataset", "source"): "where the pictures are"}
    # The page tells the same, and when it was written; the seal has its sum.
    assert set(twice.different(*found, {"challenge/challenge.json": source})) == {
        "challenge.html",
        "challenge/challenge.html",
        "challenge/SHA256SUMS",
    }
    pages = []
    for folder, pictures_of_it in zip(found, pictures, strict=True):
        page = MINUTE.sub("MINUTE", (folder / "challenge.html").read_text(encoding="utf-8"))
        assert str(pictures_of_it) in page
        pages.append(page.replace(str(pictures_of_it), "PICTURES"))
    assert pages[0] == pages[1]


def test_a_comparison_of_backbones_repeats_but_for_its_times(pictures: list[Path], tmp_path: Path) -> None:
    places = [tmp_path / name for name in twice.NAMES]
    fractions = ["--validation-fraction=0.25", "--test-fraction=0.25"]
    run_module(
        "run_compare",
        *(
            [
                f"--dataset=directory:{source}",
                f"--backbones={','.join(COMPARED)}",
                f"--runs={place / 'runs'}",
                f"--cache={place / 'cache'}",
                *fractions,
            ]
            for source, place in zip(pictures, places, strict=True)
        ),
    )
    found = [only(place, "runs/*/comparison.json").parent for place in places]
    kept: list[dict[str, Any]] = []
    for folder in found:
        names = {name for name in twice.files_of(folder) if name.endswith("predictions.csv")}
        assert len(names) == len(COMPARED)
        kept.append({name: (folder / name).read_bytes() for name in names})
    assert kept[0] == kept[1]
    tables = [place / "table" for place in places]
    for folder, table in zip(found, tables, strict=True):
        table.mkdir()
        (table / "comparison.json").write_bytes((folder / "comparison.json").read_bytes())
    assert not twice.different(*tables, {"comparison.json": TIMES})
