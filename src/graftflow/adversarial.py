"""The ``adversarial`` artifact: how often a classifier is fooled, by what, and whether to believe it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graftflow import attack_curves, attacks, believability, corruptions, datasets, transferability
from graftflow.attack_curves import ATTACKS, Curve
from graftflow.attacked_pictures import AttackedPictures, load, stratified
from graftflow.epsilons import whole_levels
from graftflow.errors import InputError, unknown_name
from graftflow.files import read_json, write_json
from graftflow.intervals import CONFIDENCE, share
from graftflow.minimal_radii import minimal_radii
from graftflow.predictions import Array, in_batches, predict
from graftflow.progress import Progress
from graftflow.training import load_classifier
from graftflow.triplets import MOST, write_triplets

__all__ = ["key_figures", "robust_accuracy", "stratified", "write_adversarial"]

_DESCENT_PICTURES, _DESCENT_STEPS, _DESCENT_PROBABILITY = 8, 50, 0.9
# Each costs gradients: enough for a histogram and a matrix.
_MINIMAL_PICTURES, _TRANSFER_PICTURES = 12, 12
# Means of the change of a channel, in 1/255, that a change of each L2 radius comes to.
_L2_LEVELS = (0.125, 0.25, 0.5, 1.0)


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
    head_path: str | Path | None = None,
    weights: str = "imagenet",
    other_model_path: str | Path | None = None,
    evaluation_path: str | Path | None = None,
) -> dict[str, Any]:
    """Attack a classifier on test pictures, corrupt them, and write the ``adversarial`` artifact.

    Figures are counted on the pictures that a server decodes from a PNG, with every change within ε after rounding
    too. Below 1/255 no PNG can differ from the original: those radii are counted on float pixels, as the ``pixels``
    signature takes them, and marked ``false`` in ``rounded``. ``accuracy`` is a share of all pictures (of a targeted
    attack: of those that are not of the target class), ``success`` of those among them that were classified right at
    first. An iterated attack does not attack a picture again that it fooled at a smaller ε: that result lies in the
    larger ball. FGSM takes its one step at every ε. ``worst_case`` is, picture by picture, the best of all attacks at
    this ε or a smaller one. ``checks`` say whether all this can be believed.

    Args:
        destination: an existing folder; receives ``adversarial.json`` and ``triplets/*.png``.
        model_path: a ``model`` artifact.
        dataset_path: the ``dataset`` artifact whose test split is used.
        num_pictures: how many, ≥ 1, the same number of each class as far as there are enough.
        epsilons: L-infinity radii in [0, 1]; sorted here.
        steps: of PGD, ≥ 1.
        target_class: name of the class that targeted attacks aim at, or ``""``: of each picture the class after its
            own.
        seed: fixes the pictures, random starts and noise.
        head_path: the ``head`` artifact that the model began with: adds its classifier, which was never fine-tuned, to
            the transfer matrix.
        weights: the backbone's weights, with which the head was trained.
        other_model_path: a ``model`` artifact with the same classes, of any backbone, for the transfer matrix.
        evaluation_path: the ``evaluation`` artifact of the same model, with which unchanged pictures are compared.

    Returns:
        What was written to ``adversarial.json``; ``mean_linf`` is in units of 1/255, as ``epsilons`` are.

    Raises:
        InputError: where a setting is out of range, the class is unknown, the test split is empty, or a model was
            trained on other classes.
    """
    radii = _checked(num_pictures, epsilons, steps)
    classes = datasets.load_info(Path(dataset_path)).classes
    if target_class and target_class not in classes:
        raise unknown_name("target_class", target_class, classes)
    attacked = transferability.contender("attacked", _load_model(model_path, len(classes)))
    logits_of = attacked.ready()
    target = classes.index(target_class) if target_class else None
    pictures = load(logits_of, Path(dataset_path), num_pictures, target, attacked.size, seed)
    contenders = _contenders(attacked, model_path, head_path, weights, other_model_path, len(classes))

    curves, sized = _curves(logits_of, pictures, radii, steps, seed, aims=len(classes) > 2)
    noise = attack_curves.measure(
        attack_curves.NOISE, logits_of, pictures, radii, steps=steps, seed=seed, targeted=False
    )
    worst = attack_curves.worst_case(curves)
    checks = [
        believability.agrees_with_evaluation(pictures, evaluation_path, classes),
        believability.within_radius([*curves, *sized]),
        believability.never_rises(worst),
        believability.pgd_beats_fgsm(curves),
        _falls_at_last(logits_of, pictures, curves, steps, seed),
        believability.gradients_are_open(curves),
        believability.noise_is_harmless(noise, worst),
    ]
    everyone = np.ones_like(pictures.right)
    result = {
        "pictures": len(pictures.labels),
        "steps": steps,
        "confidence": CONFIDENCE,
        "clean_accuracy": float(pictures.right.mean()),
        "clean": _accuracy(~pictures.right, everyone),
        "believable": believability.believable(checks),
        "checks": checks,
        "epsilons": [round(255 * epsilon, 6) for epsilon in radii],
        "attacks": [curve.row() for curve in curves],
        "worst_case": {
            **_columns([_accuracy(wrong, everyone) for wrong in worst], "accuracy"),
            "success": [_accuracy(~wrong, pictures.right)["value"] or 0.0 for wrong in worst],
        },
        "noise": _columns([_accuracy(wrong, everyone) for wrong in noise.wrong], "accuracy"),
        "l2": _l2(sized),
        "minimal": _minimal(logits_of, pictures, curves, steps, seed),
        "transfer": _transfer(contenders, pictures, radii, worst, steps),
        "corruptions": _corruptions(logits_of, pictures, seed),
        "descent": _descent(logits_of, pictures, target_class),
        "triplets": write_triplets(Path(destination), logits_of, pictures, _strongest(curves), classes),
    }
    write_json(Path(destination) / "adversarial.json", result)
    return result


def robust_accuracy(found: Mapping[str, Any], epsilon: float | None = None) -> float:
    """Return what a gate may rely on: the worst-case accuracy at a radius, or 0 where a check failed.

    Args:
        found: what :func:`write_adversarial` returned.
        epsilon: an L-infinity radius that was tried, in [0, 1]; ``None`` takes the largest.

    Raises:
        InputError: where the radius was not tried.
    """
    radii, accuracy = found["epsilons"], found["worst_case"]["accuracy"]
    wanted = radii[-1] if epsilon is None else round(255 * epsilon, 6)
    if wanted not in radii:
        tried = ", ".join(f"{radius:g}/255" for radius in radii)
        raise InputError(f"The robust accuracy is known at {tried}. Received: {wanted:g}/255.")
    return float(accuracy[radii.index(wanted)]) if found["believable"] else 0.0


def key_figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that a pipeline logs: accuracy without attack and, at the largest radius, under each attack.

    Args:
        found: what :func:`write_adversarial` returned.
    """
    figures = {
        "clean_accuracy": found["clean_accuracy"],
        "largest_epsilon_255": found["epsilons"][-1],
        "worst_case_accuracy": found["worst_case"]["accuracy"][-1],
        "descent_success": found["descent"]["success"],
        "failed_checks": sum(row["holds"] is False for row in found["checks"]),
    }
    for attack in found["attacks"]:
        name = attack["name"].lower().replace(" ", "_").replace("-", "_")
        figures[f"{name}{'_targeted' * attack['targeted']}_accuracy"] = attack["accuracy"][-1]
    return {name: float(value) for name, value in figures.items()}


def _checked(num_pictures: int, epsilons: Sequence[float], steps: int) -> list[float]:
    if num_pictures < 1:
        raise InputError(f"num_pictures must be at least 1. Received: {num_pictures}.")
    if steps < 1:
        raise InputError(f"steps must be at least 1. Received: {steps}.")
    if not epsilons or not all(0 <= epsilon <= 1 for epsilon in epsilons):
        raise InputError(f"epsilons must be radii in [0, 1]. Received: {list(epsilons)}.")
    return sorted({float(epsilon) for epsilon in epsilons})


def _load_model(path: str | Path, num_classes: int) -> Any:
    model = load_classifier(path)
    if model.output_shape[-1] != num_classes:
        raise InputError(
            f"the model must have an output for each of the data's {num_classes} classes. "
            f"Received: {model.output_shape[-1]} outputs."
        )
    return model


def _contenders(
    attacked: transferability.Contender,
    model_path: str | Path,
    head_path: str | Path | None,
    weights: str,
    other_model_path: str | Path | None,
    num_classes: int,
) -> list[transferability.Contender]:
    """Return the models of the transfer matrix, each network once."""
    if head_path is None and other_model_path is None:
        return []
    kept = read_json(Path(model_path) / "model.json").get("chosen") == "head"
    contenders = [replace(attacked, name="features only" if kept else "fine-tuned")]
    if head_path is not None and not kept:
        contenders.append(transferability.features_only(head_path, weights=weights, known=contenders))
    if other_model_path is not None:
        name = read_json(Path(other_model_path) / "model.json")["backbone"]["name"]
        other = _load_model(other_model_path, num_classes)
        contenders.append(transferability.contender(f"other model, {name}", other, contenders))
    return contenders


def _curves(
    logits_of: Any, pictures: AttackedPictures, radii: list[float], steps: int, seed: int, *, aims: bool
) -> tuple[list[Curve], list[Curve]]:
    """Run all attacks of the table: the curves over L-infinity radii, and those over L2 radii."""
    able = [attack for attack in ATTACKS if attack.least_classes <= pictures.probabilities.shape[1]]
    # Of two classes, away from one is towards the other.
    runs = [
        (attack, aim) for aim in (False, True)[: 1 + aims] for attack in able if attack.can_aim or not aim
    ]
    lengths = [level / 255 * float(np.sqrt(pictures.levels[0].size)) for level in _L2_LEVELS]
    total = sum(len(lengths if attack.norm == "l2" else radii) for attack, _ in runs)
    progress = Progress("adversarial attacks", total=total, unit="runs")
    curves: dict[str, list[Curve]] = {"linf": [], "l2": []}
    # What only takes the rest comes last.
    for attack, aim in sorted(runs, key=lambda run: run[0].on_the_rest):
        curve = attack_curves.measure(
            attack,
            logits_of,
            pictures,
            lengths if attack.norm == "l2" else radii,
            steps=steps,
            seed=seed,
            targeted=aim,
            before=curves[attack.norm],
            shown=MOST if _is_shown(attack, aim) else 0,
            progress=progress,
        )
        curves[attack.norm].append(curve)
    if not aims:
        turned = [c for c in curves["linf"] if c.attack.can_aim]
        curves["linf"] += [attack_curves.turned_round(curve, pictures) for curve in turned]
    return curves["linf"], curves["l2"]


def _strongest(curves: Sequence[Curve]) -> Curve:
    """Return the curve that pictures are shown of."""
    return next(curve for curve in curves if _is_shown(curve.attack, curve.targeted))


def _is_shown(attack: attack_curves.Attack, targeted: bool) -> bool:
    return attack is attack_curves.PGD and not targeted


def _falls_at_last(
    logits_of: Any, pictures: AttackedPictures, curves: Sequence[Curve], steps: int, seed: int
) -> dict[str, Any]:
    """Attack what the largest radius has left once more, at one that nothing can withstand."""
    fooled = np.logical_or.reduce(
        [wrong for c in curves for wrong in c.wrong[c.rounded]] or [~pictures.right]
    )
    left = np.flatnonzero(pictures.right & ~fooled)
    found = 0
    if len(left):
        curve = attack_curves.measure(
            attack_curves.PGD,
            logits_of,
            pictures.take(left),
            [believability.LARGE_EPSILON],
            steps=steps,
            seed=seed,
        )
        found = int(curve.reached[0].sum())
    right = int(pictures.right.sum())
    return believability.falls_at_last(right - len(left) + found, right)


def _minimal(
    logits_of: Any, pictures: AttackedPictures, curves: Sequence[Curve], steps: int, seed: int
) -> dict[str, Any]:
    chosen = np.flatnonzero(pictures.right)[:_MINIMAL_PICTURES]
    away = [c for c in curves if not c.targeted]
    values: list[float | None] = []
    if len(chosen):
        values = minimal_radii(
            attack_curves.PGD,
            logits_of,
            pictures.pixels_at(chosen),
            pictures.labels[chosen],
            radii=away[0].radii,
            fooled=attack_curves.worst_case(away)[:, chosen],
            steps=steps,
            seed=seed,
        )
    return {"attack": attack_curves.PGD.name, "pictures": len(chosen), "epsilons": values}


def _transfer(
    contenders: Sequence[transferability.Contender],
    pictures: AttackedPictures,
    radii: Sequence[float],
    worst: Array,
    steps: int,
) -> dict[str, Any] | None:
    whole = [number for number, epsilon in enumerate(radii) if whole_levels(epsilon)]
    if len(contenders) < 2 or not whole:
        return None
    # At a larger ε all models fall to everything, and the matrix says nothing.
    epsilon = radii[whole[attack_curves.telling_radius(worst[whole])]]
    few = slice(_TRANSFER_PICTURES)
    return transferability.transfer_matrix(
        contenders, pictures.pixels_at(few), pictures.labels[few], epsilon=epsilon, steps=steps
    )


def _corruptions(logits_of: Any, pictures: AttackedPictures, seed: int) -> dict[str, Any]:
    everyone, numbers = np.ones_like(pictures.right), np.arange(len(pictures.labels))
    progress = Progress("corruptions", total=len(corruptions.CORRUPTIONS), unit="kinds")
    rows = []
    for name, kind in corruptions.CORRUPTIONS.items():
        wrongs = [
            in_batches(partial(_corrupted, logits_of, pictures, name, severity, seed), numbers)
            != pictures.labels
            for severity in corruptions.SEVERITIES
        ]
        rows.append({"name": kind.title, **_columns([_accuracy(w, everyone) for w in wrongs], "accuracy")})
        progress.advance()
    return {
        "source": corruptions.SOURCE,
        "severities": list(corruptions.SEVERITIES),
        "pictures": len(pictures.labels),
        "rows": rows,
    }


def _corrupted(
    logits_of: Any, pictures: AttackedPictures, name: str, severity: int, seed: int, some: Array
) -> Array:
    """Return the classes predicted for neighbouring pictures, corrupted."""
    pixels = corruptions.corrupt(pictures.pixels_at(some), name, severity, seed=seed, first=int(some[0]))
    return np.asarray(predict(logits_of, pixels).argmax(axis=1))


def _l2(curves: Sequence[Curve]) -> dict[str, Any] | None:
    if not curves:
        return None
    return {
        "epsilons": [round(radius, 4) for radius in curves[0].radii],
        "attacks": [curve.row() for curve in curves],
    }


def _accuracy(wrong: Array, base: Array) -> dict[str, float | None]:
    """Return the share of ``base`` that is not wrong, and its interval."""
    return share(int((~wrong & base).sum()), int(base.sum()))


def _columns(rows: Sequence[Mapping[str, float | None]], name: str) -> dict[str, list[float | None]]:
    return {
        name: [r["value"] for r in rows],
        "low": [r["low"] for r in rows],
        "high": [r["high"] for r in rows],
    }


def _descent(logits_of: Any, pictures: AttackedPictures, target_class: str) -> dict[str, Any]:
    chosen = np.flatnonzero(pictures.right & (pictures.labels != pictures.targets))
    chosen = chosen[:_DESCENT_PICTURES]
    success, moved = 0.0, 0.0
    if len(chosen):
        original, targets = pictures.pixels_at(chosen), pictures.targets[chosen]
        found = attacks.descend(
            logits_of,
            original,
            targets,
            steps=_DESCENT_STEPS,
            probability=_DESCENT_PROBABILITY,
            eight_bits=True,
        ).numpy()
        probabilities = predict(logits_of, found)[np.arange(len(chosen)), targets]
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
