"""One training on several devices: each takes its rows of a batch, and what they find is summed.

The batch stays as large as the recipe says. Every device gets as many rows as the others; where they do not come out
even, rows of weight 0 fill up. Gradients are summed before they are clipped, and what is random is drawn for the whole
batch, so that a training means the same on one device and on several, up to the order of floating-point sums.

The devices of one machine work by ``tf.distribute.MirroredStrategy``, those of several machines by
``tf.distribute.MultiWorkerMirroredStrategy``, where ``TF_CONFIG`` names the machines. What is built to train must be
built inside the strategy's scope.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from graftflow.errors import InputError

Array = npt.NDArray[Any]


def strategy_of(devices: Sequence[str] = ()) -> Any:
    """Return the ``tf.distribute.Strategy`` that trains on this machine's devices, or on the machines of ``TF_CONFIG``.

    Args:
        devices: names such as ``"GPU:0"``; none takes all GPUs that are visible.

    Returns:
        For at most one device, and one machine, TensorFlow's default strategy, which changes nothing.

    Raises:
        InputError: for a device that TensorFlow does not see, or a ``TF_CONFIG`` that cannot be read.
    """
    if num_machines() > 1:
        return _strategy(())
    seen = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    for name in devices:
        if name.removeprefix("/device:") not in seen:
            raise InputError(f"A device must be one of {', '.join(seen)}. Received: '{name}'")
    wanted = list(devices) or [name for name in seen if name.startswith("GPU:")]
    return _strategy(tuple(wanted)) if len(wanted) > 1 else tf.distribute.get_strategy()


@functools.cache
def _strategy(devices: tuple[str, ...]) -> Any:
    """Return the strategy of some devices, or with none of all machines; in a process always the same.

    A second one counts its sums from the beginning, and TensorFlow takes them for those of the first.
    """
    if not devices:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy(list(devices))


def num_machines() -> int:
    """Return how many machines train together: the workers in ``TF_CONFIG``, 1 where it is not set.

    Raises:
        InputError: for a ``TF_CONFIG`` that cannot be read.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return 1
    try:
        cluster = json.loads(text).get("cluster", {})
        return max(1, sum(len(cluster.get(kind, ())) for kind in ("chief", "worker")))
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            'TF_CONFIG must be JSON such as {"cluster": {"worker": ["host:port"]}, "task": {"type": "worker", '
            f'"index": 0}}}}. Received: {text[:200]!r}'
        ) from error


def num_replicas() -> int:
    """Return how many devices the current strategy has, those of other machines included."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def writes() -> bool:
    """Return whether this process is the one that writes results: of several machines only the first does."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return bool(resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0))


def check_batch_size(batch_size: int) -> None:
    """Raise InputError where a batch has fewer pictures than there are devices."""
    if batch_size < num_replicas():
        raise InputError(
            f"batch_size must be at least the number of devices that share it ({num_replicas()}). "
            f"Received: {batch_size}"
        )


def split_rows(*arrays: Array) -> tuple[Any, ...]:
    """Give each device its rows, in order; where they do not come out even, the last row is repeated.

    Args:
        arrays: ``(n, …)``, n at least 1.

    Returns:
        For each array a value per replica, ``(ceil(n / replicas), …)``.
    """
    size = -(-len(arrays[0]) // num_replicas())
    rows = np.minimum(np.arange(size * num_replicas()), len(arrays[0]) - 1)

    def of_replica(array: Array) -> Callable[[Any], tf.Tensor]:
        def part(context: Any) -> tf.Tensor:
            start = context.replica_id_in_sync_group * size
            return tf.constant(array[rows[start : start + size]])

        return part

    strategy = tf.distribute.get_strategy()
    return tuple(strategy.experimental_distribute_values_from_function(of_replica(array)) for array in arrays)


def split_weights(weights: Array) -> Any:
    """Give each device the weights ``(n,)`` of its rows as :func:`split_rows` does; repeated rows weigh nothing."""
    missing = -len(weights) % num_replicas()
    return split_rows(np.concatenate([weights, np.zeros(missing, weights.dtype)]))[0]


def summed(values: Any) -> Any:
    """Return the sum of a structure of tensors over all devices; inside a replica."""
    if num_replicas() == 1:
        return values
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def spread(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return ``function`` with its rows computed by all devices, in order; on one device the function itself.

    Args:
        function: from ``(n, …)`` to ``(n, …)``, each row for itself.
    """
    if num_replicas() == 1:
        return function
    strategy = tf.distribute.get_strategy()

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def computed(parts: Any) -> Any:
        return strategy.gather(strategy.run(function, (parts,)), axis=0)

    return lambda values: computed(split_rows(np.asarray(values))[0])[: len(values)]


def agreed(values: Sequence[float]) -> list[float]:
    """Return the values of the machine that writes, on all machines, so that all decide the same."""
    if num_machines() == 1 or num_replicas() == 1:
        return list(values)
    strategy = tf.distribute.get_strategy()
    own = tf.constant(values if writes() else [0.0] * len(values), tf.float64)
    first = strategy.experimental_distribute_values_from_function(
        lambda context: own if _is_first_of_machine(context) else tf.zeros_like(own)
    )
    return [float(value) for value in strategy.reduce(tf.distribute.ReduceOp.SUM, first, axis=None).numpy()]


def _is_first_of_machine(context: Any) -> bool:
    return bool(context.replica_id_in_sync_group % (num_replicas() // num_machines()) == 0)


def drawn(draw: Callable[[tf.Tensor], tf.Tensor], shape: tf.Tensor) -> tf.Tensor:
    """Return this replica's rows of what is drawn at random for the whole batch.

    Args:
        draw: from a shape to random values, the same for the same shape on every device.
        shape: of this replica's rows.
    """
    if num_replicas() == 1:
        return draw(shape)
    start = shape[0] * tf.distribute.get_replica_context().replica_id_in_sync_group
    whole = draw(tf.concat([shape[:1] * num_replicas(), shape[1:]], axis=0))
    return whole[start : start + shape[0]]


class WholeBatchDropout(keras.layers.Dropout):  # type: ignore[misc]
    """Dropout that hides on several devices what it would hide on one."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Hide a part of the values ``(n, …)``; scale the others."""
        if not training or not self.rate:
            return inputs
        # As Keras casts it.
        seed = tf.cast(tf.math.floormod(self.seed_generator.next(), tf.int32.max - 1), tf.int32)
        noise = drawn(
            lambda shape: tf.random.stateless_uniform(shape, seed, dtype=inputs.dtype), tf.shape(inputs)
        )
        return tf.where(noise >= self.rate, inputs * (1.0 / (1.0 - self.rate)), tf.zeros_like(inputs))


def whole_batch(layer: Any) -> Any:
    """Return the layer that takes a layer's place in training: for dropout on several devices another, else itself."""
    if num_replicas() == 1 or not isinstance(layer, keras.layers.Dropout):
        return layer
    return WholeBatchDropout(layer.rate, seed=layer.seed, name=layer.name)
