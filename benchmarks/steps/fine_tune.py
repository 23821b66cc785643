"""fine_tune: limit, the frozen part once a view and the tail once an epoch; peer, ``keras.Model.fit`` of the whole."""

from typing import Any

import numpy as np

from benchmarks import cut
from benchmarks.rows import Row
from benchmarks.steps.clocks import Setting, clocked, each, median, total

_BLOCKS, _EPOCHS, _BATCH = 2, 8, 32


def measure(setting: Setting) -> tuple[list[Row], dict[str, Any]]:
    """Run the step with the defaults of a run, its limit and the plain loop with as many epochs, in turns."""
    from dataclasses import replace

    from graftflow import datasets
    from graftflow.recipes import Recipe
    from graftflow.training import write_model

    paths = setting.artifacts
    trunk, predict, train, pixels, activations, labels = _bare(paths)
    counts = [datasets.split_size(paths["dataset"], split) for split in ("train", "validation")]
    steps, limits, peers, rounds = [], [], [], []
    for _ in range(setting.rounds):
        folder = setting.fresh("model")

        def step(folder: Any = folder) -> Any:
            return write_model(
                folder,
                dataset_path=paths["dataset"],
                head_path=paths["head"],
                weights="imagenet",
                num_blocks=_BLOCKS,
                recipe=Recipe(epochs=_EPOCHS),
            )

        found, taken = clocked(step)
        epochs, views = len(found["history"]), found["views"]
        bare = {
            "trunk": each(trunk, pixels),
            "predict": each(predict, activations, batches=(_BATCH,)),
            "train": each(train, activations, labels, batches=(_BATCH,)),
        }
        limit = total(
            [
                bare["trunk"].times(views * counts[0] + counts[1]),
                bare["predict"].times((epochs + 1) * counts[1]),
                bare["train"].times(epochs * counts[0]),
            ]
        )
        recipe = replace(Recipe(), epochs=epochs)
        _, slow = clocked(lambda recipe=recipe: cut.plain_loop(paths, recipe, _BLOCKS))
        steps.append(taken)
        limits.append(limit)
        peers.append(slow)
        rounds.append(
            {
                "epochs": epochs,
                "views": views,
                "step": vars(taken),
                "limit": vars(limit),
                "plain": vars(slow),
                **{name: vars(spent) for name, spent in bare.items()},
            }
        )
    taken, limit, slow = median(steps), median(limits), median(peers)
    note = (
        f"{views} views through the frozen part, {epochs} epochs of the tail; building and decoding are ours"
    )
    return [
        Row("fine_tune", "s", taken.seconds, limit=limit.seconds, peers={"keras fit": slow.seconds},
            ahead=True, note=note),
        Row("fine_tune, CPU", "s", taken.cpu, limit=limit.cpu, peers={"keras fit": slow.cpu},
            note="seconds of all cores"),
    ], {"rounds": rounds}  # fmt: skip


def _bare(paths: Any) -> tuple[Any, ...]:
    """Compile the frozen part, the tail, and a step of the tail with its weights' gradients; and what they take."""
    import tensorflow as tf

    from graftflow import backbones, heads, training
    from graftflow.cuts import cut as cut_at
    from graftflow.cuts import unfreeze_last_blocks
    from graftflow.passes import frozen_function

    network = backbones.build(cut.BACKBONE)
    model = training.build_classifier(network, heads.read_layers(paths["head"]))
    unfreeze_last_blocks(network, cut.BACKBONE, _BLOCKS)
    parts = cut_at(network, cut.BACKBONE, _BLOCKS)
    tail, side = training.tail_of(model, parts), int(model.input_shape[1])
    signature = [tf.TensorSpec((None, *parts.shape)), tf.TensorSpec((None,), tf.int64)]

    @tf.function(input_signature=signature[:1])
    def predict(x: Any) -> Any:
        return tail(x, training=False)

    @tf.function(input_signature=signature)
    def train(x: Any, y: Any) -> Any:
        weights = [variable.value for variable in tail.trainable_variables]
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, tail(x, training=True))
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, weights)

    generator = np.random.default_rng(0)
    pixels = tf.constant(generator.uniform(0, 1, (_BATCH, side, side, 3)).astype(np.float32))
    trunk = frozen_function(parts.trunk, side)
    labels = tf.constant(np.arange(_BATCH) % model.output_shape[-1], tf.int64)
    return trunk, predict, train, pixels, trunk(pixels), labels
