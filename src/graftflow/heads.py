"""The new head on the features: logistic regression or a small perceptron, its penalty chosen on held-out pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from graftflow import files, learning_curves, logistic
from graftflow.errors import InputError, unknown_name
from graftflow.logistic import (
    CLASS_WEIGHTS,
    Floats,
    Labels,
    Layer,
    Scaling,
    class_weights,
    log_loss,
    log_softmax,
    weights_of,
)
from graftflow.perceptrons import Perceptron, fit_perceptron
from graftflow.progress import Progress

__all__ = [
    "Head",
    "check_class_weight",
    "check_head_type",
    "class_weights",
    "fit_head",
    "log_loss",
    "log_softmax",
    "predict_logits",
    "read_layers",
    "write_head",
]

HEAD_TYPES = ("linear", "mlp")
# Inverse strengths of the L2 penalty on scaled features, strongest penalty first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_PERCEPTRON_STRENGTHS = (0.1, 1.0, 10.0)
_WIDTHS = (32, 128)
# With more training pictures validation has enough of its own, and folds would cost four more fits of the path.
_MOST_FOLDED = 5000


@dataclass(frozen=True)
class Head:
    """A head on plain features: one layer (linear), or two with a ReLU between them.

    Attributes:
        layers: kernel and bias of each layer, first to last, float32.
        type: ``linear`` or ``mlp``.
        class_weight: ``none`` or ``balanced``.
        chosen_c: inverse strength of the penalty that was chosen.
        path: for each strength tried, its log losses, validation accuracy and what it was chosen by.
    """

    layers: tuple[Layer, ...]
    type: str
    class_weight: str
    chosen_c: float
    path: tuple[dict[str, float], ...]


def check_head_type(value: str) -> None:
    """Raise InputError where ``value`` is no kind of head."""
    if value not in HEAD_TYPES:
        raise unknown_name("head_type", value, HEAD_TYPES)


def check_class_weight(value: str) -> None:
    """Raise InputError where ``value`` is no way to weigh classes."""
    if value not in CLASS_WEIGHTS:
        raise unknown_name("class_weight", value, CLASS_WEIGHTS)


def predict_logits(layers: Sequence[Layer], features: Floats) -> Floats:
    """Return the logits of a head.

    Args:
        layers: kernel and bias of each, first to last; a ReLU stands between two.
        features: ``float32 (n, d)``.

    Returns:
        ``float32 (n, k)``.
    """
    x = np.asarray(features, np.float32)
    for kernel, bias in layers[:-1]:
        x = np.maximum(x @ kernel + bias, 0)
    kernel, bias = layers[-1]
    return np.asarray(x @ kernel + bias)


def read_layers(head_path: str | Path) -> tuple[Layer, ...]:
    """Read the layers of a ``head`` artifact: ``((kernel, bias), …)``, first to last, for :func:`predict_logits`.

    Raises:
        InputError: where the folder holds no head that can be read.
    """
    path = Path(head_path) / "head.npz"
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            last = (arrays["kernel"], arrays["bias"])
            if "hidden_kernel" not in arrays:
                return (last,)
            return (arrays["hidden_kernel"], arrays["hidden_bias"]), last
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(
            f"A head artifact must hold head.npz, as train_head writes it. Received: '{head_path}' "
            f"({type(error).__name__}: {error})."
        ) from error


def fit_head(
    train: tuple[Floats, Labels],
    validation: tuple[Floats, Labels],
    *,
    num_classes: int,
    head_type: str = "linear",
    class_weight: str = "none",
    seed: int = 0,
    strengths: Sequence[float] | None = None,
) -> Head:
    """Fit a head for each of a path of penalties and keep the one of least log loss on held-out pictures.

    The held-out pictures of a linear head are those of validation and, below 5,000 training pictures, the training
    pictures in 5 folds; a perceptron is stopped by validation, which also chooses its width and penalty. The head
    itself is fitted on ``train`` alone. With balanced classes the log loss that chooses is balanced too: each class
    counts alike; the log losses in ``path`` are plain. The scaling of features is folded into the first layer.

    Args:
        train: features ``float32 (n, d)`` and labels ``(n,)`` in [0, num_classes).
        validation: the same for the pictures that choose.
        num_classes: number of classes; each must occur in ``train``.
        head_type: ``linear`` (multinomial logistic regression) or ``mlp`` (a hidden layer of 32 or 128).
        class_weight: ``none``, or ``balanced``: each class c weighs n / (k · n_c) in the loss.
        seed: fixes the folds, and a perceptron's start, order and dropout.
        strengths: inverse penalty strengths, ascending; ``None`` takes those of the type.

    Raises:
        InputError: an unknown type or weight, no strengths, or a class without training picture.
    """
    check_head_type(head_type)
    check_class_weight(class_weight)
    if strengths is not None and not strengths:
        raise InputError("strengths must hold at least one number. Received: none")
    missing = sorted(set(range(num_classes)) - set(np.unique(train[1]).tolist()))
    if missing:
        raise InputError(f"Each class needs a training picture. Received none for: {missing}")
    with logistic.one_thread():
        if head_type == "linear":
            return _fit_linear(train, validation, num_classes, class_weight, seed, strengths or STRENGTHS)
        return _fit_mlp(
            train, validation, num_classes, class_weight, seed, strengths or _PERCEPTRON_STRENGTHS
        )


def _fit_linear(
    train: tuple[Floats, Labels],
    validation: tuple[Floats, Labels],
    num_classes: int,
    class_weight: str,
    seed: int,
    strengths: Sequence[float],
) -> Head:
    scaling = Scaling.of(train[0])
    x, y = scaling.apply(train[0]), train[1]
    xv, yv = scaling.apply(validation[0]), validation[1]
    progress = Progress("head", total=len(strengths), unit="penalties")
    held, held_logits = np.zeros(0, np.int64), [np.zeros((0, num_classes), np.float32)] * len(strengths)
    if len(y) < _MOST_FOLDED:
        held, held_logits = logistic.out_of_fold(
            x, y, num_classes=num_classes, strengths=strengths, class_weight=class_weight, seed=seed
        )
    labels = np.concatenate([yv, y[held]])
    weights = weights_of(labels, class_weight)
    layers, path = [], []
    fits = logistic.fit_path(x, y, num_classes=num_classes, strengths=strengths, class_weight=class_weight)
    for c, (kernel, bias), of_folds in zip(strengths, fits, held_logits, strict=True):
        logits = xv @ kernel + bias
        chosen_by = log_loss(np.concatenate([logits, of_folds]), labels, weights)
        layers.append((kernel, bias))
        path.append(_point(c, x @ kernel + bias, y, logits, yv, chosen_by))
        progress.advance()
    best = min(range(len(path)), key=lambda i: path[i]["held_out_log_loss"])
    return Head((scaling.fold(*layers[best]),), "linear", class_weight, strengths[best], tuple(path))


def _fit_mlp(
    train: tuple[Floats, Labels],
    validation: tuple[Floats, Labels],
    num_classes: int,
    class_weight: str,
    seed: int,
    strengths: Sequence[float],
) -> Head:
    scaling = Scaling.of(train[0])
    scaled = (scaling.apply(train[0]), train[1]), (scaling.apply(validation[0]), validation[1])
    progress = Progress("head", total=len(strengths) * len(_WIDTHS), unit="perceptrons")
    found: list[Perceptron] = []
    path: list[dict[str, float]] = []
    for c in strengths:
        tried = []
        for width in _WIDTHS:
            tried.append(
                fit_perceptron(
                    *scaled, num_classes=num_classes, width=width, c=c, class_weight=class_weight, seed=seed
                )
            )
            progress.advance()
        fit = min(tried, key=lambda perceptron: perceptron.loss)
        found.append(fit)
        (x, y), (xv, yv) = scaled
        point = _point(c, fit.logits(x), y, fit.logits(xv), yv, fit.loss)
        path.append({**point, "width": len(fit.hidden[1])})
    best = min(range(len(path)), key=lambda i: path[i]["held_out_log_loss"])
    layers = scaling.fold(*found[best].hidden), found[best].output
    return Head(layers, "mlp", class_weight, strengths[best], tuple(path))


def _point(
    c: float, of_train: Floats, y: Labels, of_validation: Floats, yv: Labels, held_out: float
) -> dict[str, float]:
    return {
        "c": c,
        "train_log_loss": log_loss(of_train, y),
        "validation_log_loss": log_loss(of_validation, yv),
        "validation_accuracy": float((of_validation.argmax(axis=1) == yv).mean()),
        "held_out_log_loss": held_out,
    }


def write_head(
    destination: str | Path,
    *,
    features_path: str | Path,
    head_type: str = "linear",
    class_weight: str = "none",
    seed: int = 0,
) -> dict[str, Any]:
    """Write the ``head`` artifact into an existing folder.

    Args:
        destination: an existing folder.
        features_path: a ``features`` artifact.
        head_type: ``linear`` or ``mlp``; see :func:`fit_head`.
        class_weight: ``none`` or ``balanced``.
        seed: fixes folds, a perceptron and the parts of the learning curve.

    Returns:
        What stands in ``head.json``.

    Raises:
        InputError: an unknown type or weight, or a folder that is no ``features`` artifact.
    """
    check_head_type(head_type)
    check_class_weight(class_weight)
    try:
        source = files.read_json(Path(features_path) / "features.json")
        train, validation = (_read(features_path, split) for split in ("train", "validation"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(
            f"A features artifact must hold features.json and its .npz files, as merge_features writes them. "
            f"Received: '{features_path}' ({type(error).__name__}: {error})."
        ) from error
    num_classes = len(source["classes"])
    head = fit_head(
        train,
        validation,
        num_classes=num_classes,
        head_type=head_type,
        class_weight=class_weight,
        seed=seed,
    )
    chosen = next(point for point in head.path if point["c"] == head.chosen_c)
    with logistic.one_thread():
        curve = learning_curves.measure(
            train,
            validation,
            num_classes=num_classes,
            refit=_refit(head, validation, num_classes, chosen),
            whole=lambda features: predict_logits(head.layers, features),
            seed=seed,
        )
    summary = {
        "backbone": source["backbone"],
        "classes": source["classes"],
        "dataset_digest": source["dataset_digest"],
        "type": head.type,
        "class_weight": head.class_weight,
        "chosen_c": head.chosen_c,
        "path": list(head.path),
        "validation_accuracy": chosen["validation_accuracy"],
        "validation_log_loss": chosen["validation_log_loss"],
        "learning_curve": curve,
    }
    kernel, bias = head.layers[-1]
    arrays = {"kernel": kernel, "bias": bias}
    if len(head.layers) > 1:
        arrays["hidden_kernel"], arrays["hidden_bias"] = head.layers[0]
    np.savez(Path(destination) / "head.npz", **arrays)  # type: ignore[arg-type]
    files.write_json(Path(destination) / "head.json", summary)
    return summary


def _refit(
    head: Head, validation: tuple[Floats, Labels], num_classes: int, chosen: dict[str, float]
) -> learning_curves.Refit:
    """Return how to fit a head like this one on fewer pictures: C stays, as a prior would, and so does the width."""

    def refit(features: Floats, labels: Labels, seed: int) -> Callable[[Floats], Floats]:
        scaling = Scaling.of(features)
        train = scaling.apply(features), labels
        common: dict[str, Any] = {"num_classes": num_classes, "class_weight": head.class_weight}
        if head.type == "linear":
            layer = next(logistic.fit_path(*train, strengths=(head.chosen_c,), **common))
            return lambda x: predict_logits((layer,), scaling.apply(x))
        stopped_by = scaling.apply(validation[0]), validation[1]
        width = int(chosen["width"])
        fit = fit_perceptron(train, stopped_by, width=width, c=head.chosen_c, seed=seed, **common)
        return lambda x: fit.logits(scaling.apply(x))

    return refit


def _read(features_path: str | Path, split: str) -> tuple[Floats, Labels]:
    # Opened here: numpy leaves a file that is no archive open.
    with (Path(features_path) / f"{split}.npz").open("rb") as file, np.load(file) as arrays:
        return arrays["features"], arrays["labels"]
