"""The ``visuals`` artifact: what a network wants to see of a class, what its layers see, what its answers rest on."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from graftflow import backbones, datasets, preprocessing
from graftflow.errors import InputError
from graftflow.explanations import write_explanations
from graftflow.feature_maps import write_feature_maps
from graftflow.feature_projections import write_projection
from graftflow.files import read_json, write_json
from graftflow.ideal_images import SIZE, Artist, write_animation
from graftflow.imagenet_classes import imagenet_index
from graftflow.neighbours import write_neighbours
from graftflow.picture_files import read_by_path, save_jpeg
from graftflow.progress import Progress
from graftflow.training import load_classifier

MOST_EXPLAINED, MOST_EXPLAINED_MISTAKES, MOST_NEIGHBOURS = 6, 4, 6
# Of a trained class: drawn many at a time, each small on the page.
_TRAINED_SIZE, _TOGETHER = 224, 8
_NUM_FRAMES, _ANIMATION_BYTES = 24, 110_000


def write_visuals(
    destination: str | Path,
    *,
    model_path: str | Path,
    dataset_path: str | Path,
    features_path: str | Path | None = None,
    evaluation_path: str | Path | None = None,
    backbone_weights: str,
    ideal_classes: Sequence[str],
    num_trained_classes: int = 16,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Draw ideal pictures, feature maps, explanations, neighbours and a map, and write the ``visuals`` artifact.

    Args:
        destination: an existing folder; receives ``visuals.json``, JPEGs of at most 60 kB and animations of at most
            110 kB.
        model_path: a ``model`` artifact; ``model.json`` names the backbone.
        dataset_path: the ``dataset`` artifact; one of its test pictures goes through the layers.
        features_path: the ``features`` artifact, for the map and the nearest training pictures; None leaves both out.
        evaluation_path: the ``evaluation`` artifact, whose mistakes are explained and looked up; without it the
            pictures that are explained are random ones.
        backbone_weights: where the ImageNet classifier's weights come from, as for
            :func:`graftflow.backbones.build_imagenet_classifier`; with ``"none"``, or where they
            cannot be had, its pictures are left out and ``note`` says why.
        ideal_classes: ImageNet classes to draw, e.g. ``["Siamese cat", "zebra"]``.
        num_trained_classes: how many of the trained model's own classes to draw, ≥ 0, first ones.
        steps: gradient steps for an ImageNet class, ≥ 1; a trained class takes half of them.
        seed: fixes the noise that the pictures start from, their jitter, the choice of test pictures, and the shuffled
            weights of the check.

    Returns:
        What was written to ``visuals.json``. ``probability`` is that of the picture in the file.

    Raises:
        InputError: where a setting is out of range, a class is no ImageNet class, the test split
            is empty, or the artifacts are of different pictures.
    """
    folder, dataset = Path(destination), Path(dataset_path)
    if steps < 1:
        raise InputError(f"steps must be at least 1. Received: {steps}.")
    if num_trained_classes < 0:
        raise InputError(f"num_trained_classes must be at least 0. Received: {num_trained_classes}.")
    wanted = {name: imagenet_index(name) for name in ideal_classes}
    classes = datasets.load_info(dataset).classes
    classifier = load_classifier(model_path)
    backbone = read_json(Path(model_path) / "model.json")["backbone"]["name"]
    test = _test_paths(dataset, classes)
    mistakes = _mistakes(evaluation_path)

    network, note = _imagenet_classifier(backbone, backbone_weights) if wanted else (None, "")
    ideal = [] if network is None else _write_ideal(folder, network, "ImageNet", wanted, steps, seed)
    trained = {name: index for index, name in enumerate(classes[:num_trained_classes])}
    ideal += _write_ideal(folder, classifier, "trained", trained, -(-steps // 2), seed)
    path = list(test)[int(np.random.default_rng(seed).integers(len(test)))]
    image = read_by_path(dataset, "test", [path])[path]
    pixels = preprocessing.decode_batch(image[None], classifier.input_shape[1])
    save_jpeg(folder / "picture.jpg", pixels[0].numpy())
    result: dict[str, Any] = {
        "ideal": ideal,
        "feature_maps": write_feature_maps(folder, classifier, pixels),
        "picture": {"file": "picture.jpg", "path": path, "label": test[path]},
        "note": note,
        "explanations": write_explanations(
            folder,
            classifier,
            classes=classes,
            dataset_path=dataset,
            pictures=_explained(test, mistakes, seed),
            seed=seed,
        ),
        "neighbours": [],
        "map": None,
    }
    if features_path is not None:
        result["neighbours"] = write_neighbours(
            folder,
            dataset_path=dataset,
            features_path=features_path,
            mistakes=mistakes[:MOST_NEIGHBOURS],
        )
        result["map"] = write_projection(
            folder,
            dataset_path=dataset,
            features_path=features_path,
            mistaken=_mistaken(evaluation_path),
            seed=seed,
        )
    write_json(folder / "visuals.json", result)
    return result


def _imagenet_classifier(backbone: str, weights: str) -> tuple[Any, str]:
    """Return the classifier, or None and why there is none."""
    if weights == "none":
        return None, "No ImageNet pictures: the backbone was built with weights='none'."
    try:
        return backbones.build_imagenet_classifier(backbone, weights=weights), ""
    except InputError as error:
        return None, f"No ImageNet pictures: {error}"


def _write_ideal(
    folder: Path, model: keras.Model, kind: str, indices: Mapping[str, int], steps: int, seed: int
) -> list[dict[str, Any]]:
    names = list(indices)
    groups = [names[start : start + _TOGETHER] for start in range(0, len(names), _TOGETHER)]
    progress = Progress(f"ideal pictures of {kind} classes", total=len(groups) * steps, unit="steps")
    animated = kind == "ImageNet"
    rows: list[dict[str, Any]] = []
    if not groups:
        return rows
    artist = Artist(model, SIZE if animated else _TRAINED_SIZE)
    for group in groups:
        drawings = artist.draw(
            [indices[name] for name in group],
            steps=steps,
            seed=seed,
            num_frames=_NUM_FRAMES if animated else 0,
            advance=progress.advance,
        )
        for name, (pixels, frames) in zip(group, drawings, strict=True):
            stem = f"ideal-{kind.lower()}-{len(rows)}"
            save_jpeg(folder / f"{stem}.jpg", pixels)
            row: dict[str, Any] = {
                "file": f"{stem}.jpg",
                "class": name,
                "network": kind,
                "steps": steps,
            }
            if animated:
                row["animation"] = f"{stem}.webp"
                write_animation(folder / row["animation"], frames, most_bytes=_ANIMATION_BYTES)
            rows.append(row)
    # Of the pictures as they stand in their files; all at once: one call of a model that is not compiled.
    files = tf.constant([(folder / row["file"]).read_bytes() for row in rows])
    seen = model(preprocessing.decode_batch(files, model.input_shape[1]), training=False)
    for row, probabilities in zip(rows, np.asarray(seen), strict=True):
        row["probability"] = float(probabilities[indices[row["class"]]])
    return rows


def _test_paths(dataset: Path, classes: Sequence[str]) -> dict[str, str]:
    """Return path → class of every test picture, in the split's order."""
    if datasets.split_size(dataset, "test") == 0:
        raise InputError(f"the test split must hold pictures. Received: none in '{dataset}'.")
    records = datasets.read_split(dataset, "test").prefetch(64).as_numpy_iterator()
    return {record["path"].decode(): classes[record["label"]] for record in records}


def _mistakes(evaluation_path: str | Path | None) -> list[dict[str, Any]]:
    if evaluation_path is None:
        return []
    return list(read_json(Path(evaluation_path) / "evaluation.json")["mistakes"])


def _mistaken(evaluation_path: str | Path | None) -> dict[str, str]:
    """Return path → predicted class of every mistake of the evaluation."""
    if evaluation_path is None:
        return {}
    with open(Path(evaluation_path) / "predictions.csv", newline="", encoding="utf-8") as file:
        return {
            row["path"]: row["predicted"] for row in csv.DictReader(file) if row["predicted"] != row["label"]
        }


def _explained(
    test: Mapping[str, str], mistakes: Sequence[Mapping[str, Any]], seed: int
) -> list[dict[str, str]]:
    """Choose pictures to explain: the worst mistakes first, then random others."""
    wrong = [mistake["path"] for mistake in mistakes]
    others = [path for path in test if path not in set(wrong)]
    np.random.default_rng(seed).shuffle(others)
    paths = [*wrong[:MOST_EXPLAINED_MISTAKES], *others][:MOST_EXPLAINED]
    missing = [path for path in paths if path not in test]
    if missing:
        raise InputError(
            f"The evaluation must be of this data set's test pictures. Received: '{missing[0]}', which is none."
        )
    return [{"path": path, "label": test[path]} for path in paths]
