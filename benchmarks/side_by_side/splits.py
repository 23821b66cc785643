"""The pictures that all recipes of a seed see: graftflow's splits, for the peers as folders of links."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

from graftflow.datasets import write_dataset
from graftflow.errors import InputError
from graftflow.files import atomic_directory
from graftflow.splits import SPLITS

QUICK_PICTURES = 16  # of each class


@dataclass(frozen=True)
class Split:
    """One seed's pictures.

    Attributes:
        data: folder with one sub-folder a class: what graftflow's own recipe splits by itself.
        pictures: folder of ``train``, ``validation`` and ``test``, each with one sub-folder a class of links.
        classes: the classes' names, sorted.
        digest: of graftflow's manifest.
        seed, validation_fraction, test_fraction: what made the split.
    """

    data: Path
    pictures: Path
    classes: tuple[str, ...]
    digest: str
    seed: int
    validation_fraction: float
    test_fraction: float


def prepare(data: Path, destination: Path, *, seed: int, quick: bool) -> Split:
    """Split a folder of pictures and link them.

    Args:
        data: folder with one sub-folder a class; two classes.
        destination: folder for the links; replaced.
        seed: of the split.
        quick: take the first 16 pictures of each class, a quarter of them for validation and a quarter for test.

    Raises:
        InputError: there are not two classes, or graftflow refuses the folder.
    """
    fraction = 0.25 if quick else 0.15
    if quick:
        data = _few(data, destination.with_name("few"))
    with atomic_directory(destination) as folder:
        dataset = folder / "dataset"
        dataset.mkdir()
        info = write_dataset(
            dataset,
            source=f"directory:{data}",
            seed=seed,
            validation_fraction=fraction,
            test_fraction=fraction,
        )
        if len(info.classes) != 2:
            raise InputError(
                f"The Keras guide's head, one logit, wants two classes. Received: {', '.join(info.classes)}."
            )
        with open(dataset / "manifest.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for split in SPLITS:
            for row in (row for row in rows if row["split"] == split):
                link = folder / split / row["path"]
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((data / row["path"]).resolve())
        shutil.rmtree(dataset)
    return Split(data, destination, info.classes, info.digest, seed, fraction, fraction)


def _few(data: Path, destination: Path) -> Path:
    """Copy the first pictures of each class; returns the folder."""
    with atomic_directory(destination) as folder:
        for label in sorted(path for path in data.iterdir() if path.is_dir()):
            (folder / label.name).mkdir()
            for picture in sorted(path for path in label.iterdir() if path.is_file())[:QUICK_PICTURES]:
                shutil.copy(picture, folder / label.name)
    return destination
