"""Checks every setting of a run before any work is done; loads no TensorFlow."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftflow import (
    archives,
    backbones,
    caches,
    deployment,
    epsilons,
    feature_shards,
    heads,
    imagenet_classes,
    recipes,
    releases,
    sources,
)
from graftflow.errors import InputError


def check_run(settings: Mapping[str, Any]) -> int:
    """Check the pipeline's parameters, and return how many were given.

    Args:
        settings: parameters of the pipeline by name; what is missing is not checked.

    Raises:
        InputError: for the first one that breaks its rule.
    """
    for name, check in _CHECKS.items():
        if name in settings:
            _checked(check, name, settings[name])
    if {"validation_fraction", "test_fraction"} <= settings.keys():
        held_out = settings["validation_fraction"] + settings["test_fraction"]
        if not held_out < 1:
            raise InputError(
                "validation_fraction and test_fraction must leave pictures to train on (sum below 1). "
                f"Received a sum of {held_out:g}"
            )
    if settings.get("adversarial_training", "none") != "none" and settings.get("fine_tune_blocks") == 0:
        raise InputError(
            "adversarial_training needs blocks that train: fine_tune_blocks must be at least 1, or "
            f"adversarial_training 'none'. Received: 0 and '{settings['adversarial_training']}'"
        )
    return len(settings)


def _checked(check: Any, name: str, value: Any) -> None:
    try:
        check(name, value)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # no name for a file, the home of nobody
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(
            f"{name} must be a value that can be used. Received: '{value!s:.200}' ({reason})"
        ) from error


def _at_least(minimum: int) -> Any:
    def check(name: str, value: Any) -> None:
        if value < minimum:
            raise InputError(f"{name} must be a whole number from {minimum}. Received: {value}")
        if value >= 2**63:
            raise InputError(
                f"{name} must be a whole number below 2**63. Received: one of {value.bit_length()} bits"
            )

    return check


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name} must be a fraction from 0 to 1. Received: {value:g}")


def _open_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must be a fraction between 0 and 1. Received: {value:g}")


def _of_recipe(field: str) -> Any:
    return lambda name, value: recipes.check_field(field, value, name=name)


def _ideal_classes(_name: str, value: str) -> None:
    for name in filter(None, (part.strip() for part in value.split(","))):
        imagenet_classes.imagenet_index(name)


# Parameters of the pipeline that are fields of the recipe under the same name.
_RECIPE = (
    "learning_rate",
    "layer_decay",
    "weight_decay",
    "label_smoothing",
    "mixup",
    "ema_decay",
    "augmentation",
    "precision",
    "adversarial_training",
    "adversarial_epsilon",
)
_CHECKS: dict[str, Any] = {
    "dataset": lambda _, value: sources.check_source(value),
    "backbone": lambda _, value: backbones.get(value),
    "weights": lambda _, value: backbones.check_weights(value),
    "seed": _at_least(0),
    "validation_fraction": _open_fraction,
    "test_fraction": _open_fraction,
    "head_type": lambda _, value: heads.check_head_type(value),
    "class_weight": lambda _, value: heads.check_class_weight(value),
    "fine_tune_blocks": _at_least(0),
    "fine_tune_epochs": _of_recipe("epochs"),
    "fine_tune_views": _of_recipe("num_views"),
    **{name: _of_recipe(name) for name in _RECIPE},
    "mirrors": lambda _, value: sources.check_mirrors(value),
    "cache": lambda _, value: caches.check_cache(value),
    "shards": feature_shards.check_shards,
    "min_accuracy": _fraction,
    "min_robust_accuracy": _fraction,
    "robust_epsilon": lambda _, value: epsilons.parse_epsilon(value),
    "epsilons": lambda _, value: epsilons.parse_epsilons(value),
    "attack_steps": _at_least(1),
    "attack_pictures": _at_least(1),
    "ideal_classes": _ideal_classes,
    "ideal_steps": _at_least(1),
    "version": _at_least(0),
    "store": lambda _, value: deployment.check_store(value),
    "model_name": lambda _, value: deployment.check_model_name(value),
    "label": lambda _, value: releases.check_label(value),
}


def fingerprint(dataset: str, weights: str) -> str:
    """Return a digest that changes when local files behind these settings do: names, sizes, times of change.

    Args:
        dataset: a source, of which ``directory:`` and ``archive:`` name local files.
        weights: a weights setting, which may be a path.

    Returns:
        Hexadecimal text, or ``""`` where nothing local is named.
    """
    places = [Path(weights)] if backbones.is_file(weights) else []
    kind, place = sources.parse_source(dataset)
    if kind in ("directory", "archive") and not archives.is_url(place):
        root = Path(place).expanduser()
        # A table of labels names pictures beside it.
        root = root.parent if kind == "directory" and root.is_file() else root
        places += sorted(root.rglob("*")) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for path in places:
        with contextlib.suppress(FileNotFoundError):  # a dangling link
            status = path.stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16] if places else ""
