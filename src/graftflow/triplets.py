"""Triplets: an original, the change ten times enlarged, and the attacked picture, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graftflow.attack_curves import Curve
from graftflow.attacked_pictures import AttackedPictures
from graftflow.predictions import Array, predict, through_png

MOST = 4


def write_triplets(
    destination: Path, logits_of: Any, pictures: AttackedPictures, curve: Curve, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Write the strips of a few pictures, each at the smallest ε that fooled it.

    Args:
        destination: an existing folder; receives ``triplets/*.png``.
        logits_of: the classifier, from pixels to logits.
        pictures: what was attacked.
        curve: the attack whose pictures are shown.
        classes: names of the classes.

    Returns:
        A row a strip, as ``adversarial.json`` holds them.
    """
    (destination / "triplets").mkdir()
    rows = []
    for number, index in enumerate(_telling(pictures, curve)):
        epsilon, levels = curve.first[index]
        adversarial = through_png(levels[None] / np.float32(255))[0]
        original = pictures.pixels_at(index)
        grey = np.clip(0.5 + 10 * (adversarial - original), 0, 1)
        strip = np.concatenate([original, grey, adversarial], axis=1)
        file = f"triplets/{number}.png"
        Image.fromarray(np.round(strip * 255).astype(np.uint8)).save(destination / file)
        after = predict(logits_of, adversarial[None])[0]
        rows.append(
            {
                "file": file,
                "attack": curve.attack.name,
                "epsilon": round(255 * epsilon, 6),
                "label": classes[int(pictures.labels[index])],
                "original": _best(pictures.probabilities[index], classes),
                "adversarial": _best(after, classes),
            }
        )
    return rows


def _telling(pictures: AttackedPictures, curve: Curve) -> list[int]:
    """Choose fooled pictures of different radii and classes, of these the surest before."""
    chosen: list[int] = []
    left = sorted(curve.first)
    while left and len(chosen) < MOST:

        def rank(index: int) -> tuple[int, int, float]:
            radius, label = curve.first[index][0], pictures.labels[index]
            return (
                sum(curve.first[other][0] == radius for other in chosen),
                sum(pictures.labels[other] == label for other in chosen),
                -float(pictures.probabilities[index].max()),
            )

        chosen.append(min(left, key=rank))
        left.remove(chosen[-1])
    return sorted(chosen, key=lambda index: (curve.first[index][0], index))


def _best(probabilities: Array, classes: Sequence[str]) -> dict[str, Any]:
    index = int(probabilities.argmax())
    return {"label": classes[index], "probability": float(probabilities[index])}
