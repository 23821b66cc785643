"""Evaluation: the test split's encoded bytes through the very model that will be served."""

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from graftflow import calibration, datasets, export, files, metrics
from graftflow.preprocessing import read_pixels
from graftflow.progress import Progress


def predict_split(
    saved_model_path: str | Path, dataset_path: str | Path, split: str, *, batch_size: int = 32
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], list[str]]:
    """Send a split's encoded pictures through ``serving_default``.

    Returns:
        Probabilities ``float32 (n, k)``, labels ``int64 (n,)`` and paths, in the split's order.
    """
    signatures = export.load_signatures(export.version_folder(saved_model_path))
    progress = Progress(split, total=datasets.split_size(dataset_path, split), unit="pictures")
    probabilities: list[npt.NDArray[Any]] = []
    labels: list[npt.NDArray[Any]] = []
    paths: list[str] = []
    for batch in datasets.read_split(dataset_path, split).batch(batch_size).prefetch(2):
        answer = signatures["serving_default"](image_bytes=batch["image"])
        probabilities.append(answer["probabilities"].numpy())
        labels.append(batch["label"].numpy())
        paths.extend(path.decode() for path in batch["path"].numpy())
        progress.advance(len(labels[-1]))
    return np.concatenate(probabilities), np.concatenate(labels), paths


def summarise(
    probabilities: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    classes: list[str],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute every figure of ``evaluation.json`` but the mistakes.

    Args:
        probabilities: ``(n, k)``.
        labels: ``int (n,)`` in [0, k).
        classes: the ``k`` names.
        resamples: bootstrap resamples.
        confidence: of the intervals, a fraction.
        seed: fixes the resamples.
    """
    predicted = probabilities.argmax(axis=1)
    overall: dict[str, metrics.Measure] = {
        "accuracy": partial(metrics.accuracy, probabilities=probabilities, labels=labels),
        "log_loss": partial(metrics.log_loss, probabilities=probabilities, labels=labels),
        "auc": metrics.roc_area(probabilities, labels),
        "calibration_error": partial(metrics.calibration_error, probabilities=probabilities, labels=labels),
    }
    of_classes: dict[str, metrics.Measure] = {
        f"{figure.__name__} {index}": partial(figure, predicted=predicted, labels=labels, of=index)
        for index in range(len(classes))
        for figure in (metrics.precision, metrics.recall)
    }
    values = metrics.bootstrap({**overall, **of_classes}, len(labels), resamples=resamples, seed=seed)
    intervals = {name: metrics.with_interval(found, confidence=confidence) for name, found in values.items()}
    per_class = {
        name: {
            "precision": intervals[f"precision {index}"],
            "recall": intervals[f"recall {index}"],
            "support": int((labels == index).sum()),
        }
        for index, name in enumerate(classes)
    }
    roc_name = classes[1] if len(classes) == 2 else "all classes (micro-average)"
    return {
        "classes": classes,
        "pictures": len(labels),
        "metrics": {name: intervals[name] for name in overall},
        "per_class": per_class,
        "confusion": metrics.confusion_matrix(probabilities, labels),
        "calibration": metrics.calibration_curve(probabilities, labels),
        "roc": {"name": roc_name, **metrics.roc_curve(probabilities, labels)},
        "confidence": confidence,
        "resamples": resamples,
    }


def before_scaling(
    probabilities: npt.NDArray[Any], labels: npt.NDArray[Any], temperature: float
) -> dict[str, Any]:
    """Return what temperature scaling changed: the figures of the same model without it.

    Args:
        probabilities: ``(n, k)``, of the model that has the temperature folded in.
        labels: ``int (n,)`` in [0, k).
        temperature: that was folded in.

    Returns:
        ``{"temperature", "log_loss", "calibration_error", "calibration": curve}``; classes and accuracy stay the same.
    """
    plain = calibration.with_temperature(probabilities, 1.0 / temperature)
    once = np.ones((1, len(labels)))
    return {
        "temperature": temperature,
        "log_loss": float(metrics.log_loss(once, plain, labels)[0]),
        "calibration_error": float(metrics.calibration_error(once, plain, labels)[0]),
        "calibration": metrics.calibration_curve(plain, labels),
    }


def write_evaluation(
    destination: str | Path,
    *,
    saved_model_path: str | Path,
    dataset_path: str | Path,
    num_mistakes: int = 12,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the ``evaluation`` artifact into an existing folder.

    Args:
        destination: an existing folder.
        saved_model_path: a ``saved_model`` artifact.
        dataset_path: the ``dataset`` artifact, of which only the test split is read.
        num_mistakes: how many of the most confident wrong predictions are kept as pictures.
        seed: fixes the bootstrap.

    Returns:
        What stands in ``evaluation.json``.
    """
    classes = list(datasets.load_info(dataset_path).classes)
    probabilities, labels, paths = predict_split(saved_model_path, dataset_path, "test")
    summary = summarise(probabilities, labels, classes, seed=seed)
    temperature = files.read_json(Path(saved_model_path) / "export.json")["temperature"]
    # A GPU rounds otherwise (TF32): whoever compares with these probabilities must know.
    summary["device"] = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    summary["before_scaling"] = before_scaling(probabilities, labels, temperature)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:num_mistakes]
    folder = Path(destination) / "mistakes"
    folder.mkdir()
    summary["mistakes"] = [
        {
            "path": paths[i],
            "label": classes[labels[i]],
            "predicted": classes[predicted[i]],
            "probability": float(probabilities[i, predicted[i]]),
            "picture": f"mistakes/{rank}.jpg",
        }
        for rank, i in enumerate(worst)
    ]
    _save_pictures(dataset_path, [int(i) for i in worst], folder)
    with open(Path(destination) / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "predicted", *classes])
        for path, label, guess, row in zip(paths, labels, predicted, probabilities, strict=True):
            writer.writerow([path, classes[label], classes[guess], *(f"{p:.9g}" for p in row)])
    files.write_json(Path(destination) / "evaluation.json", summary)
    return summary


def _save_pictures(dataset_path: str | Path, indices: list[int], folder: Path) -> None:
    """Save test pictures as JPEGs of at most 320 pixels, named by their rank in ``indices``."""
    wanted = {index: rank for rank, index in enumerate(indices)}
    for index, record in enumerate(datasets.read_split(dataset_path, "test")):
        if index in wanted:
            picture = Image.fromarray(read_pixels(record["image"]).numpy())
            picture.thumbnail((320, 320))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=88)
            (folder / f"{wanted[index]}.jpg").write_bytes(buffer.getvalue())
