"""Training of the tail: AdamW with a rate for each block, warm-up and cosine decay, averaged weights, and resuming."""

import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from graftflow import distribution, files, seals
from graftflow.activations import ViewSource
from graftflow.adversarial_training import RISE, Adversary, has_collapsed, preference
from graftflow.augmentation import mix
from graftflow.progress import Progress
from graftflow.recipes import Recipe

Array = npt.NDArray[Any]

# Tensor cores, which make 16 bits faster, came with this compute capability (NVIDIA Volta).
_TENSOR_CORES = (7, 0)


class DiscriminativeAdamW(keras.optimizers.AdamW):  # type: ignore[misc]
    """AdamW whose rate is scaled for each variable.

    Args:
        factors: pairs of a ``keras.Variable`` and what its rate is multiplied with; 1 for variables not named.
        **settings: of ``keras.optimizers.AdamW``.
    """

    def __init__(self, factors: Iterable[tuple[Any, float]], **settings: Any) -> None:
        super().__init__(**settings)
        self._factors = {self._var_key(variable): factor for variable, factor in factors}

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Apply one gradient at the variable's own rate."""
        factor = self._factors.get(self._var_key(variable), 1.0)
        super().update_step(gradient, variable, learning_rate * factor)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        """Leave gradients as they are: they are summed over the devices before they are clipped."""
        return grads_and_vars


def resolve_precision(precision: str) -> str:
    """Return what ``auto`` means on this machine; other values as they are."""
    if precision != "auto":
        return precision
    devices = tf.config.list_physical_devices("GPU")
    capable = bool(devices) and all(
        tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0)) >= _TENSOR_CORES
        for device in devices
    )
    return "mixed_float16" if capable else "float32"


class Trainer:
    """Trains a tail on activations, or with an adversary on pixels.

    Args:
        model: ``keras.Model`` from activations at the cut to logits ``(n, k)``; what is trainable in it is trained.
        recipe: how.
        block_depths: for the path of a variable its block's distance from the end; what is not named is the head.
        class_weights: ``float (k,)``, what an example of each class counts.
        num_batches: steps an epoch.
        adversary: attacks the pictures of every step; all values are then pixels ``(n, s, s, 3)`` in [0, 1].
    """

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        *,
        block_depths: Mapping[str, int],
        class_weights: Array,
        num_batches: int,
        adversary: Adversary | None = None,
    ) -> None:
        recipe.check()
        distribution.check_batch_size(recipe.batch_size)
        self._model, self._recipe, self._adversary = model, recipe, adversary
        self._class_weights = class_weights.astype(np.float32)
        self._num_batches = num_batches
        self._precision = resolve_precision(recipe.precision)
        factors = [
            (variable, recipe.layer_decay ** block_depths.get(variable.path, 0))
            for variable in model.trainable_variables
        ]
        self._optimizer = self._build_optimizer(factors)
        # All devices compute the same averages.
        same = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self._averages = [tf.Variable(v.value, **same) for v in model.trainable_variables]
        self._steps = tf.Variable(0.0, **same)
        self._train_step = tf.function(self._step)
        self._shared_step = tf.function(self._step_of_all, reduce_retracing=True)
        first = adversary.trunk if adversary else model
        self._predict = tf.function(
            lambda x: self._logits(x, training=False),
            input_signature=[tf.TensorSpec((None, *first.input_shape[1:]))],
        )

    def _build_optimizer(self, factors: list[tuple[Any, float]]) -> Any:
        recipe = self._recipe
        total = recipe.epochs * self._num_batches
        warmup = min(round(recipe.warmup_fraction * total), total - 1)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else recipe.learning_rate,
            decay_steps=total - warmup,
            warmup_target=recipe.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
        optimizer = DiscriminativeAdamW(
            factors,
            learning_rate=schedule,
            weight_decay=recipe.weight_decay,
            global_clipnorm=recipe.clip_norm,
        )
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        if self._precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(self._model.trainable_variables)
        return optimizer

    def _logits(self, values: Any, *, training: bool) -> Any:
        if self._adversary:
            values = self._adversary.trunk(values, training=False)
        return self._model(values, training=training)

    def _step(self, values: Any, targets: Any, weights: Any, share: Any, order: Any) -> Any:
        if self._recipe.mixup:
            values, targets, weights = mix(values, targets, weights, share=share, order=order)
        return self._learn(values, targets, weights, tf.reduce_sum(weights))

    def _step_of_all(self, values: Any, targets: Any, weights: Any, total: Any) -> Any:
        """Let every device learn from its rows; returns the loss of the whole batch."""
        strategy = tf.distribute.get_strategy()
        losses = strategy.run(self._learn, (values, targets, weights, total))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _split_step(self, values: Any, targets: Any, weights: Any, share: Any, order: Any) -> Any:
        if self._recipe.mixup:
            values, targets, weights = mix(values, targets, weights, share=share, order=order)
        rows = distribution.split_rows(values.numpy(), targets.numpy())
        counted = distribution.split_weights(weights.numpy())
        return self._shared_step(*rows, counted, tf.reduce_sum(weights))

    def _learn(self, values: Any, targets: Any, weights: Any, total: Any) -> Any:
        """Take one step from these rows, and those of the other devices; returns their part of the loss.

        Args:
            values: ``(n, …)``.
            targets: class probabilities ``float32 (n, k)``.
            weights: of the rows, ``float32 (n,)``.
            total: the sum of the whole batch's weights, a scalar.
        """
        if self._adversary:
            values = self._adversary.attack(values, targets, self._steps)
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self._logits(values, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))
            loss = tf.reduce_sum(weights * losses) / total
            scaled = self._optimizer.scale_loss(loss)
        gradients = distribution.summed(tape.gradient(scaled, [v.value for v in variables]))
        self._optimizer.apply(gradients, variables)
        self._steps.assign_add(1.0)
        if self._recipe.ema_decay:
            # Averages over few steps would remember where training began.
            decay = tf.minimum(self._recipe.ema_decay, (1.0 + self._steps) / (10.0 + self._steps))
            for average, variable in zip(self._averages, variables, strict=True):
                average.assign(decay * average + (1.0 - decay) * variable.value)
        return loss

    def logits(self, values: Array) -> Array:
        """Return logits ``float32 (n, k)`` of activations ``(n, …)``, with an adversary of pixels."""
        size = self._recipe.batch_size
        parts = [self._predict(values[start : start + size]).numpy() for start in range(0, len(values), size)]
        return np.concatenate(parts).astype(np.float32)

    def fit(
        self,
        source: ViewSource,
        validation: tuple[Array, Array],
        *,
        checkpoint: Path,
        least_accuracy: float = 0.0,
    ) -> list[dict[str, float]]:
        """Train until the last epoch, or until validation no longer gets better; keep the best epoch's weights.

        The best has the lowest log loss; with an adversary see :func:`graftflow.adversarial_training.preference`, and
        training also ends where :func:`graftflow.adversarial_training.has_collapsed` says so.

        After each epoch everything that the next one depends on is written to ``checkpoint``; a trainer of the same
        recipe that finds it goes on from there, with the result of an unbroken run.

        Args:
            source: training batches.
            validation: activations (with an adversary pixels) and labels that choose the epoch.
            checkpoint: a file; the one of the epoch before lies beside it. A damaged one is told of and not used:
                the earlier one is, or training begins anew, with the same result.
            least_accuracy: what an epoch of adversarial training must reach without attack.

        Returns:
            One row an epoch: ``epoch``, ``train_loss``, ``validation_log_loss``, ``validation_accuracy``, and with an
            adversary ``validation_robust_accuracy``.
        """
        keras.utils.set_random_seed(self._recipe.seed)
        (least_accuracy,) = distribution.agreed([least_accuracy])
        policies = self._set_policies()
        state = _State(history=[], best=[v.numpy() for v in self._model.trainable_variables])
        kept_states = (
            _read_checkpoint(path, self._variables(), len(state.best))
            for path in (checkpoint, _earlier(checkpoint))
        )
        if resumed := next(filter(None, kept_states), None):
            state, values = resumed
            for variable, value in zip(self._variables(), values, strict=True):
                variable.assign(value)
        history = state.history
        while len(history) < self._recipe.epochs and not self._is_over(history, least_accuracy):
            train_loss = self.train_epoch(source, len(history))
            weights = [v.numpy() for v in self._model.trainable_variables]
            kept = [average.numpy() for average in self._averages] if self._recipe.ema_decay else weights
            self._assign(kept)
            figures = {"train_loss": train_loss, **self._validate(validation)}
            row = {
                "epoch": len(history) + 1,
                **dict(zip(figures, distribution.agreed([*figures.values()]), strict=True)),
            }
            self._assign(weights)
            if not all(map(math.isfinite, row.values())):
                break
            rank = self._rank(row, least_accuracy)
            if all(rank > self._rank(earlier, least_accuracy) for earlier in history):
                state.best = kept
            history.append(row)
            try:
                _write_checkpoint(checkpoint, state, self._variables())
            except OSError as error:  # a full disk costs the next try time, not this one its result
                print(f"fine-tuning: epoch {len(history)} is not kept for the next try ({error})", flush=True)
        self._assign(state.best)
        for layer, policy in policies:
            layer.dtype_policy = policy
        return history

    def train_epoch(self, source: ViewSource, number: int) -> float:
        """Train one epoch, counted from 0, and return the mean of its batches' losses."""
        label = f"fine-tuning, epoch {number + 1} of at most {self._recipe.epochs},"
        progress, losses = Progress(label, total=self._num_batches, unit="batches"), []
        step = self._split_step if distribution.num_replicas() > 1 else self._train_step
        for values, targets, weights, share, order in self._examples(source, number):
            losses.append(step(values, targets, weights, share, order))
            progress.advance()
        return float(np.mean([loss.numpy() for loss in losses]))

    def _examples(self, source: ViewSource, number: int) -> Iterator[tuple[Any, ...]]:
        generator = np.random.Generator(np.random.PCG64([self._recipe.seed, 3, number]))
        num_classes, smoothing = len(self._class_weights), self._recipe.label_smoothing
        for values, labels in source.epoch(number):
            targets = np.eye(num_classes, dtype=np.float32)[labels]
            targets = targets * (1 - smoothing) + smoothing / num_classes
            share = generator.beta(self._recipe.mixup, self._recipe.mixup) if self._recipe.mixup else 1.0
            order = generator.permutation(len(labels)) if self._recipe.mixup else np.arange(len(labels))
            yield (
                tf.constant(values),
                tf.constant(targets.astype(np.float32)),
                tf.constant(self._class_weights[labels]),
                tf.constant(share, tf.float32),
                tf.constant(order, tf.int32),
            )

    def _validate(self, validation: tuple[Array, Array]) -> dict[str, float]:
        scores = score(self.logits(validation[0]), validation[1])
        figures = {"validation_log_loss": scores["log_loss"], "validation_accuracy": scores["accuracy"]}
        if self._adversary:
            figures["validation_robust_accuracy"] = float(self._adversary.withstood(*validation).mean())
        return figures

    def _rank(self, row: dict[str, float], least_accuracy: float) -> tuple[float, ...]:
        return preference(row, least_accuracy) if self._adversary else (-row["validation_log_loss"],)

    def _is_over(self, history: list[dict[str, float]], least_accuracy: float) -> bool:
        if self._adversary and has_collapsed(history):
            print(
                "Catastrophic overfitting: the network lost most of what it withstood; an earlier epoch is kept."
            )
            return True
        ranks = [self._rank(row, least_accuracy) for row in history]
        patience = self._recipe.patience
        # While ε rises no epoch says what training comes to.
        least = patience + (math.ceil(RISE * self._recipe.epochs) if self._adversary else 0)
        return len(ranks) > least and ranks.index(max(ranks)) < len(ranks) - patience

    def _variables(self) -> list[Any]:
        """Return everything that the next step depends on, always in the same order."""
        return [*self._model.variables, *self._optimizer.variables, *self._averages, self._steps]

    def _assign(self, values: list[Array]) -> None:
        for variable, value in zip(self._model.trainable_variables, values, strict=True):
            variable.assign(value)

    def _set_policies(self) -> list[tuple[Any, Any]]:
        """Let the tail's layers compute in 16 bits where the recipe says so; returns what they computed in before."""
        if self._precision == "float32":
            return []
        layers = [
            layer
            for layer in self._model._flatten_layers(include_self=False)
            if layer.weights and not isinstance(layer, keras.Model) and layer.name != "logits"
        ]
        before = [(layer, layer.dtype_policy) for layer in layers]
        for layer in layers:
            layer.dtype_policy = keras.DTypePolicy(self._precision)
        return before


@dataclass
class _State:
    history: list[dict[str, float]]
    best: list[Array]


def score(logits: Array, labels: Array) -> dict[str, float]:
    """Return accuracy (fraction) and log loss (nats) of logits ``(n, k)``."""
    from graftflow.heads import log_loss

    wide = logits.astype(np.float64)
    return {"accuracy": float((wide.argmax(axis=1) == labels).mean()), "log_loss": log_loss(wide, labels)}


def _earlier(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.earlier")


def _write_checkpoint(path: Path, state: _State, variables: list[Any]) -> None:
    arrays = {f"variable-{i}": variable.numpy() for i, variable in enumerate(variables)}
    arrays |= {f"best-{i}": value for i, value in enumerate(state.best)}
    arrays["history"] = np.frombuffer(json.dumps(state.history).encode(), np.uint8)
    with files.atomic_file(path) as aside:
        with aside.open("wb") as file:
            np.savez(file, **arrays)
        seals.end_with_digest(aside)
        if path.exists():
            os.replace(path, _earlier(path))


def _read_checkpoint(path: Path, variables: list[Any], num_best: int) -> tuple[_State, list[Array]] | None:
    """Return state and values of variables, or None where there is no checkpoint, or a damaged or foreign one."""
    if path.exists() and not seals.ends_with_digest(path):
        print(f"The checkpoint '{path}' is cut or altered, and is not used.", flush=True)
        path.unlink()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            values = [arrays[f"variable-{i}"] for i in range(len(variables))]
            best = [arrays[f"best-{i}"] for i in range(num_best)]
            history = json.loads(arrays["history"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    shapes = [tuple(variable.shape) for variable in variables]
    if shapes != [value.shape for value in values]:
        return None
    return _State(history, best), values
