"""The part of the ``visuals`` artifact that says where answers come from: maps over test pictures, and their check."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from graftflow import preprocessing
from graftflow.picture_files import Array, read_by_path, save_jpeg
from graftflow.progress import Progress
from graftflow.saliency import Explainer, shuffled_weights, similarity

STEPS = 32
_SIDE = 224
# Maps of a network whose weights are shuffled must have little in common with the real ones.
_ALIKE = 0.5


def write_explanations(
    folder: Path,
    classifier: keras.Model,
    *,
    classes: Sequence[str],
    dataset_path: str | Path,
    pictures: Sequence[Mapping[str, str]],
    seed: int,
) -> dict[str, Any]:
    """Write, for each picture, the picture, Grad-CAM and integrated gradients side by side, for the class predicted.

    Args:
        folder: an existing folder; receives ``explained-<number>.jpg`` and ``explained-shuffled.jpg``, the maps of the
            first picture with the network's weights shuffled.
        classifier: see :class:`graftflow.saliency.Explainer`.
        classes: its classes, in its order.
        dataset_path: the ``dataset`` artifact.
        pictures: ``path`` and ``label`` of test pictures, at least 1.
        seed: fixes how the weights are shuffled.

    Returns:
        ``{"layer": of Grad-CAM, "steps": of integrated gradients, "pictures": [{"file","path","label","predicted",
        "probability","difference": the predicted class's logit minus that of a grey picture,"error": how far the map's
        sum is from it, as a fraction}],"sanity": {"file","grad_cam","integrated_gradients": mean rank correlation of
        the maps with those of shuffled weights,"passed": both are below 0.5}}``.

    Raises:
        InputError: the data set lacks a picture, or the backbone has no maps.
    """
    explainer = Explainer(classifier)
    images = read_by_path(dataset_path, "test", [picture["path"] for picture in pictures])
    encoded = tf.stack([images[picture["path"]] for picture in pictures])
    pixels = preprocessing.decode_batch(encoded, explainer.side)
    probabilities = np.asarray(classifier(pixels, training=False))
    predicted = probabilities.argmax(axis=1).tolist()
    progress = Progress("explanations", total=2 * len(pictures), unit="pictures")
    cams = explainer.grad_cam(pixels, predicted)
    attributed = explainer.integrated_gradients(pixels, predicted, steps=STEPS)
    progress.advance(len(pictures))
    with shuffled_weights(classifier, seed=seed):
        random_cams = explainer.grad_cam(pixels, predicted)
        random_maps = explainer.integrated_gradients(pixels, predicted, steps=STEPS, tolerance=np.inf).maps
    progress.advance(len(pictures))
    rows = []
    for number, picture in enumerate(pictures):
        file = f"explained-{number}.jpg"
        save_jpeg(folder / file, _strip(pixels[number].numpy(), cams[number], attributed.maps[number]))
        row = {
            "predicted": classes[predicted[number]],
            "probability": float(probabilities[number].max()),
            "difference": float(attributed.difference[number]),
            "error": float(attributed.error[number]),
        }
        rows.append({"file": file, "path": picture["path"], "label": picture["label"], **row})
    save_jpeg(folder / "explained-shuffled.jpg", _strip(pixels[0].numpy(), random_cams[0], random_maps[0]))
    alike = {
        "grad_cam": similarity(cams, random_cams),
        "integrated_gradients": similarity(attributed.maps, random_maps),
    }
    passed = max(alike.values()) < _ALIKE
    sanity = {"file": "explained-shuffled.jpg", **alike, "passed": passed}
    return {"layer": explainer.layer, "steps": STEPS, "pictures": rows, "sanity": sanity}


def _strip(pixels: Array, cam: Array, attribution: Array) -> Array:
    """Lay the picture, Grad-CAM over it and the attribution over its greyed self side by side; RGB in [0, 1]."""
    from matplotlib import colormaps

    picture = _resized(pixels)
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    heat = np.clip(_resized(cam, Image.Resampling.BICUBIC), 0, 1)
    warm = 0.45 * grey + 0.55 * colormaps["inferno"](heat)[..., :3]
    # A window of nine pixels: single pixels flicker, and are below what a person can see.
    smooth = tf.nn.avg_pool2d(attribution[None, ..., None], 9, 1, "SAME").numpy()[0, ..., 0]
    share = smooth / max(float(np.percentile(np.abs(smooth), 99.5)), 1e-12)
    share = np.clip(_resized(share), -1, 1)
    colour = np.where(share[..., None] > 0, (1.0, 0.55, 0.0), (0.15, 0.5, 1.0))
    strength = np.abs(share)[..., None] ** 0.7
    signed = (1 - strength) * (0.15 + 0.45 * grey) + strength * colour
    return np.concatenate([picture, warm, signed], axis=1)


def _resized(plane: Array, method: Image.Resampling = Image.Resampling.BILINEAR) -> Array:
    planes = plane[..., None] if plane.ndim == 2 else plane
    resized = [
        np.asarray(Image.fromarray(np.asarray(planes[..., c], np.float32)).resize((_SIDE, _SIDE), method))
        for c in range(planes.shape[2])
    ]
    return resized[0] if plane.ndim == 2 else np.stack(resized, axis=2)
