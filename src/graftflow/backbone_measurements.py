"""What a backbone is worth on a data set: accuracy, seconds, megabytes and milliseconds, of a head on it.

Importing this module loads no TensorFlow.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftflow import backbones, checks, files
from graftflow.errors import InputError

FILE = "measurement.json"
# The served batch whose time is told beside that of single pictures.
BATCH = 32
# Timed calls: at most so many, or those of so many seconds.
_MOST_CALLS, _SECONDS = 64, 8.0
_FEWEST_CALLS = 5


@dataclass(frozen=True)
class Candidate:
    """A backbone to measure, with its weights.

    Attributes:
        backbone: name in the table of backbones.
        weights: see :func:`graftflow.backbones.check_weights`.
    """

    backbone: str
    weights: str = "imagenet"

    @property
    def name(self) -> str:
        """What tables call it: ``vgg16``, or ``vgg16=WEIGHTS`` where those are not ImageNet's own."""
        return self.backbone if self.weights == "imagenet" else f"{self.backbone}={self.weights}"


def parse_candidates(text: str) -> tuple[Candidate, ...]:
    """Read a list of backbones, e.g. ``"efficientnet_lite0, vgg16=/weights/vgg16.h5, mobilenetv2=none"``.

    Args:
        text: names separated by commas; ``=`` and a weights setting may follow each.

    Raises:
        InputError: for none, an unknown name, one that stands there twice, or a weights file that is no file.
    """
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, given, weights = entry.partition("=")
        weights = weights.strip()
        if given and not weights:
            raise InputError(f"backbones must be names or name=weights. Received: '{entry}', without weights")
        candidate = Candidate(backbones.get(name.strip()).name, weights or "imagenet")
        backbones.check_weights(candidate.weights)
        if candidate in found:
            raise InputError(f"backbones must name each one once. Received: '{candidate.name}' twice")
        found.append(candidate)
    if not found:
        raise InputError(
            f"backbones must name at least one of {', '.join(backbones.BACKBONES)}. Received: '{text}'"
        )
    return tuple(found)


def check_comparison(settings: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """Check the settings of a comparison before any work is done.

    Args:
        settings: ``backbones``, and of the pipeline's own settings those that there are.

    Returns:
        The backbones to measure.

    Raises:
        InputError: for the first setting that breaks its rule.
    """
    candidates = parse_candidates(settings["backbones"])
    checks.check_run(settings)
    return candidates


def write_measurement(
    destination: str | Path,
    *,
    dataset_path: str | Path,
    backbone: str,
    seed: int = 0,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Train a head on a frozen backbone, export it, and measure it: into an existing folder.

    Weights that cannot be had are a result as well: then ``measurement.json`` holds the reason, and nothing else is
    written.

    Args:
        destination: an existing folder; becomes a ``measurement`` artifact: ``measurement.json`` and the exported
            model's ``predictions.csv`` on the test pictures.
        dataset_path: a ``dataset`` artifact.
        backbone: a name, or ``name=weights``.
        seed: fixes the bootstrap.
        cache: folder that outlives this step, for the features, ``""`` for its default; ``None`` keeps none.

    Returns:
        What stands in ``measurement.json``: ``{"name", "weights", "error": "" or why there is nothing more, "backbone":
        identity, "classes", "dataset_digest", "pictures": of the test split, "accuracy" and "log_loss": {"value",
        "low", "high"}, "confidence", "seconds": {"features", "head"}, "cached": pictures whose features were at hand,
        "megabytes": of the served model in 10⁶ bytes, "milliseconds": {"single": median of single pictures, "batch": a
        picture, in batches of 32}}``.

    Raises:
        InputError: for an unknown backbone, a folder that is no data set, or a cache that cannot be written.
    """
    from graftflow import caches, datasets, evaluation, export, features, heads, training

    (candidate,) = parse_candidates(backbone)
    info = datasets.load_info(dataset_path)
    if cache is not None:
        caches.open_cache(cache)  # its error is not the backbone's
    result: dict[str, Any] = {"name": candidate.name, "weights": candidate.weights, "error": ""}
    with tempfile.TemporaryDirectory(prefix="graftflow-") as scratch:
        folders = {
            name: Path(scratch) / name for name in ("features", "head", "model", "saved_model", "evaluation")
        }
        for folder in folders.values():
            folder.mkdir()
        try:
            extracted = features.write_features(
                folders["features"],
                dataset_path=dataset_path,
                backbone=candidate.backbone,
                weights=candidate.weights,
                cache=cache,
            )
        except InputError as error:
            result["error"] = str(error)
            files.write_json(Path(destination) / FILE, result)
            return result
        started = time.monotonic()
        heads.write_head(folders["head"], features_path=folders["features"])
        head_seconds = time.monotonic() - started
        training.write_model(
            folders["model"],
            dataset_path=dataset_path,
            head_path=folders["head"],
            weights=candidate.weights,
            num_blocks=0,
        )
        export.write_saved_model(
            folders["saved_model"], model_path=folders["model"], dataset_path=dataset_path, version=1
        )
        evaluated = evaluation.write_evaluation(
            folders["evaluation"],
            saved_model_path=folders["saved_model"],
            dataset_path=dataset_path,
            seed=seed,
        )
        version = export.version_folder(folders["saved_model"])
        result.update(
            {
                "backbone": extracted["backbone"],
                "classes": list(info.classes),
                "dataset_digest": info.digest,
                "pictures": evaluated["pictures"],
                "accuracy": evaluated["metrics"]["accuracy"],
                "log_loss": evaluated["metrics"]["log_loss"],
                "confidence": evaluated["confidence"],
                "seconds": {"features": extracted["seconds"], "head": round(head_seconds, 2)},
                "cached": extracted.get("cached", 0),
                "megabytes": round(megabytes_of(version), 2),
                "milliseconds": measure_serving(version, first_test_pictures(dataset_path)),
            }
        )
        shutil.copyfile(folders["evaluation"] / "predictions.csv", Path(destination) / "predictions.csv")
    files.write_json(Path(destination) / FILE, result)
    return result


def megabytes_of(folder: str | Path) -> float:
    """Return the size of a folder's files in 10⁶ bytes."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def first_test_pictures(dataset_path: str | Path) -> list[bytes]:
    """Return the first test pictures as they are stored, at most 32."""
    from graftflow import datasets

    return [record["image"].numpy() for record in datasets.read_split(dataset_path, "test").take(BATCH)]


def measure_serving(version_folder: str | Path, pictures: Sequence[bytes]) -> dict[str, float]:
    """Time an exported model on encoded pictures, through ``serving_default``, as a server calls it.

    What a network and a server add is not in these figures. Both shapes are called before they are timed: the first
    calls trace and allocate.

    Args:
        version_folder: a SavedModel.
        pictures: JPEG or PNG files, at least one.

    Returns:
        ``{"single": median milliseconds of one picture alone, "batch": milliseconds a picture in batches of 32}``.

    Raises:
        InputError: for no pictures.
    """
    import tensorflow as tf

    from graftflow import export

    if not pictures:
        raise InputError("Timing needs at least one picture. Received: none")
    classify = export.load_signatures(version_folder)["serving_default"]
    singles = [tf.constant([picture]) for picture in pictures]
    whole = tf.constant([pictures[i % len(pictures)] for i in range(BATCH)])

    def call(batch: Any) -> None:
        classify(image_bytes=batch)["probabilities"].numpy()  # waits for the answer

    single = median_seconds(lambda number: call(singles[number % len(singles)]))
    batch = median_seconds(lambda _: call(whole))
    return {"single": round(1000 * single, 2), "batch": round(1000 * batch / BATCH, 2)}


def median_seconds(call: Callable[[int], object]) -> float:
    """Return the median seconds of a call, after three that do not count.

    Args:
        call: takes the number of the call, from 0; called at most 64 times, and 5 times or more.
    """
    for number in range(3):
        call(number)
    seconds: list[float] = []
    while len(seconds) < _MOST_CALLS and (len(seconds) < _FEWEST_CALLS or sum(seconds) < _SECONDS):
        started = time.perf_counter()
        call(len(seconds))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
