"""The training pictures whose features are most like those of a picture that was mistaken."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftflow.errors import InputError
from graftflow.files import read_json
from graftflow.picture_files import read_by_path, save_thumbnail

THUMBNAIL_SIDE = 112

Features = npt.NDArray[np.float32]


def read_features(path: str | Path, split: str) -> dict[str, npt.NDArray[Any]]:
    """Read one split of a ``features`` artifact.

    Returns:
        ``features`` float32 (n, d), ``labels`` int64 (n,), ``paths`` str (n,).

    Raises:
        InputError: the artifact has no such file, or it is none.
    """
    try:
        with np.load(Path(path) / f"{split}.npz", allow_pickle=False) as file:
            return {name: file[name] for name in ("features", "labels", "paths")}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"A features artifact must hold {split}.npz, as merge_features writes it. "
            f"Received: '{path}' ({type(error).__name__})."
        ) from error


def nearest(
    features: Features, among: Features, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the rows of ``among`` at the smallest angle to each row of ``features``.

    Args:
        features: ``float32 (n, d)``.
        among: ``float32 (m, d)``.
        count: how many, ≥ 1; fewer where m is smaller.

    Returns:
        Indices into ``among`` ``int64 (n, count)``, nearest first, and cosines ``float32 (n, count)``; a row of zeros
        has the cosine 0 with everything.
    """
    cosines = _of_length_one(features) @ _of_length_one(among).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order.astype(np.int64), np.take_along_axis(cosines, order, axis=1)


def write_neighbours(
    folder: Path,
    *,
    dataset_path: str | Path,
    features_path: str | Path,
    mistakes: Sequence[Mapping[str, Any]],
    count: int = 4,
) -> list[dict[str, Any]]:
    """Write thumbnails of mistakes and of the training pictures nearest to each of them.

    The features are those of the frozen backbone, before any fine-tuning.

    Args:
        folder: an existing folder; receives ``neighbours-<mistake>-<rank>.jpg``, the mistake itself at rank 0.
        dataset_path: the ``dataset`` artifact.
        features_path: the ``features`` artifact made of it.
        mistakes: ``path``, ``label``, ``predicted`` and ``probability`` of test pictures, as ``evaluation.json`` has.
        count: training pictures a mistake.

    Returns:
        For each mistake ``{"file","path","label","predicted","probability","nearest": [{"file","path","label",
        "cosine"}]}``, nearest first.

    Raises:
        InputError: the artifacts do not name the same pictures.
    """
    if not mistakes:
        return []
    classes = read_json(Path(features_path) / "features.json")["classes"]
    train, test = read_features(features_path, "train"), read_features(features_path, "test")
    places = {path: place for place, path in enumerate(test["paths"].tolist())}
    missing = [mistake["path"] for mistake in mistakes if mistake["path"] not in places]
    if missing:
        raise InputError(
            f"The features must be of the data set that was evaluated. Missing: '{missing[0]}' in '{features_path}'."
        )
    wrong = test["features"][[places[mistake["path"]] for mistake in mistakes]]
    rows, cosines = nearest(wrong, train["features"], count)
    near_paths = train["paths"][rows].tolist()
    images = read_by_path(dataset_path, "test", [mistake["path"] for mistake in mistakes])
    near_images = read_by_path(dataset_path, "train", {path for paths in near_paths for path in paths})
    found = []
    for number, mistake in enumerate(mistakes):
        file = f"neighbours-{number}-0.jpg"
        save_thumbnail(folder / file, images[mistake["path"]], THUMBNAIL_SIDE)
        near = []
        for rank, path in enumerate(near_paths[number]):
            near_file = f"neighbours-{number}-{rank + 1}.jpg"
            save_thumbnail(folder / near_file, near_images[path], THUMBNAIL_SIDE)
            label = classes[train["labels"][rows[number, rank]]]
            cosine = float(cosines[number, rank])
            near.append({"file": near_file, "path": path, "label": label, "cosine": cosine})
        said = {name: mistake[name] for name in ("path", "label", "predicted", "probability")}
        found.append({"file": file, **said, "nearest": near})
    return found


def _of_length_one(rows: Features) -> Features:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)
