"""Small artifacts of a run, written by hand, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graftflow.seals import seal

BACKBONE = {
    "name": "efficientnet_lite0",
    "weights": "imagenet",
    "weights_sha256": "ab" * 32,
    "input_size": 224,
    "preprocessing": "(x-127)/128",
    "feature_width": 1280,
    "keras": "3.15.1",
}


def score(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def picture(path: Path, width: int, height: int, seed: int = 0) -> None:
    """Write noise: nothing is harder to compress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


class Run:
    """The artifacts of a run with ``classes``, as values that a test may change before ``write``."""

    def __init__(self, root: Path, classes: list[str]) -> None:
        self.root, self.classes = root, classes
        self.sheet = (400, 300)
        k = len(classes)
        confusion = [[9 if i == j else 0 for j in range(k)] for i in range(k)]
        confusion[0][1] = 2
        pictures = sum(map(sum, confusion))
        mistake = {
            "path": f"{classes[0]}/1.png",
            "label": classes[0],
            "predicted": classes[1],
            "probability": 0.7654,
            "picture": "mistakes/0.jpg",
        }
        counts = {"train": 30, "validation": 5, "test": 9}
        self.dataset: dict[str, Any] = {
            "source": "directory:photos",
            "seed": 17,
            "fractions": {"train": 0.7, "validation": 0.15, "test": 0.15},
            "counts": {split: dict.fromkeys(classes, n) for split, n in counts.items()},
            "digest": "cd" * 32,
            "note": "Tiles of one photograph stand in several splits.",
            "audit": {
                "pictures": 44 * k,
                "left_out": 25,
                "duplicates": 3,
                "converted": 4,
                "conversions": {"CMYK": 4},
                "formats": {"JPEG": 44 * k},
                "widths": {"minimum": 64, "median": 320.0, "maximum": 4000},
                "heights": {"minimum": 64, "median": 240.0, "maximum": 3000},
            },
        }
        self.left_out = [f"broken{i:02d}.jpg,cut short" for i in range(25)]
        self.head: dict[str, Any] = {
            "backbone": BACKBONE,
            "classes": classes,
            "dataset_digest": "cd" * 32,
            "chosen_c": 0.01,
            "path": [
                {
                    "c": 10.0**e,
                    "train_log_loss": 0.5 * 2.0**-e,
                    "validation_log_loss": 0.4 + abs(e + 2) / 10,
                    "validation_accuracy": 0.8,
                }
                for e in range(-4, 1)
            ],
            "validation_accuracy": 0.8,
            "validation_log_loss": 0.4,
        }
        self.model: dict[str, Any] = {
            "backbone": BACKBONE,
            "classes": classes,
            "chosen": "fine-tuned",
            "unfrozen_blocks": 2,
            "head": {"accuracy": 0.8125, "log_loss": 0.4321},
            "fine_tuned": {"accuracy": 0.8875, "log_loss": 0.2109},
            "history": [
                {
                    "epoch": e,
                    "train_loss": 1 / e,
                    "validation_log_loss": 0.5 / e,
                    "validation_accuracy": 0.9 - 0.05 / e,
                }
                for e in (1, 2, 3)
            ],
        }
        self.saved_model: dict[str, Any] = {
            "version": 1790000000,
            "classes": classes,
            "sha256": "ef" * 32,
            "backbone": BACKBONE,
            "input_size": 224,
        }
        self.evaluation: dict[str, Any] = {
            "classes": classes,
            "pictures": pictures,
            "metrics": {
                "accuracy": score(0.9234, 0.8766, 0.9678),
                "log_loss": score(0.2468, 0.1357, 0.3579),
                "auc": score(0.9753, 0.9642, 0.9864),
                "calibration_error": score(0.0321, 0.0123, 0.0543),
            },
            "per_class": {
                name: {"precision": score(0.91, 0.81, 0.98), "recall": score(0.88, 0.72, 0.97), "support": 9}
                for name in classes
            },
            "confusion": confusion,
            "calibration": [{"confidence": 0.9, "accuracy": 0.8, "count": pictures}],
            "roc": {
                "name": classes[1],
                "false_positive_rate": [0.0, 0.0, 0.1, 1.0],
                "true_positive_rate": [0.0, 0.7, 0.9, 1.0],
                "threshold": [1.0, 0.8, 0.5, 0.0],
            },
            "confidence": 0.95,
            "resamples": 1000,
            "mistakes": [mistake],
        }
        self.adversarial: dict[str, Any] = {
            "pictures": 16,
            "steps": 8,
            "clean_accuracy": 0.9375,
            "epsilons": [0.5, 1.0, 4.0],
            "attacks": [
                {
                    "name": "FGSM",
                    "norm": "linf",
                    "targeted": False,
                    "accuracy": [0.75, 0.5, 0.4375],
                    "success": [0.2, 0.45, 0.55],
                    "rounded": [False, True, True],
                },
                {
                    "name": "PGD",
                    "norm": "linf",
                    "targeted": True,
                    "accuracy": [0.7, 0.3, 0.0],
                    "success": [0.3, 0.7, 1.0],
                    "rounded": [False, True, True],
                },
            ],
            "worst_case": {"accuracy": [0.625, 0.1875, 0.0], "success": [0.4, 0.8, 1.0]},
            "descent": {
                "target": "the class after the label",
                "success": 0.875,
                "mean_linf": 5.25,
                "pictures": 8,
                "probability": 0.9,
                "steps": 50,
            },
            "triplets": [
                {
                    "file": "triplets/0.png",
                    "attack": "PGD",
                    "epsilon": 1.0,
                    "label": classes[0],
                    "original": {"label": classes[0], "probability": 0.9871},
                    "adversarial": {"label": classes[1], "probability": 0.8642},
                }
            ],
        }
        self.visuals: dict[str, Any] = {
            "ideal": [
                {
                    "file": "0.jpg",
                    "class": "zebra",
                    "network": "ImageNet",
                    "probability": 0.9973,
                    "steps": 96,
                },
                {"file": "1.jpg", "class": classes[0], "network": "trained", "probability": 1.0, "steps": 48},
            ],
            "feature_maps": [{"file": "2.jpg", "layer": "block1a_swish", "shape": [112, 112, 32]}],
            "picture": {"file": "3.jpg", "path": "x/7.png", "label": classes[1]},
            "note": "",
        }

    def write(self) -> dict[str, Path]:
        """Write everything and return the folders by name."""
        said = {
            "dataset": ("dataset.json", self.dataset),
            "features": ("features.json", {"backbone": BACKBONE, "dataset_digest": "cd" * 32}),
            "head": ("head.json", self.head),
            "model": ("model.json", self.model),
            "saved_model": ("export.json", self.saved_model),
            "evaluation": ("evaluation.json", self.evaluation),
            "adversarial": ("adversarial.json", self.adversarial),
            "visuals": ("visuals.json", self.visuals),
        }
        for name, (file, value) in said.items():
            (self.root / name).mkdir(parents=True, exist_ok=True)
            (self.root / name / file).write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
        rows = "\n".join(["path,reason", *self.left_out])
        (self.root / "dataset" / "left_out.csv").write_text(rows + "\n", encoding="utf-8")
        picture(self.root / "dataset" / "contact_sheet.jpg", *self.sheet)
        for i, mistake in enumerate(self.evaluation["mistakes"]):
            picture(self.root / "evaluation" / mistake["picture"], 320, 240, seed=i)
        for i, triplet in enumerate(self.adversarial["triplets"]):
            picture(self.root / "adversarial" / triplet["file"], 672, 224, seed=i)
        shown = [*self.visuals["ideal"], *self.visuals["feature_maps"], self.visuals.get("picture")]
        for i, row in enumerate(filter(None, shown)):
            picture(self.root / "visuals" / row["file"], 224, 224, seed=i)
        for name in said:
            seal(self.root / name)
        return {name: self.root / name for name in said}
