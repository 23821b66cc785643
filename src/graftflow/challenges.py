"""The ``challenge`` artifact: how a classifier does on pictures unlike those that it was trained on."""

import csv
import io
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from graftflow import datasets, familiarity, files, metrics
from graftflow.challenge_pictures import Challenger, Challengers, read_challengers, stratified
from graftflow.encodings import upright
from graftflow.errors import InputError
from graftflow.passes import frozen_function
from graftflow.preprocessing import decode
from graftflow.progress import Progress
from graftflow.records import Spool, untuned
from graftflow.report.challenges import verdict_of, write_page
from graftflow.sources import parse_source
from graftflow.splits import check_seed
from graftflow.storage import writing
from graftflow.training import load_classifier

MOST_TRAIN, MOST_OWN = 2000, 1000
SHOWN, SHOWN_SIDE = 12, 320
BINS = 30
_BATCH = 64

Array = npt.NDArray[Any]
Answers = Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True)
class _Answered:
    """What a classifier says about some pictures, one row each."""

    features: Array  # float32 (n, d): the backbone's output
    logits: Array  # float32 (n, k)
    labels: Array  # int64 (n,): index of the model's class, −1 where it has no such class

    def probabilities(self) -> Array:
        return familiarity.probabilities_of(self.logits)


def write_challenge(
    destination: str | Path,
    *,
    source: str,
    dataset_path: str | Path,
    model_path: str | Path,
    num_pictures: int = 500,
    seed: int = 0,
    cache: str | Path | None = None,
    mirrors: Sequence[str] = (),
) -> dict[str, Any]:
    """Show a classifier pictures from elsewhere and write the ``challenge`` artifact into an existing folder.

    The pictures are decoded as in training. Three scores say how strange each is to the model (see
    :mod:`graftflow.familiarity`); the Gaussians of one of them are fitted on at most 2,000 training pictures, the
    thresholds are set on at most 1,000 validation pictures, and what the challenge is compared with are at most 1,000
    test pictures. Accuracy is counted on classes that the model has, whatever the case of their letters.

    Args:
        destination: an existing folder; receives ``challenge.json``, ``scores.csv``, ``challenge.html`` and
            ``pictures/*.jpg``.
        source: ``closeups``, ``digits``, ``directory:PATH`` (with class folders or without),
            ``archive:PATH-or-URL`` or ``tfds:NAME``.
        dataset_path: the ``dataset`` artifact that the model was trained on.
        model_path: a ``model`` artifact.
        num_pictures: how many pictures of the source at most, ≥ 1; each class gives its share.
        seed: fixes which pictures are taken, of the source and of the data set, and the bootstrap.
        cache: the folder that outlives a step, where downloads are kept.
        mirrors: addresses that are asked before a source's own.

    Returns:
        What stands in ``challenge.json``.

    Raises:
        InputError: a setting out of range; a source that is unknown, missing or without a usable picture; a model
            without the layers ``backbone`` and ``logits``; a data set of other classes than the model's.
    """
    if num_pictures < 1:
        raise InputError(f"num_pictures must be at least 1. Received: {num_pictures}")
    check_seed(seed)
    parse_source(source)
    info = datasets.load_info(dataset_path)
    about = _about_model(model_path)
    if list(info.classes) != about["classes"]:
        raise InputError(
            f"The data set must be the one that the model was trained on, with the classes "
            f"{_few(about['classes'])}. Received: '{dataset_path}' with {_few(info.classes)}"
        )
    folder = Path(destination)
    scratch = folder / ".scratch"
    try:
        with writing(folder):
            scratch.mkdir()
            with Spool(scratch / "pictures") as spool:
                challengers = read_challengers(
                    source,
                    num_pictures=num_pictures,
                    seed=seed,
                    scratch=scratch,
                    spool=spool,
                    cache=cache,
                    mirrors=mirrors,
                )
                summary = _challenge(folder, challengers, spool, Path(dataset_path), Path(model_path), seed)
            summary = {
                "source": source,
                "dataset": {"source": info.source, "digest": info.digest},
                "model": {"backbone": about["backbone"], "classes": about["classes"]},
                "settings": {"num_pictures": num_pictures, "seed": seed},
                "available": challengers.available,
                "note": challengers.note,
                "left_out": [{"path": path, "reason": reason} for path, reason in challengers.left_out],
                **summary,
            }
            summary["verdict"] = verdict_of(summary)
            files.write_json(folder / "challenge.json", summary)
            write_page(folder / "challenge.html", challenge_path=folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return summary


def answers_of(model: Any) -> Answers:
    """Return a classifier as one function from pixels to the backbone's features and the logits.

    Weights are constants, as in :func:`graftflow.passes.frozen_function`.

    Args:
        model: pixels → … → ``backbone`` → … → ``logits`` → ``probabilities``.

    Returns:
        A callable from ``float32 (n, s, s, 3)`` in [0, 1] to ``float32 (n, d)`` and ``float32 (n, k)``.

    Raises:
        InputError: the model has no layers of these names.
    """
    import keras

    names = [layer.name for layer in model.layers]
    if "backbone" not in names[:-1] or "logits" not in names:
        raise InputError(f"A classifier must have the layers 'backbone' and 'logits'. Received: {names}.")
    # The output of a nested model is what the layer behind it is given: its own is not joined to these pixels.
    pooled = model.layers[names.index("backbone") + 1].input
    both = keras.Model(model.inputs[0], [pooled, model.get_layer("logits").output])

    def joined(pixels: Any, training: bool) -> Any:
        found = both(pixels, training=training)
        return tf.concat([tf.cast(part, tf.float32) for part in found], axis=1)

    function, width = frozen_function(joined, int(model.input_shape[1])), int(pooled.shape[-1])

    def answers(pixels: Array) -> tuple[Array, Array]:
        found = function(tf.convert_to_tensor(pixels)).numpy()
        return found[:, :width], found[:, width:]

    return answers


def _challenge(
    folder: Path, challengers: Challengers, spool: Spool, dataset_path: Path, model_path: Path, seed: int
) -> dict[str, Any]:
    """Compute all figures of the sample and write its scores and pictures."""
    classes = datasets.load_info(dataset_path).classes
    model = load_classifier(model_path)
    answers, size = answers_of(model), int(model.input_shape[1])
    if model.output_shape[-1] != len(classes):
        raise InputError(
            f"The model must have an output for each of its {len(classes)} classes. "
            f"Received: {model.output_shape[-1]} outputs."
        )
    most = {"train": MOST_TRAIN, "validation": MOST_OWN, "test": MOST_OWN}
    own = {split: _own(answers, size, dataset_path, split, count, seed) for split, count in most.items()}
    pictures = challengers.pictures
    index = {name.casefold(): i for i, name in reversed(list(enumerate(classes)))}
    index |= {name: i for i, name in enumerate(classes)}
    label_of = {p.label: index.get(p.label, index.get(p.label.casefold(), -1)) for p in pictures}
    found = _answer(
        answers,
        size,
        ((spool.get(p.span), label_of[p.label]) for p in pictures),
        total=len(pictures),
        name="the challenge",
    )
    gaussians = familiarity.fit_gaussians(own["train"].features, own["train"].labels)
    score_of: dict[str, Callable[[_Answered], Array]] = {
        "mahalanobis": lambda of: familiarity.mahalanobis_distance(gaussians, of.features),
        "energy": lambda of: familiarity.energy(of.logits),
        "max_softmax": lambda of: familiarity.uncertainty(of.logits),
    }
    scores = {name: score(found) for name, score in score_of.items()}
    rows = {
        name: _score_row(name, scores[name], score(own["test"]), score(own["validation"]), seed)
        for name, score in score_of.items()
    }
    probabilities = found.probabilities()
    top, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    lead = familiarity.leading(rows)
    strange = scores[lead]
    _write_scores(folder / "scores.csv", pictures, [classes[i] for i in top], confidence, scores)
    order = np.argsort(strange, kind="stable")
    sheets = {
        "familiar": order[: min(SHOWN, (len(order) + 1) // 2)],
        "alien": order[::-1][: min(SHOWN, len(order) // 2)],
    }
    (folder / "pictures").mkdir()
    shown = {
        sheet: [
            {
                "path": pictures[i].path,
                "label": pictures[i].label,
                "predicted": classes[top[i]],
                "confidence": float(confidence[i]),
                "score": float(strange[i]),
                "picture": _save(spool.get(pictures[i].span), folder, f"pictures/{sheet}-{rank}.jpg"),
            }
            for rank, i in enumerate(chosen)
        ]
        for sheet, chosen in sheets.items()
    }
    test = own["test"].probabilities()
    return {
        "pictures": len(pictures),
        "labelled": any(p.label for p in pictures),
        "own": {split: len(answered.labels) for split, answered in own.items()},
        "in_dataset": _in_dataset(dataset_path, pictures),
        "accuracy": _accuracy(probabilities, found.labels, seed),
        "own_accuracy": _accuracy(test, own["test"].labels, seed),
        "predicted": {name: float((top == i).mean()) for i, name in enumerate(classes)},
        "confidence": {"challenge": float(confidence.mean()), "test": float(test.max(axis=1).mean())},
        "by_class": _by_class(
            pictures, found.labels, [classes[i] for i in top], confidence, strange > rows[lead]["threshold"]
        ),
        "shrinkage": gaussians.shrinkage,
        "lead": lead,
        "scores": rows,
        **shown,
    }


def _own(answers: Answers, size: int, dataset: Path, split: str, most: int, seed: int) -> _Answered:
    """Answer a sample of one of the model's own splits; of training every class is in it."""
    with open(dataset / "manifest.csv", newline="", encoding="utf-8") as file:
        listed = [(row["path"], row["label"]) for row in csv.DictReader(file) if row["split"] == split]
    chosen = stratified([label for _, label in listed], most, seed=seed, every_class=split == "train")
    wanted = {listed[i][0].encode() for i in chosen}
    records = datasets.read_split(dataset, split).as_numpy_iterator()
    examples = ((r["image"], int(r["label"])) for r in records if r["path"] in wanted)
    return _answer(answers, size, examples, total=len(wanted), name=split)


def _answer(
    answers: Answers, size: int, examples: Iterator[tuple[bytes, int]], *, total: int, name: str
) -> _Answered:
    """Decode pictures as training does and put them through the classifier."""
    labels: list[int] = []

    def images() -> Iterator[bytes]:
        for image, label in examples:
            labels.append(label)
            yield image

    encoded = tf.data.Dataset.from_generator(images, output_signature=tf.TensorSpec((), tf.string))
    encoded = encoded.with_options(untuned())
    batches = encoded.map(lambda image: decode(image, size), tf.data.AUTOTUNE).batch(_BATCH).prefetch(2)
    progress = Progress(f"features of {name}", total=total, unit="pictures")
    found = []
    for pixels in batches:
        found.append(answers(pixels))
        progress.advance(len(pixels))
    features, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _Answered(features, logits, np.asarray(labels, np.int64))


def _score_row(name: str, challenge: Array, test: Array, validation: Array, seed: int) -> dict[str, Any]:
    threshold = familiarity.familiarity_threshold(validation)
    low, high = np.quantile(np.concatenate([challenge, test]), [0.005, 0.995])
    low, high = min(low, threshold), max(high, threshold)
    if name == "max_softmax":  # most are near 0: a logarithmic axis tells them apart
        low = max(low, 1e-6)
        edges = np.geomspace(low, max(high, 2 * low), BINS + 1)
    else:
        edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    shares = {
        whose: (np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] / len(part)).tolist()
        for whose, part in (("challenge", challenge), ("test", test))
    }
    return {
        **familiarity.separation(test, challenge, seed=seed),
        "threshold": threshold,
        "rejected": {
            "challenge": familiarity.rejected(challenge, threshold, seed=seed),
            "test": familiarity.rejected(test, threshold, seed=seed),
        },
        "histogram": {"edges": edges.tolist(), **shares},
    }


def _accuracy(probabilities: Array, labels: Array, seed: int) -> dict[str, Any] | None:
    """Return accuracy and its interval on pictures whose class the model has; None where there are none."""
    known = labels >= 0
    if not known.any():
        return None
    counts = metrics.bootstrap_counts(int(known.sum()), resamples=familiarity.RESAMPLES, seed=seed)
    values = metrics.accuracy(counts, probabilities[known], labels[known])
    figures = metrics.with_interval(values, confidence=familiarity.CONFIDENCE)
    return {**figures, "pictures": int(known.sum())}


def _by_class(
    pictures: Sequence[Challenger],
    labels: Array,
    predicted: Sequence[str],
    confidence: Array,
    strange: Array,
) -> dict[str, dict[str, Any]]:
    """Return, for each class of the challenge, what the model mostly takes it for and how much is ``strange``."""
    names = np.asarray([picture.label for picture in pictures])
    result = {}
    for name in sorted(set(names.tolist()) - {""}):
        inside = names == name
        answer, count = Counter(np.asarray(predicted)[inside].tolist()).most_common(1)[0]
        result[name] = {
            "pictures": int(inside.sum()),
            "known": bool(labels[inside][0] >= 0),
            "predicted": answer,
            "share": count / int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "rejected": float(strange[inside].mean()),
        }
    return result


def _in_dataset(dataset: Path, pictures: Sequence[Challenger]) -> dict[str, int]:
    """Count the challenge's pictures whose very bytes stand in the model's data set, split by split."""
    with open(dataset / "manifest.csv", newline="", encoding="utf-8") as file:
        split_of = {row["sha256"]: row["split"] for row in csv.DictReader(file)}
    found = Counter(split_of[p.sha256] for p in pictures if p.sha256 in split_of)
    return {split: found[split] for split in ("train", "validation", "test")}


def _write_scores(
    path: Path,
    pictures: Sequence[Challenger],
    predicted: Sequence[str],
    confidence: Array,
    scores: dict[str, Array],
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "predicted", "confidence", *scores])
        columns = (confidence, *scores.values())
        for i, picture in enumerate(pictures):
            writer.writerow([picture.path, picture.label, predicted[i], *(f"{c[i]:.9g}" for c in columns)])


def _save(data: bytes, folder: Path, name: str) -> str:
    with Image.open(io.BytesIO(data)) as image:
        small = upright(image).convert("RGB")
        small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        small.save(folder / name, "JPEG", quality=88)
    return name


def _about_model(model_path: str | Path) -> dict[str, Any]:
    """Read the classes and the backbone's name of a ``model`` artifact."""
    try:
        about = files.read_json(Path(model_path) / "model.json")
        return {"classes": list(about["classes"]), "backbone": about["backbone"]["name"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"A model must be a folder with model.keras and model.json, as fine_tune writes it. "
            f"Received: '{model_path}' ({type(error).__name__}: {error})."
        ) from error


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)})" if len(names) > 8 else "")
