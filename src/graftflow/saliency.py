"""Where an answer comes from: Grad-CAM, integrated gradients, and whether they depend on the weights at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from graftflow import folding
from graftflow.errors import InputError
from graftflow.ideal_images import head_of

# Mid-grey: neither dark nor light pixels count for nothing because they equal the baseline.
BASELINE = 0.5
_COMPARED_SIDE = 28
_AT_ONCE = 32

Maps = npt.NDArray[np.float32]


class Attribution(NamedTuple):
    """What integrated gradients found.

    Attributes:
        maps: ``float32 (n, s, s)``: each pixel's share of ``difference``, its channels added; negative against.
        difference: ``float32 (n,)``: the class's logit for the picture minus that for the grey baseline.
        error: ``float32 (n,)``: how far the sum of the map is from ``difference``, as a fraction of it.
    """

    maps: Maps
    difference: Maps
    error: Maps


class _Answer(NamedTuple):
    """What a network says of pictures, and the gradients of each one's class's logit."""

    logits: tf.Tensor  # (n, k)
    maps: tf.Tensor  # (n, h, w, c): the last ones
    of_maps: tf.Tensor  # ∂ logit / ∂ maps
    of_pixels: tf.Tensor  # ∂ logit / ∂ pixels


class Explainer:
    """Explains a classifier whose backbone is a model inside of it, nested or not.

    Args:
        classifier: pixels ``float32 (n, s, s, 3)`` in [0, 1] → probabilities, with the layers ``preprocessing``,
            ``backbone`` (a model of its own) and ``logits``.

    Raises:
        InputError: the backbone has no layer with a map ``(n, h, w, c)``.
    """

    def __init__(self, classifier: keras.Model) -> None:
        self.classifier = classifier
        self.side = int(classifier.input_shape[1])
        self._folded = folding.folded(classifier)
        network = self._folded.get_layer("backbone")
        self.layer = last_maps(network).name
        # The backbone's graph is its own, so its last maps come out of it beside its output, and the tape connects
        # them: no model is made across the two graphs.
        self._network = keras.Model(network.input, [network.get_layer(self.layer).output, network.output])
        self._preprocessing, self._head = self._folded.get_layer("preprocessing"), head_of(self._folded)
        # One graph for all that is asked: to trace and compile another takes as long as fifty gradients.
        signature = [tf.TensorSpec((None, self.side, self.side, 3)), tf.TensorSpec((None,), tf.int64)]
        self._answer = tf.function(self._answer_of, input_signature=signature, autograph=False)

    def grad_cam(self, pixels: tf.Tensor, classes: Sequence[int]) -> Maps:
        """Weigh the last maps by the class's mean gradient (Selvaraju et al. 2017, equations 1 and 2).

        ReLU(Σₖ αₖ Aᵏ) with αₖ the mean over places of ∂ logit / ∂ Aᵏ.

        Args:
            pixels: ``float32 (n, s, s, 3)`` in [0, 1].
            classes: the class of each picture that is explained.

        Returns:
            ``float32 (n, h, w)`` of the maps' own side, the largest 1; 0 everywhere where nothing speaks for the
            class.
        """
        self._take_over()
        answer = self._answer(pixels, tf.constant(list(classes), tf.int64))
        alpha = tf.reduce_mean(tf.cast(answer.of_maps, tf.float32), axis=(1, 2), keepdims=True)
        found = tf.nn.relu(tf.reduce_sum(alpha * tf.cast(answer.maps, tf.float32), axis=3)).numpy()
        return np.asarray(found / np.maximum(found.max(axis=(1, 2), keepdims=True), 1e-12), np.float32)

    def integrated_gradients(
        self, pixels: tf.Tensor, classes: Sequence[int], *, steps: int = 32, tolerance: float = 0.05
    ) -> Attribution:
        """Add up the gradient on the way from grey to the picture (Sundararajan et al. 2017, equation 1).

        (x − x') · ∫ ∂ logit / ∂ x at x' + t (x − x') dt, t from 0 to 1. A plain grey picture is where networks bend
        most, so that equal pieces of t miss much of the integral (measured: up to 85 %, 64 × 64 photographs enlarged);
        with t = u³ the pieces are short there. Where a sum is off by more than ``tolerance``, every piece is cut into
        three, twice at most: the middles that are there stay middles, so that nothing is computed again.

        Args:
            pixels: ``float32 (n, s, s, 3)`` in [0, 1].
            classes: the class of each picture that is explained.
            steps: gradients a picture, at first; ≥ 1.
            tolerance: see above; a fraction ≥ 0.

        Raises:
            InputError: where ``steps`` is below 1.
        """
        if steps < 1:
            raise InputError(f"steps must be at least 1. Received: {steps}.")
        self._take_over()
        grey = tf.fill((1, self.side, self.side, 3), BASELINE)
        maps, differences, errors = [], [], []
        logits = self._answer(tf.concat([pixels, grey], axis=0), tf.constant([*classes, 0], tf.int64)).logits
        for picture, label, own in zip(tf.unstack(pixels), classes, logits[:-1], strict=True):
            difference = float(own[label] - logits[-1, label])
            slopes = tf.zeros_like(picture)
            for pieces in (steps, 3 * steps, 9 * steps):
                middles = np.arange(pieces)
                if pieces > steps:
                    middles = middles[middles % 3 != 1]
                slopes += self._slopes(
                    picture, grey, label, (middles.astype(np.float32) + np.float32(0.5)) / np.float32(pieces)
                )
                found = tf.reduce_sum((picture - grey[0]) * slopes / pieces, axis=2)
                error = abs(float(tf.reduce_sum(found)) - difference) / max(abs(difference), 1e-6)
                if error <= tolerance:
                    break
            maps.append(found.numpy())
            differences.append(difference)
            errors.append(error)
        return Attribution(*(np.asarray(values, np.float32) for values in (maps, differences, errors)))

    def _take_over(self) -> None:
        """Take over the weights that the classifier has now: they may have been shuffled. Nothing is compiled again."""
        folding.refold(self._folded, self.classifier)

    def _slopes(self, picture: tf.Tensor, grey: tf.Tensor, label: int, middles: Maps) -> tf.Tensor:
        """Return the sum of ∂ logit / ∂ x · dt/du over some u, with t = u³ and dt/du = 3u²; ``(s, s, 3)``."""
        total = tf.zeros_like(picture)
        for some in np.array_split(middles, -(-len(middles) // _AT_ONCE)):
            share = tf.constant(some[:, None, None, None])
            labels = tf.fill((len(some),), tf.constant(label, tf.int64))
            slopes = self._answer(grey + share**3 * (picture - grey), labels).of_pixels
            total += tf.reduce_sum(3 * share**2 * slopes, axis=0)
        return total

    def _answer_of(self, pixels: tf.Tensor, labels: tf.Tensor) -> _Answer:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pixels)
            maps, outputs = self._network(self._preprocessing(pixels), training=False)
            logits = self._head(outputs)
            own = tf.gather(logits, labels, batch_dims=1)
        of_maps, of_pixels = tape.gradient(own, [maps, pixels])
        return _Answer(logits, maps, of_maps, of_pixels)


def last_maps(network: keras.Model) -> keras.layers.Layer:
    """Return the last layer of a backbone whose output still has places: ``(n, h, w, c)`` with h, w > 1.

    Raises:
        InputError: there is none.
    """
    for layer in reversed(network.layers):
        shape: Sequence[int | None] = getattr(layer.output, "shape", ())
        if len(shape) == 4 and (shape[1] or 0) > 1 and (shape[2] or 0) > 1:
            return layer
    raise InputError(f"a backbone must have a layer with maps (n, h, w, c). Received: '{network.name}'.")


@contextmanager
def shuffled_weights(model: keras.Model, *, seed: int) -> Iterator[None]:
    """Shuffle the values within each weight of a model while the block runs (Adebayo et al. 2018, section 3).

    What the network has learned is gone, the distribution of its weights is not; they are put back at the end.

    Args:
        model: changed in place, nested models too.
        seed: fixes the order.
    """
    kept = model.get_weights()
    generator = np.random.default_rng(seed)
    try:
        model.set_weights([generator.permutation(value.ravel()).reshape(value.shape) for value in kept])
        yield
    finally:
        model.set_weights(kept)


def similarity(first: Maps, second: Maps) -> float:
    """Return the mean over pictures of the rank correlation of two maps, in [−1, 1] (Adebayo et al. 2018, section 3).

    Args:
        first: ``float32 (n, h, w)``; large maps are averaged to a side of 28 first.
        second: the same shape.

    Returns:
        Spearman's ρ; a picture one of whose maps is the same everywhere counts as 0.
    """
    from scipy.stats import rankdata

    found = []
    for one, other in zip(_averaged(first), _averaged(second), strict=True):
        ranks = [rankdata(plane) for plane in (one, other)]
        still = any(rank.std() == 0 for rank in ranks)
        found.append(0.0 if still else float(np.corrcoef(*ranks)[0, 1]))
    return float(np.mean(found))


def _averaged(maps: Maps) -> Maps:
    if maps.shape[1] <= _COMPARED_SIDE:
        return maps.reshape(len(maps), -1)
    side = (_COMPARED_SIDE, _COMPARED_SIDE)
    averaged = tf.image.resize(maps[..., None], side, method="area")
    return np.asarray(averaged, np.float32).reshape(len(maps), -1)
