"""A data set of coloured squares and a classifier of 16 pixels, laid out as the real artifacts are."""

import colorsys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from graftflow import datasets, preprocessing
from graftflow.files import write_json
from graftflow.seals import seal

SIDE = 16


def write_small_dataset(root: Path, classes: tuple[str, ...] = ("blue", "green", "red")) -> Path:
    """Write noisy squares of one hue a class, twelve of them for test; returns the artifact."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / "pictures" / name).mkdir(parents=True)
        colour = np.array(colorsys.hsv_to_rgb(number / len(classes), 0.25, 0.6))
        for picture in range(20):
            pixels = np.clip(colour + generator.normal(0, 0.15, (24, 24, 3)), 0, 1)
            path = root / "pictures" / name / f"{picture}.png"
            Image.fromarray(np.uint8(255 * pixels)).save(path)
    dataset = root / "dataset"
    dataset.mkdir()
    source = f"directory:{root / 'pictures'}"
    datasets.write_dataset(dataset, source=source, seed=0, validation_fraction=0.2, test_fraction=0.2)
    seal(dataset)
    return dataset


def build_small_classifier(num_classes: int) -> Any:
    """Build preprocessing → nested backbone → logits → probabilities for 16 pixels, weights random."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((SIDE, SIDE, 3))
    inner = x = keras.Input((SIDE, SIDE, 3))
    for stride, width in ((1, 8), (2, 12)):
        x = keras.layers.Conv2D(width, 3, stride, padding="same", name=f"conv{width}")(x)
        x = keras.layers.ReLU(name=f"relu{width}")(x)
    backbone = keras.Model(inner, keras.layers.GlobalAveragePooling2D()(x), name="backbone")
    scaled = preprocessing.PixelPreprocessing((2.0,) * 3, (-1.0,) * 3, name="preprocessing")(pixels)
    logits = keras.layers.Dense(num_classes, name="logits")(backbone(scaled))
    return keras.Model(pixels, keras.layers.Activation("softmax", name="probabilities")(logits))


def write_small_model(path: Path, dataset: Path) -> Path:
    """Train the small classifier on the data set's training split; returns the artifact."""
    classes = datasets.load_info(dataset).classes
    model = build_small_classifier(len(classes))
    examples = list(datasets.read_split(dataset, "train").as_numpy_iterator())
    pixels = preprocessing.decode_batch(tf.constant([e["image"] for e in examples]), SIDE)
    labels = np.array([e["label"] for e in examples])
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(pixels, labels, epochs=60, batch_size=len(labels), verbose=0)
    path.mkdir()
    model.save(path / "model.keras")
    write_json(path / "model.json", {"backbone": {"name": "efficientnet_lite0"}, "classes": classes})
    seal(path)
    return path
