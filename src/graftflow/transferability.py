"""Transfer: whether pictures made to fool one model fool another, which their maker has never seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from graftflow import attacks, backbones, files, folding, heads, training
from graftflow.epsilons import whole_levels
from graftflow.errors import InputError
from graftflow.intervals import share
from graftflow.predictions import Array, in_batches, predict, through_png
from graftflow.progress import Progress


@dataclass(frozen=True)
class Contender:
    """A model that pictures are made against or tried on.

    Those of one structure share a network: it takes the weights of the one that is asked, in a hundredth of a second,
    where to build and compile another takes three seconds.

    Attributes:
        name: as shown.
        model: the classifier.
        folded: its structure with batch normalisations folded.
        network: the part of that from pixels ``float32 (n, size, size, 3)`` in [0, 1] to logits.
        weights: what the network holds when it is this contender.
    """

    name: str
    model: Any
    folded: Any
    network: Any
    weights: list[Array]

    @property
    def size(self) -> int:
        """Side of its input, in pixels."""
        return int(self.model.input_shape[1])

    def ready(self) -> Any:
        """Return the network with this contender's weights in it, until another one of its structure is asked for."""
        self.network.set_weights(self.weights)
        return self.network


def contender(name: str, model: Any, known: Sequence[Contender] = ()) -> Contender:
    """Return a classifier as a contender, in the network of a known one where their structure is the same."""
    for other in known:
        if folding.alike(model, other.model):
            folding.refold(other.folded, model)
            found = replace(other, name=name, model=model, weights=other.network.get_weights())
            other.ready()
            return found
    copy = folding.folded(model)
    network = attacks.logits_model(copy)
    return Contender(name, model, copy, network, network.get_weights())


def features_only(head_path: str | Path, *, weights: str, known: Sequence[Contender] = ()) -> Contender:
    """Build the classifier of a ``head`` artifact: the head on the pretrained backbone, nothing fine-tuned.

    Args:
        head_path: a ``head`` artifact.
        weights: the backbone's weights; must be those the head was trained on.
        known: see :func:`contender`.

    Raises:
        InputError: where the artifact cannot be read, or the backbone's weights are not the head's.
    """
    layers = heads.read_layers(head_path)
    identity = files.read_json(Path(head_path) / "head.json")["backbone"]
    features_model = backbones.build(identity["name"], weights=weights)
    built = backbones.identity(identity["name"], features_model, weights=weights)
    if built["weights_sha256"] != identity["weights_sha256"]:
        raise InputError(
            f"The backbone must have the weights that the head was trained on "
            f"({identity['weights_sha256'][:12]}…). Received: '{weights}' "
            f"({built['weights_sha256'][:12]}…)."
        )
    return contender("features only", training.build_classifier(features_model, layers), known)


def transfer_matrix(
    contenders: Sequence[Contender], pixels: Array, labels: Array, *, epsilon: float, steps: int
) -> dict[str, Any]:
    """Make pictures against each model and try them on every model, as PNG files.

    Pictures that all models classify right at first are made into attacks by :func:`momentum_steps`; each model decodes
    the files at its own size.

    Args:
        contenders: the models, with the same classes. A network that the first one shares is left with its weights.
        pixels: ``float32 (n, s, s, 3)`` of whole 1/255, s the first model's size.
        labels: ``int64 (n,)``.
        epsilon: L-infinity radius, at least 1/255.
        steps: gradient steps.

    Returns:
        ``{"epsilon" (in 1/255), "steps", "pictures": n that all classify right, "models": [name], "clean": [accuracy
        on all pictures], "fooled": [[{"value", "low", "high"}]]}``; rows are the models that the pictures were made
        against, columns those that they were tried on.
    """
    sizes = {one.size: through_png(pixels, one.size) for one in contenders}
    right = [predict(one.ready(), sizes[one.size]).argmax(axis=1) == labels for one in contenders]
    chosen = np.logical_and.reduce(right)
    progress = Progress("transfer between models", total=len(contenders), unit="models")
    rows = []
    for maker in contenders:
        counts = [0] * len(contenders)
        if chosen.any():
            # A size that is resized has no whole levels: its own PNG is what the maker starts from.
            start = np.round(sizes[maker.size][chosen] * np.float32(255)) / np.float32(255)
            make = partial(momentum_steps, maker.ready(), epsilon=epsilon, steps=steps)
            made = in_batches(make, start, labels[chosen])
            answers = [predict(one.ready(), through_png(made, one.size)).argmax(axis=1) for one in contenders]
            counts = [int((answer != labels[chosen]).sum()) for answer in answers]
        rows.append([share(count, int(chosen.sum())) for count in counts])
        progress.advance()
    contenders[0].ready()
    return {
        "epsilon": round(255 * epsilon, 6),
        "steps": steps,
        "pictures": int(chosen.sum()),
        "models": [one.name for one in contenders],
        "clean": [float(found.mean()) for found in right],
        "fooled": rows,
    }


def momentum_steps(
    logits_of: Any, pixels: Array, labels: Array, *, epsilon: float, steps: int, decay: float = 1.0
) -> tf.Tensor:
    """Follow the gradient with momentum (MI-FGSM, Dong et al. 2018, algorithm 1), made for transfer.

    g ← μ · g + ∇ₓL / ‖∇ₓL‖₁; x ← Π(x + α · sign g), α = ε / steps. It does not stop where the model is fooled: what
    lies just behind one model's boundary seldom lies behind another's.

    Args:
        logits_of: see :mod:`graftflow.attacks`.
        pixels: ``float32 (n, s, s, 3)`` in [0, 1].
        labels: ``int64 (n,)``, the true classes.
        epsilon: L-infinity radius.
        steps: gradient steps, ≥ 1.
        decay: μ.

    Returns:
        ``float32 (n, s, s, 3)``, rounded to 8 bits inside the ball.
    """
    original = tf.convert_to_tensor(pixels, tf.float32)
    x, momentum, targets = original, tf.zeros_like(original), tf.convert_to_tensor(labels, tf.int64)
    # Whole levels, so that rounding at the end takes nothing away.
    radius = whole_levels(epsilon) / 255
    for _ in range(steps):
        gradient = attacks.loss_gradient(logits_of, x, targets)
        length = tf.reduce_mean(tf.abs(gradient), axis=(1, 2, 3), keepdims=True)
        momentum = decay * momentum + gradient / tf.maximum(length, 1e-30)
        x = tf.clip_by_value(x + radius / steps * tf.sign(momentum), original - radius, original + radius)
        x = tf.clip_by_value(x, 0.0, 1.0)
    return attacks.round_to_eight_bits(x, original, epsilon)
