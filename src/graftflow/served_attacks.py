"""Attacks on the served model: what fools the model in process, sent to a model server as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graftflow import attacked_pictures, attacks, datasets
from graftflow.attacked_pictures import AttackedPictures
from graftflow.epsilons import whole_levels
from graftflow.errors import InputError
from graftflow.predictions import Array, as_png, in_batches, predict
from graftflow.serving.client import Client, Ranking
from graftflow.training import load_classifier

# What a probability may differ by between this process and a server: sums in another order.
TOLERANCE = 1e-5
_WHEN = ("original", "adversarial")


@dataclass(frozen=True)
class Attacked:
    """Test pictures before and after an attack, and what the model says of them in this process.

    Attributes:
        classes: label i is ``classes[i]``.
        pictures: before the attack.
        adversarial: after it, ``float32 (n, s, s, 3)`` of whole 1/255.
        probabilities: of ``adversarial``, ``float32 (n, k)``.
        epsilon: L-infinity radius, in [1/255, 1].
        steps: of PGD, at most.
    """

    classes: tuple[str, ...]
    pictures: AttackedPictures
    adversarial: Array
    probabilities: Array
    epsilon: float
    steps: int


def attack_served(
    url: str,
    *,
    model_name: str,
    model_path: str | Path,
    dataset_path: str | Path,
    num_pictures: int = 32,
    epsilon: float = 4 / 255,
    steps: int = 10,
    seed: int = 0,
    version: int | None = None,
    label: str | None = None,
    timeout: float = 60.0,
) -> dict[str, Any]:
    """Attack a classifier in this process and ask a model server about the pictures, originals as well.

    Args:
        url: of the server, as for :class:`graftflow.serving.client.Client`: ``http://…`` for REST, ``grpc://…``.
        model_name: the model's name there.
        model_path: the ``model`` artifact that the served version was exported from.
        dataset_path: the ``dataset`` artifact whose test split is attacked.
        num_pictures: how many, ≥ 1; each class gives its share.
        epsilon: L-infinity radius, in [1/255, 1].
        steps: of PGD, ≥ 1.
        seed: fixes the pictures and PGD's random start.
        version: one version by its number; otherwise the newest.
        label: one version by its label, e.g. ``"canary"``.
        timeout: seconds that one request may take.

    Returns:
        As :func:`compare_served`.

    Raises:
        InputError: where a setting is out of range, the test split is empty, the model was trained on other classes, or
            the server cannot be asked or answers otherwise than with these classes.
    """
    attacked = attack_test_pictures(
        model_path=model_path,
        dataset_path=dataset_path,
        num_pictures=num_pictures,
        epsilon=epsilon,
        steps=steps,
        seed=seed,
    )
    with Client(url, model_name, timeout, version=version, label=label, as_is=True) as client:
        return compare_served(client, attacked)


def attack_test_pictures(
    *,
    model_path: str | Path,
    dataset_path: str | Path,
    num_pictures: int = 32,
    epsilon: float = 4 / 255,
    steps: int = 10,
    seed: int = 0,
) -> Attacked:
    """Attack test pictures with untargeted PGD, counted on 8 bits; arguments and errors as :func:`attack_served`."""
    check_radius(epsilon)
    if num_pictures < 1:
        raise InputError(f"num_pictures must be at least 1. Received: {num_pictures}.")
    classes = tuple(datasets.load_info(Path(dataset_path)).classes)
    model = load_classifier(model_path)
    if model.output_shape[-1] != len(classes):
        raise InputError(
            f"the model must have an output for each of the data's {len(classes)} classes. "
            f"Received: {model.output_shape[-1]} outputs."
        )
    logits_of = attacks.logits_model(model)
    size = model.input_shape[1]
    pictures = attacked_pictures.load(logits_of, Path(dataset_path), num_pictures, None, size, seed)
    attack = partial(attacks.pgd, logits_of, epsilon=epsilon, steps=steps, seed=seed, eight_bits=True)
    found = in_batches(attack, pictures.pixels, pictures.labels)
    return Attacked(classes, pictures, found, predict(logits_of, found), epsilon, steps)


def compare_served(client: Client, attacked: Attacked) -> dict[str, Any]:
    """Send originals and adversarial pictures as PNGs and compare, picture by picture, with this process.

    Args:
        client: whom to ask; made with ``as_is=True``, so that the PNGs arrive as they are.
        attacked: what :func:`attack_test_pictures` returned.

    Returns:
        ``{"url", "model", "attack": "PGD", "epsilon" (in 1/255), "steps", "pictures", "attacked": those that were right
        in process before, "in_process" and "served": {"clean_accuracy", "accuracy", "success"}, "tolerance",
        "largest_difference" of a probability, "disagreements": pictures of which the class differs, "agrees": no
        disagreement and no difference above the tolerance, "rows": [{"path", "label", "original" and "adversarial":
        {"in_process" and "served": {"label", "probability"}, "difference"}}]}``. ``success`` is the share, of the
        pictures that were right before, that are wrong afterwards, each as its own side saw them.

    Raises:
        InputError: where the server refuses a picture or its answer lacks one of the classes.
        ServerUnreachableError: where no server answers in time or it does not serve the model.
    """
    pictures, count = attacked.pictures, len(attacked.pictures.labels)
    rankings = client.classify_images([*as_png(pictures.pixels), *as_png(attacked.adversarial)])
    served = np.array([_by_class(ranking, attacked.classes) for ranking in rankings])
    sides = {
        "in_process": (pictures.probabilities, attacked.probabilities),
        "served": (served[:count], served[count:]),
    }
    rows: list[dict[str, Any]] = []
    for index, path in enumerate(pictures.paths):
        row: dict[str, Any] = {"path": path, "label": attacked.classes[int(pictures.labels[index])]}
        for moment, name in enumerate(_WHEN):
            here, there = (sides[side][moment][index] for side in ("in_process", "served"))
            row[name] = {
                "in_process": best(here, attacked.classes),
                "served": best(there, attacked.classes),
                "difference": float(np.abs(here - there).max()),
            }
        rows.append(row)
    answers = [row[name] for row in rows for name in _WHEN]
    largest = max(answer["difference"] for answer in answers)
    disagreements = sum(
        any(row[when]["in_process"]["label"] != row[when]["served"]["label"] for when in _WHEN)
        for row in rows
    )
    return {
        "url": client.url,
        "model": client.model,
        "attack": "PGD",
        "epsilon": round(255 * attacked.epsilon, 6),
        "steps": attacked.steps,
        "pictures": count,
        "attacked": int(pictures.right.sum()),
        **{side: _shares(before, after, pictures.labels) for side, (before, after) in sides.items()},
        "tolerance": TOLERANCE,
        "largest_difference": largest,
        "disagreements": disagreements,
        "agrees": not disagreements and largest <= TOLERANCE,
        "rows": rows,
    }


def check_radius(epsilon: float) -> None:
    """Raise InputError where no picture of 8 bits can differ from its original within ``epsilon``, or it is above 1."""
    if not (epsilon <= 1 and whole_levels(epsilon) >= 1):
        raise InputError(
            "epsilon must lie between 1/255, the smallest change that a PNG carries, and 1. "
            f"Received: {epsilon:.6g}, which is {255 * epsilon:.3g}/255."
        )


def best(probabilities: Array, classes: Sequence[str]) -> dict[str, Any]:
    """Return ``{"label", "probability"}`` of the most probable class."""
    index = int(probabilities.argmax())
    return {"label": classes[index], "probability": float(probabilities[index])}


def _by_class(ranking: Ranking, classes: Sequence[str]) -> list[float]:
    """Return a served answer in the order of ``classes``."""
    scores = dict(ranking)
    if set(scores) != set(classes):
        raise InputError(
            f"the served model must answer with the classes {', '.join(classes)}. "
            f"Received: {', '.join(sorted(scores))}."
        )
    return [scores[name] for name in classes]


def _shares(before: Array, after: Array, labels: Array) -> dict[str, float]:
    right, wrong = before.argmax(axis=1) == labels, after.argmax(axis=1) != labels
    return {
        "clean_accuracy": float(right.mean()),
        "accuracy": float((~wrong).mean()),
        "success": float(wrong[right].mean()) if right.any() else 0.0,
    }
