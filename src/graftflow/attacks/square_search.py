"""Square: a search by random squares that asks for no gradient (Andriushchenko et al. 2020)."""

from typing import Any

import numpy as np
import tensorflow as tf

from graftflow.attacks import results
from graftflow.attacks.balls import generator_of, project
from graftflow.attacks.losses import log_odds_against, margin_against
from graftflow.attacks.networks import Logits
from graftflow.attacks.results import Attacked, Batch, Problem
from graftflow.errors import InputError

_SIGNS = np.array([-1, 1], np.float32)
_HALVED_AT = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def square(
    logits_of: Logits,
    pixels: Any,
    labels: Any,
    *,
    epsilon: float,
    queries: int,
    seed: int,
    first_share: float = 0.8,
    targeted: bool = False,
    eight_bits: bool = False,
    batch_size: int = results.BATCH,
) -> Attacked:
    """Search the L-infinity ball with squares of ± 2ε (Andriushchenko et al. 2020, algorithms 1 and 2).

    x̂ begins as vertical stripes of x ± ε, a sign a column and channel. Then, query by query: a square of h × h pixels
    at a random place, one ± 2ε a channel, is added and projected; x̂ takes it where the loss is better. h² is a
    share p of the picture that shrinks on the paper's schedule. It needs no gradient, so a model that hides its
    gradient without being robust falls to it and not to the others.

    Args:
        logits_of: see the package.
        pixels: ``float32 (n, h, w, 3)`` in [0, 1].
        labels: ``int64 (n,)``: the true classes, or with ``targeted`` the classes to be predicted.
        epsilon: L-infinity radius, in [0, 1].
        queries: forward passes a picture, at most, beside that of the original; ≥ 1.
        seed: fixes stripes and squares; those of a picture depend on its position, not on its batch.
        first_share: p at the start, in (0, 1].
        targeted: whether ``labels`` are targets; then the loss is their log odds, else the margin.
        eight_bits: whether pictures are rounded to multiples of 1/255 inside the ball before the network sees them.
        batch_size: pictures a pass, at most.

    Raises:
        InputError: where a setting or label is out of range.
    """
    problem = Problem.checked(
        logits_of, pixels, labels, epsilon=epsilon, targeted=targeted, eight_bits=eight_bits
    )
    if queries < 1:
        raise InputError(f"queries must be at least 1. Received: {queries}.")
    if not 0 < first_share <= 1:
        raise InputError(f"first_share must lie above 0 and at most at 1. Received: {first_share}.")
    height, width = problem.pixels.shape[1:3]
    loss = log_odds_against if targeted else margin_against

    def attack(batch: Batch) -> None:
        draws = [_Draws(number, seed, width, queries) for number in batch.numbers]
        batch.look(batch.pixels)
        stripes = np.stack([draws[row].stripes for row in batch.rows])
        x = batch.step(batch.pixels, tf.constant(stripes), epsilon)
        l_best, x = batch.look(x, loss=loss)
        for i in range(1, queries):
            h = max(1, round((square_share(i, queries, first_share) * height * width) ** 0.5))
            h = min(h, height, width)
            places = np.stack([draws[row].places[i] for row in batch.rows])
            signs = np.stack([draws[row].signs[i] for row in batch.rows])
            corners = (places * (height - h + 1, width - h + 1)).astype(np.int32)
            x_new = _with_squares(x, batch.pixels, corners, tf.constant(h), signs, batch.radius.epsilon)
            l_new, x_new, l_best, x = batch.look(x_new, l_best, x, loss=loss)
            x = tf.where((l_new > l_best)[:, None, None, None], x_new, x)
            l_best = tf.maximum(l_new, l_best)

    return problem.run(attack, name="Square", batch_size=batch_size)


def square_share(query: int, queries: int, first: float) -> float:
    """Return p, the share of the picture that the square of a query covers (section 4 of the paper).

    ``first``, halved each time the query, counted as if there were 10,000, passes one of the paper's marks.
    """
    halvings = sum(query * 10_000 / queries > mark for mark in _HALVED_AT)
    return float(first / 2**halvings)


class _Draws:
    """The random numbers of one picture, drawn at once."""

    def __init__(self, number: int, seed: int, width: int, queries: int) -> None:
        generator = generator_of(seed, number)
        self.stripes = generator.choice(_SIGNS, (1, width, 3))
        self.places = generator.uniform(size=(queries, 2))
        self.signs = generator.choice(_SIGNS, (queries, 3))


@tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
def _with_squares(
    x: tf.Tensor,
    centre: tf.Tensor,
    corners: tf.Tensor,
    side: tf.Tensor,
    signs: tf.Tensor,
    epsilon: tf.Tensor,
) -> tf.Tensor:
    """Return Π(x + δ), δ = ± 2ε in a square and 0 elsewhere."""
    down, across = (
        (tf.range(tf.shape(x)[axis + 1]) >= corners[:, axis, None])
        & (tf.range(tf.shape(x)[axis + 1]) < corners[:, axis, None] + side)
        for axis in (0, 1)
    )
    inside = tf.cast(down[:, :, None] & across[:, None, :], tf.float32)[..., None]
    return project(x + inside * (2.0 * epsilon * signs[:, None, None, :]), centre, epsilon, "linf")
