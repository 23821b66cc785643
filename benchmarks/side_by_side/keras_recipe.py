"""The Keras guide "Transfer learning & fine-tuning" (keras.io/guides/transfer_learning), its end-to-end example."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side.stopwatch import Stopwatch, arguments

SIZE = 224
BATCH_SIZE = 32
FROZEN_EPOCHS, FINE_TUNING_EPOCHS = 20, 10  # the guide's
LONGEST = 100  # of the variant that stops early


def base_model(weights: Path) -> Any:
    """Return EfficientNet-Lite0 without its pooling, as ``keras.applications`` would with ``include_top=False``."""
    import keras

    from graftflow import efficientnet_lite

    network = efficientnet_lite.build(include_top=False, weights=weights)
    return keras.Model(network.input, network.get_layer("top_relu").output, name="efficientnet_lite0")


def rescaling() -> Any:
    """Return the layer that maps 0…255 to what EfficientNet-Lite0 was trained on."""
    import keras

    return keras.layers.Rescaling(scale=1 / 128, offset=-127 / 128)


def pictures_of(folder: Path) -> tuple[Any, list[str]]:
    """Read one split with ``image_dataset_from_directory``, picture by picture, in the order of its files.

    Returns:
        Pixels in 0…255 with labels, and the pictures' paths (class/file).
    """
    import keras

    dataset = keras.utils.image_dataset_from_directory(
        folder, image_size=(SIZE, SIZE), batch_size=None, shuffle=False, label_mode="int", verbose=False
    )
    return dataset, [Path(path).relative_to(folder).as_posix() for path in dataset.file_paths]


def both_classes(logits: Any) -> list[list[float]]:
    """Turn logits ``(n, 1)`` of the second class into probabilities of both."""
    second = 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64)[:, 0]))
    return [[1 - p, p] for p in second.tolist()]


def main() -> None:
    """Run the recipe and write its record."""
    settings = arguments()
    watch = Stopwatch(settings.started)
    import keras
    from keras import layers

    keras.utils.set_random_seed(settings.seed)
    name = "keras-longer" if settings.longer else "keras"

    watch.enter("data")
    train, paths = pictures_of(settings.pictures / "train")
    train = train.cache().shuffle(len(paths), seed=settings.seed).batch(BATCH_SIZE).prefetch(10)
    validation = pictures_of(settings.pictures / "validation")[0].cache().batch(BATCH_SIZE).prefetch(10)
    test, test_paths = pictures_of(settings.pictures / "test")
    test = test.batch(BATCH_SIZE).prefetch(10)

    watch.enter("train")
    base = base_model(settings.weights)
    base.trainable = False
    augmentation = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
    inputs = keras.Input((SIZE, SIZE, 3))
    x = rescaling()(augmentation(inputs))
    x = layers.GlobalAveragePooling2D()(base(x, training=False))
    model = keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.2)(x)))

    def fit(stage: str, epochs: int, optimizer: Any) -> None:
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],
            jit_compile=False,
        )

        def note(epoch: int, logs: dict[str, float]) -> None:
            watch.validated(stage, epoch + 1, logs["val_accuracy"], logs["val_loss"])

        callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=note)]
        if settings.longer:
            epochs = LONGEST
            stop = keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True)
            callbacks.append(stop)
        epochs = 1 if settings.quick else epochs
        model.fit(train, epochs=epochs, validation_data=validation, callbacks=callbacks, verbose=0)

    fit("frozen", FROZEN_EPOCHS, keras.optimizers.Adam())
    result = watch.ready(f"{name}, frozen")
    with watch.excluded():
        watch.predicted(result, test_paths, both_classes(model.predict(test, verbose=0)))
    base.trainable = True
    # The guide calls the base with training=False for this; inside a functional model Keras 3 lets fit() overrule it.
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    fit("fine-tuned", FINE_TUNING_EPOCHS, keras.optimizers.Adam(1e-5))
    result = watch.ready(name)

    watch.enter("evaluate")
    watch.predicted(result, test_paths, both_classes(model.predict(test, verbose=0)))
    watch.write(settings.record, distributions=("tensorflow", "keras"))


if __name__ == "__main__":
    main()
