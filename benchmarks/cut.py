"""Fine-tuning with the frozen part computed once, against the plain loop: ``python -m benchmarks.cut --data PATH``.

The plain loop is ``keras.Model.fit`` of the whole network on pictures that are decoded and augmented anew each epoch,
with the same trainable layers, optimizer, rate, epochs, batch size and head to begin with. Both run one after the other
on the same splits, in an order that changes with the seed, and neither stops early, so that both do the same epochs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BACKBONE = "efficientnet_lite0"


def prepare(data: str, seed: int, folder: Path) -> dict[str, Path]:
    """Make data set, features and head; returns their folders."""
    from graftflow import datasets, features, heads

    paths = {name: folder / name for name in ("dataset", "features", "head", "model")}
    for path in paths.values():
        path.mkdir()
    datasets.write_dataset(
        paths["dataset"], source=data, seed=seed, validation_fraction=0.15, test_fraction=0.15
    )
    features.write_features(
        paths["features"], dataset_path=paths["dataset"], backbone=BACKBONE, weights="imagenet"
    )
    heads.write_head(paths["head"], features_path=paths["features"])
    return paths


def with_the_cut(paths: dict[str, Path], recipe: Any, num_blocks: int) -> tuple[Any, float, float]:
    """Train the tail on cached activations; returns the classifier, the seconds, and those of the last epoch."""
    from graftflow import backbones, datasets, heads, training
    from graftflow.activations import ViewSource
    from graftflow.cuts import cut, unfreeze_last_blocks
    from graftflow.fine_tuning import Trainer
    from graftflow.passes import frozen_function

    started = time.monotonic()
    network = backbones.build(BACKBONE)
    model = training.build_classifier(network, heads.read_layers(paths["head"]))
    depths = unfreeze_last_blocks(network, BACKBONE, num_blocks)
    parts = cut(network, BACKBONE, num_blocks)
    with tempfile.TemporaryDirectory() as scratch:
        source = ViewSource(
            paths["dataset"],
            frozen_function(parts.trunk, 224),
            shape=parts.shape,
            input_size=224,
            num_views=recipe.num_views,
            folder=Path(scratch),
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            augmentation=recipe.augmentation,
        )
        trainer = Trainer(
            training.tail_of(model, parts),
            recipe,
            block_depths=depths,
            class_weights=np.ones(len(datasets.load_info(paths["dataset"]).classes)),
            num_batches=source.num_batches,
        )
        for number in range(recipe.epochs):
            begun = time.monotonic()
            trainer.train_epoch(source, number)
    ended = time.monotonic()
    return model, ended - started, ended - begun


def plain_loop(paths: dict[str, Path], recipe: Any, num_blocks: int) -> tuple[Any, float, float]:
    """Train the whole network with ``fit``; returns the classifier, the seconds, and those of the last epoch."""
    import keras
    import tensorflow as tf

    from graftflow import backbones, datasets, heads, training
    from graftflow.augmentation import augment
    from graftflow.cuts import unfreeze_last_blocks
    from graftflow.preprocessing import decode

    started = time.monotonic()
    network = backbones.build(BACKBONE)
    model = training.build_classifier(network, heads.read_layers(paths["head"]))
    unfreeze_last_blocks(network, BACKBONE, num_blocks)
    count = datasets.split_size(paths["dataset"], "train")

    def example(index: Any, record: Any) -> tuple[Any, Any]:
        pixels = decode(record["image"], 224)
        return augment(pixels, tf.stack([tf.cast(recipe.seed, tf.int64), index])), record["label"]

    records = datasets.read_split(paths["dataset"], "train").shuffle(count, seed=recipe.seed).repeat()
    batches = records.enumerate().map(example, tf.data.AUTOTUNE).batch(recipe.batch_size).prefetch(2)
    steps = -(-count // recipe.batch_size)
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(recipe.learning_rate, recipe.epochs * steps),
            weight_decay=recipe.weight_decay,
            global_clipnorm=recipe.clip_norm,
        ),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    begun: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.append(time.monotonic()))
    model.fit(
        batches, steps_per_epoch=steps, epochs=recipe.epochs, verbose=0, shuffle=False, callbacks=[clock]
    )
    ended = time.monotonic()
    return model, ended - started, ended - begun[-1]


def test_answers(model: Any, dataset: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels of the test pictures."""
    from graftflow.features import pixels_of
    from graftflow.passes import frozen_function

    function = frozen_function(model, 224)
    batches = list(pixels_of(dataset, "test", 224, batch_size=32))
    probabilities = np.concatenate([function(batch["pixels"]).numpy() for batch in batches])
    return probabilities, np.concatenate([batch["label"].numpy() for batch in batches])


def main() -> None:
    """Run the benchmark and print its table."""
    from graftflow.comparisons import compare_predictions
    from graftflow.recipes import Recipe

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="closeups", help="a source (default: closeups)")
    parser.add_argument("--seeds", default="0,1,2", help="splits to measure (default: 0,1,2)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--views", type=int, default=Recipe().num_views)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    ways = {"cut": with_the_cut, "plain": plain_loop}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    epochs: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    labels = []
    for seed in map(int, given.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            paths = prepare(given.data, seed, Path(folder))
            recipe = Recipe(epochs=given.epochs, num_views=given.views, seed=seed)
            for name in list(ways)[:: 1 if seed % 2 else -1]:
                model, taken, last = ways[name](paths, recipe, given.blocks)
                probabilities, truth = test_answers(model, paths["dataset"])
                seconds[name].append(taken)
                epochs[name].append(last)
                answers[name].append(probabilities)
                print(
                    f"seed {seed}, {name}: {taken:.1f} s, accuracy {(probabilities.argmax(1) == truth).mean():.3f}"
                )
            labels.append(truth)
    compared = compare_predictions(
        np.concatenate(answers["cut"]),
        np.concatenate(answers["plain"]),
        np.concatenate(labels),
        names=("the cut", "the plain loop"),
    )
    ratios = [plain / cut for cut, plain in zip(seconds["cut"], seconds["plain"], strict=True)]
    print(f"\n{'':12}seconds  last epoch  accuracy  log loss")
    for name, which in (("cut", "first"), ("plain", "second")):
        taken, accuracy = np.mean(seconds[name]), compared["accuracy"][which]
        print(
            f"{name:12}{taken:7.1f}{np.median(epochs[name]):12.2f}{accuracy:10.3f}{compared['log_loss'][which]:10.3f}"
        )
    print(
        f"plain : cut = {np.mean(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}). {compared['sentence']}"
    )
    if given.output:
        figures = {"seconds": seconds, "epochs": epochs, "ratios": ratios, "compared": compared}
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
