"""Whether the figures of an attack can be believed: checks that run each time and are stored beside the figures.

Most published defences fell because an attack was weaker than it looked (Athalye et al. 2018; Carlini et al. 2019, "On
Evaluating Adversarial Robustness", section 3, whose list these checks follow).
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftflow.attack_curves import Curve, telling_radius
from graftflow.attacked_pictures import AttackedPictures
from graftflow.errors import InputError
from graftflow.predictions import Array

# A channel may change this much in 1: nearly everything can become grey, and no classifier withstands it.
LARGE_EPSILON = 128 / 255
TOTAL = 0.99
# Of pictures classified right, how many random noise may fool, and how many Square may fool beyond all others.
MOST_BY_NOISE, MOST_BY_SQUARE = 0.1, 0.03
# Float32 sums of another order, and TF32 on a GPU.
_SAME = {"CPU": 1e-4, "GPU": 2e-2}


def check(name: str, holds: bool | None, seen: str, why: str) -> dict[str, Any]:
    """Return a check as ``adversarial.json`` holds it; ``holds`` is ``None`` where there was nothing to see."""
    return {"name": name, "holds": None if holds is None else bool(holds), "seen": seen, "why": why}


def believable(checks: Sequence[dict[str, Any]]) -> bool:
    """Return whether no check failed."""
    return all(row["holds"] is not False for row in checks)


def within_radius(curves: Sequence[Curve]) -> dict[str, Any]:
    """Check that no change that was sent is larger than its radius."""
    seen, worst = 0, None
    for curve in curves:
        for epsilon, moved, tried in zip(curve.radii, curve.moved, curve.tried, strict=True):
            seen += int(tried.sum())
            # Pixels are float32: a step of ε may end one of its 2⁻²⁴ further.
            if moved > epsilon + 2e-7:
                worst = (moved - epsilon, curve, epsilon, moved)
    if worst is None:
        told = f"none of {seen} attacked pictures left its ball, after a PNG and its decoding"
    else:
        _, curve, epsilon, moved = worst
        told = f"{curve.attack.name} moved a picture by {255 * moved:.3g}/255 at ε = {255 * epsilon:.3g}/255"
    return check(
        "Changes stay within ε",
        worst is None if seen else None,
        told,
        "a change that is larger than ε fools more easily than the figure says",
    )


def never_rises(worst: Array) -> dict[str, Any]:
    """Check that the worst-case accuracy falls or stays as ε grows; ``worst`` is bool (e, n), fooled."""
    accuracy = 1 - worst.mean(axis=1)
    rises = int((np.diff(accuracy) > 1e-12).sum())
    path = " → ".join(f"{100 * value:.0f} %" for value in accuracy)
    return check(
        "Worst case never rises with ε",
        rises == 0,
        path,
        "a larger ball holds every picture of a smaller one, so a rise would show a weak attack",
    )


def pgd_beats_fgsm(curves: Sequence[Curve]) -> dict[str, Any]:
    """Check that PGD fools at least as many pictures as FGSM at every radius, away from the label and towards one."""
    weaker, compared = [], 0
    for targeted in (False, True):
        pair = [c for name in ("FGSM", "PGD") for c in _named(curves, name, targeted)]
        if len(pair) < 2:
            continue
        for epsilon, one, many in zip(pair[0].radii, pair[0].reached, pair[1].reached, strict=True):
            compared += 1
            if many.sum() < one.sum():
                weaker.append(f"{many.sum()} against {one.sum()} at ε = {255 * epsilon:.3g}/255")
    return check(
        "PGD is never weaker than FGSM",
        not weaker if compared else None,
        "; ".join(weaker) or f"at none of {compared} radii does FGSM fool more pictures",
        "many steps that do worse than one follow gradients that lead nowhere",
    )


def falls_at_last(fooled: int, attacked: int) -> dict[str, Any]:
    """Check that nothing withstands a change of half the pixel range."""
    return check(
        "Everything falls at a large ε",
        fooled >= TOTAL * attacked if attacked else None,
        f"{fooled} of {attacked} pictures are fooled at ε = {255 * LARGE_EPSILON:.0f}/255",
        "within this ball a picture can become plain grey: an attack that still fails is broken",
    )


def gradients_are_open(curves: Sequence[Curve]) -> dict[str, Any]:
    """Check that attacks that see no gradient fool no more than noise beyond what the others fooled.

    Args:
        curves: all L-infinity curves; those of attacks without gradients took what the others had left.
    """
    name = "Without gradients no more is found"
    why = "a network can hide its gradients without being robust, and an attack that needs none shows it"
    blind = [curve for curve in curves if not curve.attack.follows_gradients]
    if not blind:
        return check(name, None, "no attack without gradients was run", why)
    tried = np.logical_or.reduce([curve.tried.any(axis=0) for curve in blind])
    gained = np.logical_or.reduce([(curve.reached & curve.tried).any(axis=0) for curve in blind])
    most = max(1, int(MOST_BY_SQUARE * blind[0].attacked.sum()))
    who = " and ".join(curve.attack.name for curve in blind)
    told = f"{who} fooled {int(gained.sum())} of the {int(tried.sum())} pictures that gradient attacks left at some ε"
    return check(
        name, int(gained.sum()) <= most, told if tried.any() else "gradient attacks left no picture", why
    )


def noise_is_harmless(noise: Curve, worst: Array) -> dict[str, Any]:
    """Check that random noise fools hardly anything at the smallest ε at which the attacks fool half, or at the last.

    Args:
        noise: random signs at the radii.
        worst: bool (e, n): what the attacks fooled.
    """
    right = noise.attacked
    if not right.any():
        return check("Noise of the same size is harmless", None, "no picture was right", _NOISE_WHY)
    at = telling_radius(worst[:, right])
    fooled, most = int(noise.reached[at].sum()), max(1, int(MOST_BY_NOISE * right.sum()))
    return check(
        "Noise of the same size is harmless",
        fooled <= most,
        f"at ε = {255 * noise.radii[at]:.3g}/255 it fools {fooled} of {int(right.sum())} pictures, "
        f"the attacks {int(worst[at, right].sum())}",
        _NOISE_WHY,
    )


_NOISE_WHY = "where noise does as well as the attack, the figure tells of noise and not of the attack"


def agrees_with_evaluation(
    pictures: AttackedPictures,
    evaluation_path: str | Path | None,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Check that the unchanged pictures are predicted as the evaluation predicted them.

    Args:
        pictures: what is attacked.
        evaluation_path: an ``evaluation`` artifact of the same model and data, or ``None``.
        classes: the ``k`` names.

    Raises:
        InputError: where the artifact cannot be read.
    """
    name, why = "Unchanged pictures are predicted as evaluated", "otherwise another model was attacked"
    if evaluation_path is None:
        return check(name, None, "no evaluation was given", why)
    told, device = _evaluated(Path(evaluation_path), classes)
    known = [index for index, path in enumerate(pictures.paths) if path in told]
    if not known:
        return check(name, False, "the evaluation holds none of these pictures", why)
    expected = np.array([told[pictures.paths[index]] for index in known])
    probabilities = pictures.file_probabilities[known]
    largest = float(np.abs(expected - probabilities).max())
    others = int((expected.argmax(axis=1) != probabilities.argmax(axis=1)).sum())
    return check(
        name,
        len(known) == len(pictures.paths) and largest <= _SAME.get(device, _SAME["GPU"]),
        f"{len(known) - others} of {len(pictures.paths)} answers agree, "
        f"probabilities differ by at most {max(largest, 1e-4):.1g}",
        why,
    )


def _evaluated(folder: Path, classes: Sequence[str]) -> tuple[dict[str, list[float]], str]:
    """Return path → probabilities, and the device they were computed on."""
    from graftflow.files import read_json

    try:
        device = str(read_json(folder / "evaluation.json").get("device", "GPU"))
        with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
            rows = {row["path"]: [float(row[name]) for name in classes] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"An evaluation must be a folder with evaluation.json and predictions.csv, as evaluate writes it. "
            f"Received: '{folder}' ({type(error).__name__}: {error})."
        ) from error
    return rows, device


def _named(curves: Sequence[Curve], name: str, targeted: bool) -> list[Curve]:
    return [c for c in curves if c.attack.name == name and c.attack.norm == "linf" and c.targeted == targeted]
