"""What the steps' benchmarks share: artifacts of a run, clocks, and the cost of one bare pass through a network."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import run_index
from pipelines.run_index import RunError

# Among these the best is taken: what a program that knew would choose.
BATCHES = (8, 16, 32)


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock and of the CPU."""

    seconds: float
    cpu: float

    def times(self, factor: float) -> "Spent":
        """Return as often as ``factor`` says."""
        return Spent(self.seconds * factor, self.cpu * factor)


@dataclass(frozen=True)
class Setting:
    """What a step's benchmark is given.

    Attributes:
        artifacts: folder of each of the run's artifacts, by its name.
        rounds: how often step, limit and peer take turns.
        peers_python: the interpreter that has Foolbox and ART, or None.
        scratch: an empty folder.
    """

    artifacts: dict[str, Path]
    rounds: int
    peers_python: str | None
    scratch: Path

    def fresh(self, name: str) -> Path:
        """Return a new empty folder."""
        folder = self.scratch / f"{name}-{sum(1 for _ in self.scratch.iterdir())}"
        folder.mkdir()
        return folder


def artifacts_of(run: Path) -> dict[str, Path]:
    """Return where a run's artifacts are.

    Raises:
        RunError: the folder holds no run, or one that has not come as far as ``evaluate``.
    """
    found = {
        name: Path(artifact["uri"])
        for step in run_index.load(run).steps.values()
        for name, artifact in step.artifacts.items()
    }
    missing = [name for name in ("dataset", "features", "head", "model", "evaluation") if name not in found]
    if missing:
        raise RunError(f"A run must have written {', '.join(missing)}. Received: '{run}'")
    return found


def clocked(work: Callable[[], Any]) -> tuple[Any, Spent]:
    """Return what ``work`` returns and what it took."""
    started, worked = time.perf_counter(), time.process_time()
    result = work()
    return result, Spent(time.perf_counter() - started, time.process_time() - worked)


def median(spent: Iterable[Spent]) -> Spent:
    """Return the median of the seconds and that of the CPU seconds."""
    every = list(spent)
    return Spent(statistics.median(s.seconds for s in every), statistics.median(s.cpu for s in every))


def total(spent: Iterable[Spent]) -> Spent:
    """Return the sum."""
    every = list(spent)
    return Spent(sum(s.seconds for s in every), sum(s.cpu for s in every))


def each(
    function: Callable[..., Any], *arrays: Any, batches: Sequence[int] = BATCHES, again: int = 3
) -> Spent:
    """Return what a compiled pass takes a picture, at the batch size at which it takes least.

    Args:
        function: a pass through a network.
        arrays: what it takes, as many rows as the largest batch.
        batches: sizes that are tried.
        again: runs of each, after one that does not count.
    """
    best = []
    for size in batches:
        some = [array[:size] for array in arrays]
        function(*some)
        best.append(
            median(clocked(lambda some=some: function(*some))[1] for _ in range(again)).times(1 / size)
        )
    return min(best, key=lambda spent: spent.seconds)


def bare_passes(classifier: Any) -> tuple[Callable[..., Any], Callable[..., Any], list[Any]]:
    """Compile the least that gives logits, and the least that gives a logit's gradient for the pixels.

    Both have batch normalisations folded, which no peer does for gradients.

    Returns:
        The two functions, and pixels and labels to call the second with.
    """
    import tensorflow as tf

    from graftflow import attacks, folding

    network = attacks.logits_model(folding.folded(classifier))
    side, classes = int(classifier.input_shape[1]), int(classifier.output_shape[-1])
    pixels, labels = tf.TensorSpec((None, side, side, 3), tf.float32), tf.TensorSpec((None,), tf.int64)

    @tf.function(input_signature=[pixels])
    def forward(x: Any) -> Any:
        return network(x)

    @tf.function(input_signature=[pixels, labels])
    def gradient(x: Any, y: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            own = tf.gather(network(x), y, batch_dims=1)
        return tape.gradient(own, x)

    generator = np.random.default_rng(0)
    given = generator.uniform(0, 1, (max(BATCHES), side, side, 3)).astype(np.float32)
    return forward, gradient, [tf.constant(given), tf.constant(np.arange(max(BATCHES)) % classes, tf.int64)]
