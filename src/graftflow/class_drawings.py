"""One class drawn: what a trained model or ImageNet's classifier wants to see of it, as files to keep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from graftflow import ideal_images
from graftflow.errors import InputError
from graftflow.files import atomic_directory, write_json
from graftflow.ideal_images import Drawing
from graftflow.imagenet_classes import imagenet_index
from graftflow.picture_attacks import classes_of
from graftflow.training import load_classifier

SIZE, STEPS, _FRAMES = 224, 128, 24


class ClassDrawing(NamedTuple):
    """An ideal image and whose it is.

    Attributes:
        drawing: pixels, probability and frames.
        class_name: as it was asked for.
        network: ``"trained"``, or ``"ImageNet"`` with the backbone's name.
    """

    drawing: Drawing
    class_name: str
    network: str


def draw_class(
    class_name: str,
    *,
    model_path: str | Path | None,
    backbone: str,
    weights: str = "imagenet",
    seed: int = 0,
    size: int = SIZE,
    steps: int = STEPS,
    advance: Callable[[], None] = lambda: None,
) -> ClassDrawing:
    """Draw the ideal image of a class of a trained model or, where that has none of the name, of ImageNet.

    Args:
        class_name: exactly a class of the model, or the first name of an ImageNet class, e.g. ``"Siamese cat"``.
        model_path: a ``model`` artifact, or ``None`` for ImageNet alone.
        backbone: whose ImageNet classifier draws, a name of the table in :mod:`graftflow.backbones`.
        weights: of that classifier, as for :func:`graftflow.backbones.build_imagenet_classifier`.
        seed: fixes the noise and the jitter.
        size: side of the picture in pixels, 32 … 1024.
        steps: of Adam, ≥ 1.
        advance: called after every step.

    Raises:
        InputError: where a setting is out of range, or neither the model nor ImageNet has the class: the message names
            the nearest of ImageNet and all of the model.
    """
    trained = classes_of(model_path) if model_path is not None else []
    if class_name in trained:
        classifier, index = load_classifier(str(model_path)), trained.index(class_name)
        found = ideal_images.draw_ideal(
            classifier, [index], size=size, steps=steps, seed=seed, num_frames=_FRAMES, advance=advance
        )
        return ClassDrawing(found[0], class_name, "trained")
    try:
        imagenet_index(class_name)
    except InputError as error:
        own = f" The trained model has: {', '.join(trained)}." if trained else ""
        raise InputError(f"{error}{own}") from error
    drawing = ideal_images.draw(
        class_name, backbone=backbone, weights=weights, seed=seed, size=size, steps=steps, advance=advance
    )
    return ClassDrawing(drawing, class_name, f"ImageNet {backbone}")


def write_class_drawing(destination: str | Path, drawn: ClassDrawing) -> dict[str, Any]:
    """Write a drawing into a new folder.

    Args:
        destination: the folder; made here, whole or not at all. Receives ``ideal.png``, ``ideal.webp``, which shows how
            it came about, and ``ideal.json``.
        drawn: what :func:`draw_class` returned.

    Returns:
        What stands in ``ideal.json``: ``{"class", "network", "probability": of the class, in ``ideal.png``}``.
    """
    drawing = drawn.drawing
    result = {"class": drawn.class_name, "network": drawn.network, "probability": drawing.probability}
    with atomic_directory(destination) as folder:
        Image.fromarray(np.round(255 * drawing.pixels).astype(np.uint8)).save(folder / "ideal.png")
        ideal_images.write_animation(folder / "ideal.webp", drawing.frames)
        write_json(folder / "ideal.json", result)
    return result
