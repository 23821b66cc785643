"""How the tail is trained: the settings of fine-tuning, their defaults and their rules. Loads no TensorFlow."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from graftflow.epsilons import parse_epsilon
from graftflow.errors import InputError, unknown_name

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")
ADVERSARIAL_TRAININGS = ("none", "fgsm", "pgd")


@dataclass(frozen=True)
class Augmentation:
    """How far a view may be from its picture.

    Attributes:
        smallest_side: of the crop, as a fraction of the picture's side.
        brightness: largest shift of all values, in units of the range [0, 1].
        contrast: largest relative change of the contrast; saturation changes by at most twice as much.
        colour: whether hue and saturation change too.
        erased_side: side of the grey square that hides a part of the picture, as a fraction of its side.
    """

    smallest_side: float
    brightness: float
    contrast: float
    colour: bool = False
    erased_side: float = 0.0


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "light": Augmentation(smallest_side=0.8, brightness=0.1, contrast=0.2),
    # Random resized crop (Szegedy et al. 2015), colour jitter (Howard 2013), random erasing (Zhong et al. 2017).
    "strong": Augmentation(smallest_side=0.5, brightness=0.2, contrast=0.3, colour=True, erased_side=0.25),
}


@dataclass(frozen=True)
class Recipe:
    """How the tail is trained.

    Attributes:
        epochs: passes over the training pictures, at most.
        learning_rate: highest rate of AdamW, reached by the head and the last block.
        layer_decay: the rate of each block is that of the next one times this, 0 to 1 (Howard and Ruder 2018,
            section 3.1: discriminative fine-tuning).
        warmup_fraction: part of all steps in which the rate rises from 0; then it falls to 0 along a cosine
            (Loshchilov and Hutter 2017).
        weight_decay: decoupled (Loshchilov and Hutter 2019), of kernels only.
        label_smoothing: part of the target that is shared among all classes, 0 to below 1.
        mixup: α of the Beta distribution that shares are drawn from (Zhang et al. 2018); 0 mixes nothing.
        clip_norm: largest norm of the whole gradient.
        ema_decay: of the exponential moving average of the weights, which is what validation sees and what is
            kept (Polyak and Juditsky 1992); 0 keeps the last weights.
        patience: epochs without a smaller validation log loss after which training stops.
        precision: ``auto`` is ``mixed_float16`` on a GPU with tensor cores and ``float32`` elsewhere.
        num_views: augmented views of each picture whose activations at the cut are kept; 0 makes a new view each
            epoch.
        augmentation: ``none``, ``light`` or ``strong``.
        batch_size: pictures a step.
        seed: fixes order, augmentation, mixing, dropout and the random starts of attacks.
        adversarial_training: ``none``; ``fgsm``, one step of 1.25 ε from a random start (Wong et al. 2020, algorithm
            3); or ``pgd``, several smaller ones (Madry et al. 2018). The whole network then runs on every picture of
            every epoch, so ``num_views`` does not count. The last two blocks alone withstand nothing, since what a
            frozen trunk lets an attack change they cannot tell from a picture: train all blocks, at a higher rate.
        adversarial_epsilon: L-infinity radius of these attacks, a fraction or ``k/255``.
        adversarial_steps: of ``pgd``, each of 2.5 ε / steps.
        clean_tolerance: part of the validation pictures, without attack, that adversarial training may lose against
            the head alone.
    """

    epochs: int = 8
    learning_rate: float = 3e-5
    layer_decay: float = 0.7
    warmup_fraction: float = 0.1
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    mixup: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    patience: int = 3
    precision: str = "auto"
    num_views: int = 2
    augmentation: str = "light"
    batch_size: int = 32
    seed: int = 0
    adversarial_training: str = "none"
    adversarial_epsilon: str = "2/255"
    adversarial_steps: int = 3
    clean_tolerance: float = 0.05

    def check(self) -> None:
        """Raise InputError for the first value out of its range."""
        for field in fields(self):
            check_field(field.name, getattr(self, field.name))


def check_field(field: str, value: Any, *, name: str = "") -> None:
    """Check one value of a recipe.

    Args:
        field: of :class:`Recipe`.
        value: what it shall be.
        name: what the message calls it; by default the field's name.

    Raises:
        InputError: the value is out of its range.
    """
    _RULES[field](name or field, value)


def _at_least(least: int) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value < least:
            raise InputError(f"{name} must be a whole number from {least}. Received: {value}")

    return check


def _one_of(choices: Any) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value not in choices:
            raise unknown_name(name, value, choices)

    return check


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a positive number. Received: {value}")


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be 0 or a positive number. Received: {value}")


def _below_one(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name} must be at least 0 and below 1. Received: {value:g}")


def _factor(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InputError(f"{name} must be above 0 and at most 1. Received: {value:g}")


def _radius(name: str, value: str) -> None:
    if parse_epsilon(value) == 0:
        raise InputError(f"{name} must be above 0, such as '2/255'. Received: '{value}'")


_RULES: dict[str, Callable[[str, Any], None]] = {
    "epochs": _at_least(1),
    "learning_rate": _positive,
    "layer_decay": _factor,
    "warmup_fraction": _below_one,
    "weight_decay": _not_negative,
    "label_smoothing": _below_one,
    "mixup": _not_negative,
    "clip_norm": _positive,
    "ema_decay": _below_one,
    "patience": _at_least(1),
    "precision": _one_of(PRECISIONS),
    "num_views": _at_least(0),
    "augmentation": _one_of(AUGMENTATIONS),
    "batch_size": _at_least(1),
    "seed": _at_least(0),
    "adversarial_training": _one_of(ADVERSARIAL_TRAININGS),
    "adversarial_epsilon": _radius,
    "adversarial_steps": _at_least(1),
    "clean_tolerance": _below_one,
}
