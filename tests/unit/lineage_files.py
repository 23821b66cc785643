"""A lineage as ``export_model`` writes it, of a made-up run."""

import tempfile
from pathlib import Path
from typing import Any

from graftflow.files import write_json
from graftflow.lineages import Origin, write_lineage

ORIGIN = Origin("run-7", "c0ffee-dirty", "graftflow:1")
BACKBONE = {"name": "efficientnet_lite0", "weights": "imagenet", "weights_sha256": "b" * 64}


def write_artifacts(root: Path, *, source: str = "directory:photos") -> dict[str, Path]:
    """Write a ``dataset`` and a ``model`` artifact, as far as a lineage reads them."""
    for name in ("dataset", "model"):
        (root / name).mkdir(parents=True)
    write_json(
        root / "dataset" / "dataset.json",
        {
            "source": source,
            "seed": 5,
            "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2},
            "counts": {"train": {"blue": 6, "red": 6}, "validation": {"blue": 2, "red": 2}},
            "digest": "d" * 64,
        },
    )
    write_json(
        root / "model" / "model.json",
        {
            "backbone": BACKBONE,
            "classes": ["blue", "red"],
            "chosen": "fine-tuned",
            "unfrozen_blocks": 2,
            "head": {"accuracy": 0.75, "log_loss": 0.5},
            "fine_tuned": {"accuracy": 0.875, "log_loss": 0.25},
            "calibrated": {"accuracy": 0.875, "log_loss": 0.125},
            "recipe": {"epochs": 3, "learning_rate": 1e-4, "mixup": 0.0},
            "trade": None,
            "temperature": 1.5,
        },
    )
    return {"model_path": root / "model", "dataset_path": root / "dataset"}


def write_example(folder: Path, *, version: int = 3, source: str = "directory:photos") -> dict[str, Any]:
    """Write a version folder's lineage; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        paths = write_artifacts(Path(root), source=source)
        return write_lineage(folder, origin=ORIGIN, version=version, **paths)
