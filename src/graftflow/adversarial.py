"""The ``adversarial`` artifact: how often a classifier is fooled, by what, and how that looks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from graftflow import attacks, datasets, preprocessing
from graftflow.epsilons import whole_levels
from graftflow.errors import InputError, unknown_name
from graftflow.files import write_json
from graftflow.progress import Progress
from graftflow.training import load_classifier

_BATCH = 32
_DESCENT_PICTURES, _DESCENT_STEPS, _DESCENT_PROBABILITY = 8, 50, 0.9
_TRIPLETS = 4

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Pictures:
    """What is attacked: pixels of whole 1/255, as a PNG carries them."""

    pixels: Array  # float32 (n, s, s, 3)
    labels: Array  # int64 (n,)
    targets: Array  # int64 (n,)
    probabilities: Array  # float32 (n, k), before any attack

    @property
    def right(self) -> Array:
        """Which are classified right before any attack, bool (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)


@dataclass(frozen=True)
class _Curve:
    """One attack at every ε, picture by picture."""

    name: str
    targeted: bool
    base: Array  # bool (n,): what accuracy is a share of
    attacked: Array  # bool (n,): what success is a share of
    wrong: Array  # bool (e, n): not the label predicted
    reached: Array  # bool (e, n): the attack's own aim
    first: dict[int, tuple[float, Array]]  # picture: smallest whole-level ε that fooled it, and how

    def row(self, rounded: list[bool]) -> dict[str, Any]:
        return {
            "name": self.name,
            "norm": "linf",
            "targeted": self.targeted,
            "accuracy": [_share(~wrong, self.base) for wrong in self.wrong],
            "success": [_share(reached, self.attacked) for reached in self.reached],
            "pictures": int(self.base.sum()),
            "attacked": int(self.attacked.sum()),
            "rounded": rounded,
        }


def write_adversarial(
    destination: str | Path,
    *,
    model_path: str | Path,
    dataset_path: str | Path,
    num_pictures: int,
    epsilons: Sequence[float],
    steps: int,
    target_class: str,
    seed: int,
) -> dict[str, Any]:
    """Attack a classifier on test pictures and write the ``adversarial`` artifact.

    Figures are counted on pictures of 8 bits, as a server receives them in a PNG, with every change
    within ε after rounding too. Below 1/255 no PNG can differ from the original: those radii are
    counted on float pixels, as the ``pixels`` signature takes them, and marked ``false`` in
    ``rounded``. ``accuracy`` is a share of all pictures (of a targeted attack: of those that are
    not of the target class), ``success`` of those among them that were classified right at first.
    PGD does not attack a picture again that it fooled at a smaller ε: that result lies in the
    larger ball. FGSM takes its one step at every ε. ``worst_case`` is, picture by picture, the best
    of all attacks at this ε or a smaller one.

    Args:
        destination: an existing folder; receives ``adversarial.json`` and ``triplets/*.png``.
        model_path: a ``model`` artifact.
        dataset_path: the ``dataset`` artifact whose test split is used.
        num_pictures: how many, ≥ 1, the same number of each class as far as there are enough.
        epsilons: L-infinity radii in [0, 1]; sorted here.
        steps: of PGD, ≥ 1.
        target_class: name of the class that targeted attacks aim at, or ``""``: of each picture the
            class after its own.
        seed: fixes the pictures and PGD's random start.

    Returns:
        What was written to ``adversarial.json``; ``mean_linf`` is in units of 1/255, as
        ``epsilons`` are.

    Raises:
        InputError: where a setting is out of range, the class is unknown, the test split is empty,
            or the model was trained on other classes.
    """
    radii = _checked(num_pictures, epsilons, steps)
    classes = datasets.load_info(Path(dataset_path)).classes
    if target_class and target_class not in classes:
        raise unknown_name("target_class", target_class, classes)
    model = load_classifier(model_path)
    if model.output_shape[-1] != len(classes):
        raise InputError(
            f"the model must have an output for each of the data's {len(classes)} classes. "
            f"Received: {model.output_shape[-1]} outputs."
        )
    logits_of = attacks.logits_model(model)
    target = classes.index(target_class) if target_class else None
    pictures = _load(logits_of, Path(dataset_path), num_pictures, target, model.input_shape[1], seed)

    rounded = [whole_levels(epsilon) > 0 for epsilon in radii]
    aims = (False,) if len(classes) == 2 else (False, True)
    progress = Progress("adversarial attacks", total=2 * len(aims) * len(radii) + 1, unit="runs")
    curves = [
        _curve(logits_of, pictures, radii, steps, seed, name, targeted, progress)
        for targeted in aims
        for name in ("FGSM", "PGD")
    ]
    if len(classes) == 2:
        curves += [_turned_round(curve, pictures) for curve in curves]
    fooled = np.logical_or.reduce([curve.wrong for curve in curves])
    worst = np.logical_or.accumulate(fooled, axis=0)
    result = {
        "pictures": len(pictures.labels),
        "steps": steps,
        "clean_accuracy": float(pictures.right.mean()),
        "epsilons": [round(255 * epsilon, 6) for epsilon in radii],
        "attacks": [curve.row(rounded) for curve in curves],
        "worst_case": {
            "accuracy": [_share(~wrong, np.ones_like(pictures.right)) for wrong in worst],
            "success": [_share(wrong, pictures.right) for wrong in worst],
        },
        "descent": _descent(logits_of, pictures, target_class),
        "triplets": _write_triplets(Path(destination), logits_of, pictures, curves[1], classes),
    }
    progress.advance()
    write_json(Path(destination) / "adversarial.json", result)
    return result


def stratified(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Choose up to ``count`` positions, in turn from every label, at random within a label.

    Args:
        labels: label of each position.
        count: how many to choose.
        seed: fixes the choice.

    Returns:
        Positions, ascending.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    turn: dict[int, int] = {}
    ranked = []
    for position in shuffled:
        label = int(labels[position])
        ranked.append((turn.get(label, 0), label, int(position)))
        turn[label] = turn.get(label, 0) + 1
    return sorted(position for _, _, position in sorted(ranked)[:count])


def _checked(num_pictures: int, epsilons: Sequence[float], steps: int) -> list[float]:
    if num_pictures < 1:
        raise InputError(f"num_pictures must be at least 1. Received: {num_pictures}.")
    if steps < 1:
        raise InputError(f"steps must be at least 1. Received: {steps}.")
    if not epsilons or not all(0 <= epsilon <= 1 for epsilon in epsilons):
        raise InputError(f"epsilons must be radii in [0, 1]. Received: {list(epsilons)}.")
    return sorted({float(epsilon) for epsilon in epsilons})


def _load(
    logits_of: Any, dataset: Path, num_pictures: int, target: int | None, size: int, seed: int
) -> _Pictures:
    # Two passes: the labels first, so that only the chosen pictures are held in memory.
    labels = [int(example["label"]) for example in datasets.read_split(dataset, "test")]
    if not labels:
        raise InputError(f"the test split must hold pictures. Received: none in '{dataset}'.")
    chosen = stratified(labels, num_pictures, seed)
    wanted = set(chosen)
    images = [
        example["image"]
        for position, example in enumerate(datasets.read_split(dataset, "test"))
        if position in wanted
    ]
    decoded = preprocessing.decode_batch(tf.stack(images), size)
    pixels = np.round(decoded.numpy() * np.float32(255)) / np.float32(255)
    own = np.array([labels[position] for position in chosen], np.int64)
    probabilities = _predict(logits_of, pixels)
    count = probabilities.shape[1]
    targets = (own + 1) % count if target is None else np.full_like(own, target)
    return _Pictures(pixels, own, targets, probabilities)


def _curve(
    logits_of: Any,
    pictures: _Pictures,
    radii: list[float],
    steps: int,
    seed: int,
    name: str,
    targeted: bool,
    progress: Progress,
) -> _Curve:
    labels = pictures.targets if targeted else pictures.labels
    base = pictures.labels != pictures.targets if targeted else np.ones_like(pictures.right)
    attacked = base & pictures.right
    first: dict[int, tuple[float, Array]] = {}
    wrongs, reacheds = [], []
    predicted = pictures.probabilities.argmax(axis=1)
    clean, done, was_rounded = predicted.copy(), np.zeros_like(attacked), False
    signs = np.zeros_like(pictures.pixels)
    if name == "FGSM" and attacked.any():
        gradient = partial(attacks.signed_gradient, logits_of, targeted=targeted)
        signs[attacked] = _in_batches(gradient, pictures.pixels[attacked], labels[attacked])
    for epsilon in radii:
        rounded = whole_levels(epsilon) > 0
        # What float pixels achieved says nothing about pictures of 8 bits.
        if rounded != was_rounded or name == "FGSM":
            predicted, done, was_rounded = clean.copy(), np.zeros_like(attacked), rounded
        todo = np.flatnonzero(attacked & ~done)
        if len(todo):
            run = partial(_attack, logits_of, name, targeted, epsilon, steps, seed)
            found = _in_batches(run, pictures.pixels[todo], labels[todo], signs[todo])
            predicted[todo] = _predict(logits_of, found).argmax(axis=1)
            done = attacked & ((predicted == labels) == targeted)
            if rounded:
                first |= {int(i): (epsilon, x) for i, x in zip(todo, found, strict=True) if done[i]}
        wrongs.append(predicted != pictures.labels)
        reacheds.append(done)
        progress.advance()
    return _Curve(name, targeted, base, attacked, np.array(wrongs), np.array(reacheds), first)


def _turned_round(curve: _Curve, pictures: _Pictures) -> _Curve:
    """Of two classes, away from one is towards the other: there is nothing to compute again."""
    base = pictures.labels != pictures.targets
    attacked = base & pictures.right
    return replace(curve, targeted=True, base=base, attacked=attacked, reached=curve.reached & attacked)


def _attack(
    logits_of: Any,
    name: str,
    targeted: bool,
    epsilon: float,
    steps: int,
    seed: int,
    pixels: Array,
    labels: Array,
    signs: Array,
) -> Any:
    eight_bits = whole_levels(epsilon) > 0
    if name == "PGD":
        return attacks.pgd(
            logits_of,
            pixels,
            labels,
            epsilon=epsilon,
            steps=steps,
            seed=seed,
            targeted=targeted,
            eight_bits=eight_bits,
        )
    found = attacks.fgsm(logits_of, pixels, labels, epsilon=epsilon, targeted=targeted, signs=signs)
    return attacks.round_to_eight_bits(found, pixels, epsilon) if eight_bits else found


def _descent(logits_of: Any, pictures: _Pictures, target_class: str) -> dict[str, Any]:
    chosen = np.flatnonzero(pictures.right & (pictures.labels != pictures.targets))
    chosen = chosen[:_DESCENT_PICTURES]
    success, moved = 0.0, 0.0
    if len(chosen):
        original, targets = pictures.pixels[chosen], pictures.targets[chosen]
        found = attacks.descend(
            logits_of,
            original,
            targets,
            steps=_DESCENT_STEPS,
            probability=_DESCENT_PROBABILITY,
            eight_bits=True,
        ).numpy()
        probabilities = _predict(logits_of, found)[np.arange(len(chosen)), targets]
        reached = probabilities >= _DESCENT_PROBABILITY
        success = float(reached.mean())
        if reached.any():
            moved = float(np.abs(found - original)[reached].max(axis=(1, 2, 3)).mean() * 255)
    return {
        "target": target_class or "the class after the label",
        "success": success,
        "mean_linf": moved,
        "pictures": len(chosen),
        "probability": _DESCENT_PROBABILITY,
        "steps": _DESCENT_STEPS,
    }


def _write_triplets(
    destination: Path, logits_of: Any, pictures: _Pictures, curve: _Curve, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Write the strips of a few pictures, each at the smallest ε that fooled it."""
    (destination / "triplets").mkdir()
    rows = []
    for number, index in enumerate(_telling(pictures, curve)):
        epsilon, adversarial = curve.first[index]
        original = pictures.pixels[index]
        grey = np.clip(0.5 + 10 * (adversarial - original), 0, 1)
        strip = np.concatenate([original, grey, adversarial], axis=1)
        file = f"triplets/{number}.png"
        Image.fromarray(np.round(strip * 255).astype(np.uint8)).save(destination / file)
        after = _predict(logits_of, adversarial[None])[0]
        rows.append(
            {
                "file": file,
                "attack": curve.name,
                "epsilon": round(255 * epsilon, 6),
                "label": classes[int(pictures.labels[index])],
                "original": _best(pictures.probabilities[index], classes),
                "adversarial": _best(after, classes),
            }
        )
    return rows


def _telling(pictures: _Pictures, curve: _Curve) -> list[int]:
    """Choose fooled pictures of different radii and classes, of these the surest before."""
    chosen: list[int] = []
    left = sorted(curve.first)
    while left and len(chosen) < _TRIPLETS:

        def rank(index: int) -> tuple[int, int, float]:
            radius, label = curve.first[index][0], pictures.labels[index]
            return (
                sum(curve.first[other][0] == radius for other in chosen),
                sum(pictures.labels[other] == label for other in chosen),
                -float(pictures.probabilities[index].max()),
            )

        chosen.append(min(left, key=rank))
        left.remove(chosen[-1])
    return sorted(chosen, key=lambda index: (curve.first[index][0], index))


def _best(probabilities: Array, classes: Sequence[str]) -> dict[str, Any]:
    index = int(probabilities.argmax())
    return {"label": classes[index], "probability": float(probabilities[index])}


def _predict(logits_of: Any, pixels: Array) -> Array:
    """Return probabilities, float32 (n, k)."""
    logits = _in_batches(partial(attacks.predict_logits, logits_of), pixels)
    return np.asarray(tf.nn.softmax(logits))


def _in_batches(function: Callable[..., Any], *arrays: Array) -> Array:
    """Apply ``function`` to the arrays' batches of at most 32 pictures."""
    starts = range(0, len(arrays[0]), _BATCH)
    parts = [function(*(array[start : start + _BATCH] for array in arrays)) for start in starts]
    return np.concatenate([np.asarray(part) for part in parts])


def _share(mask: Array, base: Array) -> float:
    """Return the fraction of ``base`` where ``mask`` holds; 0 where ``base`` is empty."""
    return float(mask[base].mean()) if base.any() else 0.0
