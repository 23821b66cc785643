"""Passes through a frozen network: its weights are constants, and as many passes run side by side as there are cores.

An operation that is spread over all cores ends when the slowest of its threads does, and some use one core whatever
they are given. Passes that share nothing wait for nobody: one thread each, small batches, one pass a core, and one that
waits to begin.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from graftflow import preprocessing

Key = TypeVar("Key")
Array = npt.NDArray[np.float32]

# Each pass holds its batch's activations, some 75 MB of EfficientNet-Lite0 at 8 pictures.
_MOST_PASSES = 8
# Two keep a GPU at work while the rows of one are copied back.
_GPU_PASSES = 2
_BATCH_SIZE, _GPU_BATCH_SIZE = 8, 64
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def frozen_function(model: Any, input_size: int) -> Any:
    """Return ``model`` as a function whose weights are constants.

    With constants TensorFlow folds BatchNorm into the convolutions: measured 1.3 times the pictures a second of the
    same model with variables (EfficientNet-Lite0, 2 cores, batch 64; XLA on CPU was 14 times slower).

    Args:
        model: a ``keras.Model`` for pixels.
        input_size: side of its pictures in pixels.

    Returns:
        A callable from ``float32 (n, s, s, 3)`` to the model's output. Any number of threads may call it at once.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = [tf.TensorSpec((None, input_size, input_size, 3), tf.float32)]
    function = tf.function(lambda pixels: model(pixels, training=False), input_signature=signature)
    constant = convert_variables_to_constants_v2(function.get_concrete_function())
    return lambda pixels: constant(pixels)[0]


def decoding(function: Callable[[tf.Tensor], tf.Tensor], input_size: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return ``function`` for encoded pictures, decoding and network in one graph.

    A core that decodes its own batch and goes on with it waits for nobody and hands nothing on: measured 1.08 times
    the pictures a second of decoding ahead by ``tf.data`` (EfficientNet-Lite0, 2 cores). The rows have the same bits.

    Args:
        function: from pixels ``float32 (b, s, s, 3)`` in [0, 1], as :func:`frozen_function`; it is traced.
        input_size: s, in pixels.

    Returns:
        A callable from encoded pictures, ``string (b,)``, as :func:`graftflow.preprocessing.decode_batch`. Any number
        of threads may call it at once.
    """
    signature = [tf.TensorSpec((None,), tf.string), tf.TensorSpec((), tf.float32)]

    def run(images: tf.Tensor, white: tf.Tensor) -> tf.Tensor:
        return function(preprocessing.decode_batch(images, input_size, white=white))

    graph = tf.function(run, input_signature=signature, autograph=False).get_concrete_function()
    white = tf.constant(255.0)
    return lambda images: graph(images, white)


def cores() -> int:
    """Return how many cores this process may use: its affinity, and the quota of its container (cgroup v2)."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return min(own, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # another system, or the quota is "max"
        return own


def batch_size() -> int:
    """Return how many pictures a pass should take: 8, on a GPU 64.

    On a CPU small batches stay nearer to its caches and need less memory, and no core idles for long while the last
    ones end: ``python -m benchmarks.extraction.choices``.
    """
    return _GPU_BATCH_SIZE if on_gpu() else _BATCH_SIZE


def num_passes() -> int:
    """Return how many passes should run at once: one a core, 8 at most; 2 on a GPU."""
    return _GPU_PASSES if on_gpu() else min(cores(), _MOST_PASSES)


def share_cores() -> bool:
    """Give an operation as many threads as there are cores for each pass: one, up to 8 cores.

    Measured on 2 cores: 206 pictures a second, where every operation has all cores 187 (EfficientNet-Lite0, batches of
    16, decoding included). The rows are the same to the last bit. It holds for the whole process, and only where
    TensorFlow has computed nothing in it yet.

    Returns:
        Whether it holds.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(-(-cores() // num_passes()))
    except RuntimeError:
        return False
    return True


def side_by_side(
    function: Callable[[tf.Tensor], tf.Tensor],
    batches: Iterable[tuple[Key, tf.Tensor]],
    *,
    at_once: int | None = None,
) -> Iterator[tuple[Key, Array]]:
    """Send batches through a network, several at once, and yield what comes out in their order.

    Args:
        function: from pixels ``float32 (b, s, s, 3)`` to ``float32 (b, …)``, as :func:`frozen_function`, or from
            encoded pictures, as :func:`decoding`.
        batches: pairs of anything that names a batch, and what ``function`` takes. At most ``at_once`` + 1 are taken
            ahead.
        at_once: passes at once, by default :func:`num_passes`; 1 computes in the thread that asks.

    Yields:
        What named the batch, and ``function`` of it, ``float32 (b, …)``.
    """
    count = num_passes() if at_once is None else at_once
    if count == 1:
        for name, pixels in batches:
            yield name, function(pixels).numpy()
        return
    under_way: deque[tuple[Key, Future[Array]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for name, pixels in batches:
            # One more than run at once: it begins when any of them ends, and not when the oldest was taken.
            under_way.append((name, pool.submit(lambda batch: function(batch).numpy(), pixels)))
            if len(under_way) > count:
                first, rows = under_way.popleft()
                yield first, rows.result()
        for last, rows in under_way:
            yield last, rows.result()


def on_gpu() -> bool:
    """Return whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))
