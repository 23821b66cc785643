"""Attacks at every radius: one table of attacks, and what each of them does to each picture.

A radius ε is an L-infinity radius, the most that a channel may change, or an L2 radius, the length of the whole change;
both in units of pixels in [0, 1]. What an attack returns is sent through a PNG and decoded as a server decodes it
before anything is counted. Only L-infinity radii below 1/255, within which no other PNG lies, are counted on float
pixels, as the ``pixels`` signature takes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from graftflow import attacks
from graftflow.attacked_pictures import AttackedPictures
from graftflow.epsilons import whole_levels
from graftflow.intervals import share
from graftflow.predictions import Array, batches, predict, through_png
from graftflow.progress import Progress

# Of Square, a picture and radius.
QUERIES = 200


@dataclass(frozen=True)
class Shot:
    """What one run of an attack is told; the radius and the steps, the seed and the aim."""

    logits_of: Any
    epsilon: float
    steps: int
    seed: int
    targeted: bool
    eight_bits: bool


@dataclass(frozen=True)
class Attack:
    """One row of the table.

    Attributes:
        name: as shown.
        run: from a shot, pixels, labels (targets of a targeted attack) and the signs of the gradient to pixels.
        norm: ``linf`` or ``l2``: of its radii.
        can_aim: whether there is a targeted variant.
        grows: whether its answer at a radius counts at larger ones too, so that a picture is not attacked again. Not so
            for FGSM, whose one step has the full length: it is shown as it is.
        least_classes: below which it cannot run.
        on_the_rest: whether it attacks only what no attack before it has fooled; what it fools is added to those.
        follows_gradients: whether a model that hides its gradients withstands it.
    """

    name: str
    run: Callable[[Shot, Array, Array, Array], Any]
    norm: str = "linf"
    can_aim: bool = False
    grows: bool = True
    on_the_rest: bool = False
    follows_gradients: bool = True
    least_classes: int = 2


@dataclass(frozen=True)
class Curve:
    """One attack at every radius, picture by picture.

    Attributes:
        attack: the row of the table.
        targeted: whether it aimed at a class.
        radii: e radii, ascending.
        base: bool (n,): what accuracy is a share of.
        attacked: bool (n,): what success is a share of.
        wrong: bool (e, n): not the label is predicted.
        reached: bool (e, n): the attack's own aim is reached.
        tried: bool (e, n): which it attacked at this radius.
        moved: float (e,): the largest change that was sent, in the radii's unit.
        first: picture → the smallest radius at which a PNG of it fooled the model, and its levels, uint8 (s, s, 3);
            of the few that can be shown.
    """

    attack: Attack
    targeted: bool
    radii: tuple[float, ...]
    base: Array
    attacked: Array
    wrong: Array
    reached: Array
    tried: Array
    moved: Array
    first: dict[int, tuple[float, Array]]

    @property
    def rounded(self) -> list[bool]:
        """At which radii pictures of 8 bits were counted."""
        return [counts_pictures_of_8_bits(self.attack.norm, epsilon) for epsilon in self.radii]

    def row(self) -> dict[str, Any]:
        """Return what ``adversarial.json`` says of it."""
        accuracy = [share(int((~wrong & self.base).sum()), int(self.base.sum())) for wrong in self.wrong]
        success = [share(int((r & self.attacked).sum()), int(self.attacked.sum())) for r in self.reached]
        return {
            "name": self.attack.name,
            "norm": self.attack.norm,
            "targeted": self.targeted,
            "on_the_rest": self.attack.on_the_rest,
            "accuracy": [found["value"] or 0.0 for found in accuracy],
            "low": [found["low"] for found in accuracy],
            "high": [found["high"] for found in accuracy],
            "success": [found["value"] or 0.0 for found in success],
            "pictures": int(self.base.sum()),
            "attacked": int(self.attacked.sum()),
            "tried": [int(tried.sum()) for tried in self.tried],
            "rounded": self.rounded,
        }


def counts_pictures_of_8_bits(norm: str, epsilon: float) -> bool:
    """Return whether a radius has room for another picture of 8 bits."""
    return norm == "l2" or whole_levels(epsilon) > 0


def measure(
    attack: Attack,
    logits_of: Any,
    pictures: AttackedPictures,
    radii: Sequence[float],
    *,
    steps: int,
    seed: int,
    targeted: bool = False,
    before: Sequence[Curve] = (),
    shown: int = 0,
    progress: Progress | None = None,
) -> Curve:
    """Run one attack at every radius, a batch of pictures at a time.

    Args:
        attack: a row of the table.
        logits_of: the classifier, from pixels to logits.
        pictures: what is attacked; those classified wrong at first count as fooled.
        radii: ascending.
        steps: gradient steps of an iterated attack.
        seed: fixes random starts and moves.
        targeted: whether it aims at ``pictures.targets``.
        before: curves at the same radii whose fooled pictures an attack ``on_the_rest`` leaves alone and takes over.
        shown: of how many pictures strips are to be made: among ``first`` are those to choose from.
        progress: advances by one a radius.
    """
    labels = pictures.targets if targeted else pictures.labels
    base = pictures.labels != pictures.targets if targeted else np.ones_like(pictures.right)
    attacked = base & pictures.right
    clean = pictures.probabilities.argmax(axis=1)
    predicted, done, was_rounded = clean.copy(), np.zeros_like(attacked), False
    kept = _Kept(pictures, shown)
    wrongs, reacheds, trieds, moves = [], [], [], []
    signs = _signs(attack, logits_of, pictures, labels, attacked, targeted)
    for number, epsilon in enumerate(radii):
        rounded = counts_pictures_of_8_bits(attack.norm, epsilon)
        # What float pixels achieved says nothing about pictures of 8 bits.
        if rounded != was_rounded or not attack.grows:
            predicted, done, was_rounded = clean.copy(), np.zeros_like(attacked), rounded
        taken = _fooled(before, number) & attacked if attack.on_the_rest else np.zeros_like(attacked)
        todo = np.flatnonzero(attacked & ~done & ~taken)
        moved, shot = 0.0, Shot(logits_of, epsilon, steps, seed, targeted, rounded)
        for some in batches(todo):
            own = pictures.pixels_at(some)
            found = np.asarray(attack.run(shot, own, labels[some], signs[some].astype(np.float32)))
            sent = through_png(found) if rounded else found
            moved = max(moved, largest_change(sent, own, attack.norm, rounded=rounded))
            predicted[some] = predict(logits_of, sent).argmax(axis=1)
            done[some] = (predicted[some] == labels[some]) == targeted
            if rounded:
                kept.add(epsilon, some[done[some]], sent[done[some]])
        wrongs.append((predicted != pictures.labels) | taken)
        reacheds.append(done | taken)
        trieds.append(np.isin(np.arange(len(done)), todo))
        moves.append(moved)
        if progress:
            progress.advance()
    return Curve(
        attack,
        targeted,
        tuple(radii),
        base,
        attacked,
        np.array(wrongs),
        np.array(reacheds),
        np.array(trieds),
        np.array(moves),
        kept.first,
    )


class _Kept:
    """Fooled pictures of which strips may be made: of each radius no more than can be chosen, however many fall."""

    def __init__(self, pictures: AttackedPictures, shown: int) -> None:
        self.first: dict[int, tuple[float, Array]] = {}
        self._pictures, self._shown = pictures, shown
        self._seen = np.zeros(len(pictures.labels), bool)

    def add(self, epsilon: float, fooled: Array, sent: Array) -> None:
        """Take the pictures that fell at a radius and at no smaller one; their levels are copies, not views."""
        if not self._shown:
            return
        fresh, self._seen[fooled] = ~self._seen[fooled], True
        for number, pixels in zip(fooled[fresh], sent[fresh], strict=True):
            self.first[int(number)] = epsilon, np.round(255 * pixels).astype(np.uint8)
        here = [number for number, (radius, _) in self.first.items() if radius == epsilon]
        for number in set(here) - set(self._pictures.surest(here, self._shown)):
            del self.first[number]


def turned_round(curve: Curve, pictures: AttackedPictures) -> Curve:
    """Return the targeted curve of two classes: away from one is towards the other, nothing is computed again."""
    base = pictures.labels != pictures.targets
    attacked = base & pictures.right
    return replace(curve, targeted=True, base=base, attacked=attacked, reached=curve.reached & attacked)


def worst_case(curves: Sequence[Curve]) -> Array:
    """Return which pictures any attack has fooled at each radius or a smaller one, bool (e, n)."""
    return np.asarray(np.logical_or.accumulate(np.logical_or.reduce([c.wrong for c in curves]), axis=0))


def telling_radius(fooled: Array) -> int:
    """Return which radius tells most: the first at which half of the pictures are fooled, else the last.

    Args:
        fooled: bool (e, n).
    """
    enough = fooled.mean(axis=1) >= 0.5
    return int(np.argmax(enough)) if enough.any() else len(fooled) - 1


def largest_change(pixels: Array, original: Array, norm: str, *, rounded: bool) -> float:
    """Return how far the picture that changed most has moved, in the norm; exactly, where both have whole levels."""
    largest = 0.0
    for sent, own in zip(pixels, original, strict=True):
        change = sent.astype(np.float64).ravel() - own.ravel()
        if rounded:
            change = np.round(255 * change) / 255
        largest = max(largest, float(np.linalg.norm(change, np.inf if norm == "linf" else 2)))
    return largest


def _fooled(before: Sequence[Curve], number: int) -> Array:
    """Return which pictures are fooled already at a radius, or at a smaller one that counts there; bool (n,)."""
    fooled = np.zeros(1, bool)
    for curve in before:
        same = [i for i in range(number + 1) if curve.rounded[i] == curve.rounded[number]]
        fooled = fooled | np.logical_or.reduce(curve.wrong[same])
    return fooled


def _signs(
    attack: Attack,
    logits_of: Any,
    pictures: AttackedPictures,
    labels: Array,
    attacked: Array,
    targeted: bool,
) -> Array:
    """Return the signs that FGSM steps along at every radius, once for all, ``int8``; zeros for the others."""
    if attack.run is not fgsm:
        return np.broadcast_to(np.int8(0), pictures.levels.shape)
    signs = np.zeros(pictures.levels.shape, np.int8)
    for some in batches(np.flatnonzero(attacked)):
        pixels = pictures.pixels_at(some)
        signs[some] = attacks.signed_gradient(logits_of, pixels, labels[some], targeted=targeted)
    return signs


def fgsm(shot: Shot, pixels: Array, labels: Array, signs: Array) -> Any:
    """One step of full length."""
    found = attacks.fgsm(
        shot.logits_of, pixels, labels, epsilon=shot.epsilon, targeted=shot.targeted, signs=signs
    )
    return attacks.round_to_eight_bits(found, pixels, shot.epsilon) if shot.eight_bits else found


def pgd(shot: Shot, pixels: Array, labels: Array, _: Array, *, norm: Literal["linf", "l2"] = "linf") -> Any:
    """Steps inside the ball from a random start."""
    return attacks.pgd(
        shot.logits_of,
        pixels,
        labels,
        epsilon=shot.epsilon,
        steps=shot.steps,
        seed=shot.seed,
        targeted=shot.targeted,
        eight_bits=shot.eight_bits,
        norm=norm,
    )


def apgd(shot: Shot, pixels: Array, labels: Array, _: Array, *, loss: Literal["ce", "dlr"]) -> Any:
    """Steps that are halved where they lead no further, twice as many as PGD's."""
    return attacks.apgd(
        shot.logits_of,
        pixels,
        labels,
        epsilon=shot.epsilon,
        steps=2 * shot.steps,
        seed=shot.seed,
        loss=loss,
        eight_bits=shot.eight_bits,
    ).pixels


def square(shot: Shot, pixels: Array, labels: Array, _: Array) -> Any:
    """Random squares, kept where they raise the loss; no gradient."""
    return attacks.square(
        shot.logits_of,
        pixels,
        labels,
        epsilon=shot.epsilon,
        queries=QUERIES,
        seed=shot.seed,
        eight_bits=shot.eight_bits,
    ).pixels


def random_signs(shot: Shot, pixels: Array, _labels: Array, _signs: Array) -> Any:
    """A change of the same size that looks for nothing: every channel up or down by ε at random."""
    signs = np.random.default_rng(shot.seed).choice(np.array([-1, 1], np.float32), pixels.shape)
    step = whole_levels(shot.epsilon) / 255 if shot.eight_bits else shot.epsilon
    return np.clip(pixels + np.float32(step) * signs, 0, 1)


FGSM = Attack("FGSM", fgsm, can_aim=True, grows=False)
PGD = Attack("PGD", pgd, can_aim=True)
PGD_L2 = Attack("PGD", partial(pgd, norm="l2"), norm="l2")
# An ensemble in the spirit of AutoAttack: each sees only what all before it left.
APGD_CE = Attack("APGD-CE", partial(apgd, loss="ce"), on_the_rest=True)
APGD_DLR = Attack("APGD-DLR", partial(apgd, loss="dlr"), on_the_rest=True, least_classes=3)
SQUARE = Attack("Square", square, on_the_rest=True, follows_gradients=False)
NOISE = Attack("random noise", random_signs, grows=False, follows_gradients=False)
# In the order in which they run; an attack on the rest takes what those before it, of its norm, have left.
ATTACKS = (FGSM, PGD, PGD_L2, APGD_CE, APGD_DLR, SQUARE)
