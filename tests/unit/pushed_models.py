"""What a push needs, of a model that loads in a moment: a data set, exported versions and their evaluation."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from graftflow import evaluation, seals
from graftflow.files import sha256_directory, write_json
from tests.unit.serving_model import CLASSES, picture, save_model, write_warm_up
from tests.unit.small_classifier import write_small_dataset


@dataclass(frozen=True)
class Pushed:
    """Artifacts of one small run: ``evaluation`` is that of ``saved_model``, version 3."""

    root: Path
    dataset: Path
    saved_model: Path
    evaluation: Path

    def inputs(self, **others: Path) -> dict[str, Path]:
        """The three artifacts by name."""
        names = ("saved_model", "evaluation", "dataset")
        return {name: getattr(self, name) for name in names} | others


def write_export(folder: Path, *, version: int = 3, scale: float = -4.0) -> Path:
    """Write a ``saved_model`` artifact; the first class of the squares is the reddish one."""
    save_model(folder / str(version), scale=scale)
    write_warm_up(folder / str(version), "serving_default", picture())
    seal(folder, version)
    return folder


def seal(folder: Path, version: int = 3) -> None:
    """Write the ``export.json`` that goes with what is in the version's folder."""
    digest = sha256_directory(folder / str(version))
    write_json(
        folder / "export.json",
        {"version": version, "classes": CLASSES, "sha256": digest, "temperature": 1.0},
    )
    seals.seal(folder)


def write_pushed(root: Path) -> Pushed:
    """Write everything: 40 pictures in two classes, 8 of them for test."""
    dataset = write_small_dataset(root, CLASSES)
    saved_model = write_export(root / "saved_model")
    (root / "evaluation").mkdir()
    evaluation.write_evaluation(root / "evaluation", saved_model_path=saved_model, dataset_path=dataset)
    seals.seal(root / "evaluation")
    return Pushed(root, dataset, saved_model, root / "evaluation")


def copy_export(pushed: Pushed, folder: Path) -> Path:
    """Return a copy of the exported model, to be changed."""
    return Path(shutil.copytree(pushed.saved_model, folder))
