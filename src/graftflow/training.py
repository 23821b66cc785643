"""Fine-tuning: the last blocks at a low learning rate, kept only where validation says it is better."""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from graftflow import backbones, datasets, files
from graftflow.errors import InputError
from graftflow.features import frozen_function, pixels_of
from graftflow.preprocessing import decode
from graftflow.progress import Progress

# Decoded validation pictures are kept in memory up to this number: 0.6 GB at 224 pixels.
_CACHED_PICTURES = 1000


def build_classifier(features_model: Any, kernel: Any, bias: Any) -> keras.Model:
    """Put a linear head onto a feature extractor.

    Args:
        features_model: what :func:`graftflow.backbones.build` returned.
        kernel: ``float32 (d, k)``, the head's weights.
        bias: ``float32 (k,)``.

    Returns:
        Model from pixels ``(n, s, s, 3)`` in [0, 1] to probabilities ``(n, k)``; layers ``preprocessing``,
        ``backbone``, ``dropout``, ``logits`` and ``probabilities``.
    """
    x = keras.layers.Dropout(0.2, seed=0, name="dropout")(features_model.output)
    logits = keras.layers.Dense(kernel.shape[1], dtype="float32", name="logits")
    outputs = keras.layers.Activation("softmax", dtype="float32", name="probabilities")(logits(x))
    logits.set_weights([kernel, bias])
    return keras.Model(features_model.input, outputs, name="classifier")


def load_classifier(path: str | Path) -> keras.Model:
    """Load ``model.keras`` of a ``model`` artifact, for inference.

    Raises:
        InputError: where the artifact holds no model that can be read.
    """
    import graftflow.preprocessing  # noqa: F401 - registers the layer that the file names

    try:
        return keras.models.load_model(Path(path) / "model.keras", compile=False)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"A model artifact must hold a readable model.keras. Received: '{path}' ({reason})."
        ) from error


def augment(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirror, crop and shift the light of one picture, at random.

    Args:
        pixels: ``float32 (s, s, 3)`` in [0, 1].
        seed: ``int (2,)``; the same seed gives the same picture.

    Returns:
        The same shape and range: mirrored with probability 1/2, cropped to 80 to 100 % of the side and resized,
        brightness shifted by at most 0.1, contrast scaled by 0.8 to 1.2.
    """
    size = pixels.shape[0]
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
    pixels = tf.image.stateless_random_flip_left_right(pixels, seeds[0])
    side = tf.random.stateless_uniform((), seeds[1], 0.8, 1.0)
    corner = tf.random.stateless_uniform((2,), seeds[2]) * (1.0 - side)
    box = tf.concat([corner, corner + side], axis=0)
    pixels = tf.image.crop_and_resize(pixels[None], box[None], [0], (size, size))[0]
    pixels = tf.image.stateless_random_brightness(pixels, 0.1, seeds[3])
    pixels = tf.image.stateless_random_contrast(pixels, 0.8, 1.2, seeds[4])
    return tf.clip_by_value(pixels, 0.0, 1.0)


def unfreeze_last_blocks(model: Any, backbone: str, num_blocks: int) -> None:
    """Make the last blocks of the backbone trainable; BatchNorm stays in inference mode everywhere.

    Args:
        model: a classifier.
        backbone: the backbone's name.
        num_blocks: how many blocks, counted from the end, at least 1.

    Raises:
        InputError: where the backbone has fewer blocks.
    """
    network = model.get_layer("backbone")
    blocks = backbones.blocks(backbone, network)
    if not 1 <= num_blocks <= len(blocks):
        raise InputError(
            f"num_blocks must be between 0 (no fine-tuning) and {len(blocks)} for {backbone}. "
            f"Received: {num_blocks}"
        )
    network.trainable = True
    first = blocks[-num_blocks][1]
    for index, layer in enumerate(network.layers):
        normalises = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = index >= first and not normalises


class _ProgressCallback(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, epochs: int, steps: int) -> None:
        super().__init__()
        self._epochs, self._steps = epochs, steps

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        label = f"fine-tuning, epoch {epoch + 1} of at most {self._epochs},"
        self._progress = Progress(label, total=self._steps, unit="batches")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._progress.advance()


def _scores(model: Any, batches: Any, input_size: int) -> dict[str, float]:
    """Return accuracy (fraction) and log loss (nats) on batches of pixels and labels."""
    function = frozen_function(model, input_size)
    correct, loss, total = 0, 0.0, 0
    for pixels, labels in batches:
        probabilities = function(pixels).numpy()
        y = labels.numpy()
        correct += int((probabilities.argmax(axis=1) == y).sum())
        loss -= float(np.log(np.maximum(probabilities[np.arange(len(y)), y], 1e-12)).sum())
        total += len(y)
    return {"accuracy": correct / total, "log_loss": loss / total}


def is_better(candidate: dict[str, float], incumbent: dict[str, float]) -> bool:
    """Return whether validation prefers ``candidate``: no less accuracy, and a smaller log loss."""
    return candidate["accuracy"] >= incumbent["accuracy"] and candidate["log_loss"] < incumbent["log_loss"]


def check_settings(*, num_blocks: int, epochs: int, learning_rate: float, batch_size: int) -> None:
    """Raise InputError for a setting of :func:`write_model` that is out of its range."""
    if num_blocks < 0:
        raise InputError(f"num_blocks must be at least 0. Received: {num_blocks}")
    if epochs < 1:
        raise InputError(f"epochs must be at least 1. Received: {epochs}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be a positive number. Received: {learning_rate}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1. Received: {batch_size}")


def write_model(
    destination: str | Path,
    *,
    dataset_path: str | Path,
    head_path: str | Path,
    weights: str,
    num_blocks: int,
    epochs: int,
    learning_rate: float,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Fine-tune, and write the better of frozen and fine-tuned classifier into an existing folder.

    Args:
        destination: an existing folder; becomes a ``model`` artifact.
        dataset_path: a ``dataset`` artifact.
        head_path: a ``head`` artifact trained on that dataset.
        weights: the backbone's weights; must be those the head was trained on.
        num_blocks: how many of the last blocks to train; 0 keeps the frozen classifier.
        epochs: at most so many passes over the training pictures; stops after two without a better log loss.
        learning_rate: of Adam.
        batch_size: pictures a step.
        seed: fixes order, augmentation and dropout.

    Returns:
        What stands in ``model.json``.

    Raises:
        InputError: for a setting out of range, or weights that are not the head's.
    """
    check_settings(num_blocks=num_blocks, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size)
    head = files.read_json(Path(head_path) / "head.json")
    backbone = head["backbone"]["name"]
    size = int(head["backbone"]["input_size"])
    features_model = backbones.build(backbone, weights=weights)
    identity = backbones.identity(backbone, features_model, weights=weights)
    if identity["weights_sha256"] != head["backbone"]["weights_sha256"]:
        raise InputError(
            f"The backbone must have the weights that the head was trained on "
            f"({head['backbone']['weights']}, {head['backbone']['weights_sha256'][:12]}…). "
            f"Received: '{weights}' ({identity['weights_sha256'][:12]}…)"
        )
    with np.load(Path(head_path) / "head.npz") as arrays:
        model = build_classifier(features_model, arrays["kernel"], arrays["bias"])
    if num_blocks:
        unfreeze_last_blocks(model, backbone, num_blocks)

    validation = pixels_of(dataset_path, "validation", size, batch_size=batch_size).map(
        lambda batch: (batch["pixels"], batch["label"])
    )
    if datasets.split_size(dataset_path, "validation") <= _CACHED_PICTURES:
        validation = validation.cache()
    frozen = _scores(model, validation, size)
    summary: dict[str, Any] = {
        "backbone": identity,
        "classes": head["classes"],
        "chosen": "head",
        "unfrozen_blocks": num_blocks,
        "head": frozen,
        "fine_tuned": None,
        "history": [],
    }
    if num_blocks:
        start = model.get_weights()
        summary["history"] = _fit(
            model,
            _training_batches(dataset_path, size, batch_size=batch_size, seed=seed),
            validation,
            checkpoint=Path(destination) / "checkpoint.weights.h5",
            steps=-(-datasets.split_size(dataset_path, "train") // batch_size),
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
        )
        summary["fine_tuned"] = _scores(model, validation, size)
        if is_better(summary["fine_tuned"], frozen):
            summary["chosen"] = "fine-tuned"
        else:
            model.set_weights(start)
    model.get_layer("backbone").trainable = False
    model.save(Path(destination) / "model.keras")
    files.write_json(Path(destination) / "model.json", summary)
    return summary


def _training_batches(dataset_path: str | Path, size: int, *, batch_size: int, seed: int) -> tf.data.Dataset:
    """Endless augmented batches of pixels and labels, the same for the same seed."""
    records = datasets.read_split(dataset_path, "train")
    count = datasets.split_size(dataset_path, "train")
    # Shuffles encoded bytes, some 50 kB a picture: 4,096 of them are 200 MB.
    shuffled = records.shuffle(min(count, 4096), seed=seed, reshuffle_each_iteration=True).repeat()

    def example(index: tf.Tensor, record: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = decode(record["image"], size)
        return augment(pixels, tf.stack([tf.cast(seed, tf.int64), index])), record["label"]

    return shuffled.enumerate().map(example, tf.data.AUTOTUNE).batch(batch_size).prefetch(2)


def _fit(
    model: Any,
    train: tf.data.Dataset,
    validation: tf.data.Dataset,
    *,
    checkpoint: Path,
    steps: int,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> list[dict[str, float]]:
    """Train what is trainable; leave the model at its best epoch by validation log loss."""
    keras.utils.set_random_seed(seed)
    logits = keras.Model(model.input, model.get_layer("logits").output)
    logits.compile(
        optimizer=keras.optimizers.Adam(learning_rate, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # Keras' "auto" picks XLA, which on CPU was measured 14 times slower.
        jit_compile=False,
    )
    history = logits.fit(
        train,
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=validation,
        verbose=0,
        shuffle=False,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                checkpoint, monitor="val_loss", save_best_only=True, save_weights_only=True
            ),
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=2),
            keras.callbacks.TerminateOnNaN(),
            _ProgressCallback(epochs, steps),
        ],
    ).history
    if checkpoint.exists():
        logits.load_weights(checkpoint)
        checkpoint.unlink()
    rows = zip(history["loss"], history["val_loss"], history["val_accuracy"], strict=False)
    return [
        {
            "epoch": epoch,
            "train_loss": float(loss),
            "validation_log_loss": float(val_loss),
            "validation_accuracy": float(accuracy),
        }
        for epoch, (loss, val_loss, accuracy) in enumerate(rows, start=1)
        if math.isfinite(loss) and math.isfinite(val_loss)
    ]
