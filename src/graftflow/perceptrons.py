"""A small multilayer perceptron on scaled features: one hidden layer, in NumPy, fixed by its seed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graftflow.logistic import Floats, Labels, Layer, log_loss, log_softmax, weights_of

_BATCH = 32
_RATE = 1e-3
_DROPOUT = 0.3
_EPOCHS, _PATIENCE = 60, 5


@dataclass(frozen=True)
class Perceptron:
    """A fitted perceptron: ``relu(scaled @ hidden kernel + hidden bias) @ kernel + bias``.

    Attributes:
        hidden: kernel ``(d, h)`` and bias ``(h,)``, on scaled features.
        output: kernel ``(h, k)`` and bias ``(k,)``.
        loss: validation log loss (nats) of the epoch that was kept, each class as ``class_weight`` counts it.
    """

    hidden: Layer
    output: Layer
    loss: float

    def logits(self, scaled: Floats) -> Floats:
        """Return the logits ``(n, k)`` of scaled features ``(n, d)``."""
        hidden = np.maximum(scaled @ self.hidden[0] + self.hidden[1], 0)
        return np.asarray(hidden @ self.output[0] + self.output[1])


def fit_perceptron(
    train: tuple[Floats, Labels],
    validation: tuple[Floats, Labels],
    *,
    num_classes: int,
    width: int,
    c: float,
    class_weight: str,
    seed: int,
) -> Perceptron:
    """Fit with Adam (Kingma & Ba 2015, algorithm 1) and keep the epoch of least validation log loss.

    Stops after five epochs without a better one, after 60 at the latest. Hidden units are dropped with probability
    0.3. The penalty is that of logistic regression: half the squared norm of both kernels against ``c`` times the sum
    of the pictures' losses.

    Args:
        train: scaled features ``float32 (n, d)`` and labels ``(n,)`` in [0, num_classes).
        validation: the same for the pictures that stop it.
        num_classes: number of classes, k.
        width: hidden units, h.
        c: inverse strength of the penalty, above 0.
        class_weight: ``none`` or ``balanced``; holds for training and for stopping.
        seed: fixes start, order and dropout.
    """
    (x, y), generator = train, np.random.Generator(np.random.PCG64(seed))
    picture_weights = weights_of(y, class_weight).astype(np.float32)
    validation_weights = weights_of(validation[1], class_weight)
    decay = np.float32(1 / (c * len(y)))

    def started(inputs: int, outputs: int) -> Floats:
        scale = np.sqrt(2 / inputs, dtype=np.float32)  # He et al. 2015, equation 10
        return np.asarray(generator.standard_normal((inputs, outputs), np.float32) * scale)

    values = [
        started(x.shape[1], width),
        np.zeros(width, np.float32),
        started(width, num_classes),
        np.zeros(num_classes, np.float32),
    ]
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in values]
    best: Perceptron | None = None
    step = waited = 0
    for _ in range(_EPOCHS):
        order = generator.permutation(len(y))
        for first in range(0, len(y), _BATCH):
            places = order[first : first + _BATCH]
            kept = (generator.random((len(places), width), np.float32) >= _DROPOUT).astype(np.float32)
            kept /= np.float32(1 - _DROPOUT)
            gradients = _gradients(values, x[places], y[places], picture_weights[places], kept)
            gradients[0] += decay * values[0]
            gradients[2] += decay * values[2]
            step += 1
            rate = np.float32(_RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step))
            for value, gradient, (first_moment, second_moment) in zip(
                values, gradients, moments, strict=True
            ):
                first_moment += np.float32(0.1) * (gradient - first_moment)
                second_moment += np.float32(0.001) * (gradient * gradient - second_moment)
                value -= rate * first_moment / (np.sqrt(second_moment) + np.float32(1e-8))
        now = Perceptron((values[0], values[1]), (values[2], values[3]), 0.0)
        loss = log_loss(now.logits(validation[0]), validation[1], validation_weights)
        if best is None or loss < best.loss:
            copies = [value.copy() for value in values]
            best, waited = Perceptron((copies[0], copies[1]), (copies[2], copies[3]), loss), 0
        else:
            waited += 1
            if waited == _PATIENCE:
                break
    if best is None:
        raise RuntimeError("no epoch was run")
    return best


def _gradients(
    values: list[Floats], x: Floats, y: Labels, weights: Floats, kept: Floats
) -> list[npt.NDArray[np.float32]]:
    """Return the gradient of the batch's mean weighted loss by each of the four values; ``kept`` is dropout's mask."""
    hidden = np.maximum(x @ values[0] + values[1], 0) * kept
    error = np.exp(log_softmax(hidden @ values[2] + values[3]))
    error[np.arange(len(y)), y] -= 1
    error *= (weights / np.float32(len(y)))[:, None]
    back = (error @ values[2].T) * kept * (hidden > 0)
    return [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
