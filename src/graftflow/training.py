"""Fine-tuning: the last blocks at a low learning rate, kept only where validation says it is better."""

import inspect
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from graftflow import (
    activations,
    adversarial_training,
    augmentation,
    backbones,
    caches,
    calibration,
    datasets,
    distribution,
    files,
    fine_tuning,
    heads,
    keras_files,
)
from graftflow.cuts import Cut, cut, unfreeze_last_blocks
from graftflow.errors import InputError
from graftflow.features import cache_facts
from graftflow.fine_tuning import score
from graftflow.lessons import prepare_lesson, trade
from graftflow.recipes import Recipe

Layers = Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
Logits = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

# Part of the features that training hides from the head.
DROPOUT = 0.2


def build_classifier(features_model: Any, layers: Layers) -> keras.Model:
    """Put a head onto a feature extractor.

    Args:
        features_model: what :func:`graftflow.backbones.build` returned.
        layers: kernel ``float32 (d, k)`` and bias ``(k,)`` of each layer of the head, first to last: one for a linear
            head, two with ReLU between them for a perceptron.

    Returns:
        Model from pixels ``(n, s, s, 3)`` in [0, 1] to probabilities ``(n, k)``; layers ``preprocessing``,
        ``backbone``, ``dropout``, ``hidden`` (of a perceptron), ``logits`` and ``probabilities``.
    """
    x = keras.layers.Dropout(DROPOUT, seed=0, name="dropout")(features_model.output)
    names = ["hidden", "logits"] if len(layers) == 2 else ["logits"]
    for name, (kernel, bias) in zip(names, layers, strict=True):
        relu = "relu" if name == "hidden" else None
        layer = keras.layers.Dense(kernel.shape[1], activation=relu, dtype="float32", name=name)
        x = layer(x)
        layer.set_weights([kernel, bias])
    outputs = keras.layers.Activation("softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(features_model.input, outputs, name="classifier")


def load_classifier(path: str | Path) -> keras.Model:
    """Load ``model.keras`` of a ``model`` artifact, for inference.

    Raises:
        InputError: where the artifact holds no model that can be read.
    """
    import graftflow.preprocessing  # noqa: F401 - registers the layer that the file names

    try:
        return keras.models.load_model(Path(path) / "model.keras", compile=False)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"A model artifact must hold a readable model.keras. Received: '{path}' ({reason})."
        ) from error


def is_better(candidate: Logits, incumbent: Logits, labels: Labels) -> bool:
    """Return whether validation prefers ``candidate``: no less accuracy, and a log loss that is smaller beyond noise.

    Args:
        candidate: logits ``float (n, k)``.
        incumbent: logits of the same pictures.
        labels: ``int (n,)``.

    Returns:
        Whether the candidate makes no more mistakes, and the mean of the pictures' differences in log loss is larger
        than its own standard error.
    """
    if score(candidate, labels)["accuracy"] < score(incumbent, labels)["accuracy"]:
        return False
    rows = np.arange(len(labels))
    gains = heads.log_softmax(candidate)[rows, labels] - heads.log_softmax(incumbent)[rows, labels]
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > error)


def write_model(
    destination: str | Path,
    *,
    dataset_path: str | Path,
    head_path: str | Path,
    weights: str,
    num_blocks: int,
    recipe: Recipe | None = None,
    cache: str | Path | None = None,
    devices: Sequence[str] = (),
    finished: ExitStack | None = None,
) -> dict[str, Any]:
    """Fine-tune, and write the better of frozen and fine-tuned classifier into an existing folder.

    The frozen part of the backbone runs once a picture and view; training sees its activations. The better
    classifier gets the temperature that fits validation best, folded into its last layer.

    With adversarial training the whole network runs on every picture of every epoch. It is delivered where it
    withstands more validation pictures than the head, beyond noise, and without attack loses no more accuracy than
    ``clean_tolerance``; of its epochs the one counts that withstands most within that bound. The usual fine-tuning is
    trained as well, to compare with in ``trade``.

    Several GPUs share each batch, and the machines of ``TF_CONFIG`` do; see :mod:`graftflow.distribution`. Of several
    machines only the first writes.

    Args:
        destination: an existing folder; becomes a ``model`` artifact.
        dataset_path: a ``dataset`` artifact.
        head_path: a ``head`` artifact trained on that dataset.
        weights: the backbone's weights; must be those the head was trained on.
        num_blocks: how many of the last blocks to train; 0 keeps the frozen classifier.
        recipe: how they are trained; ``None`` takes the defaults.
        cache: folder that outlives this step (see :func:`graftflow.caches.open_cache`), where views and checkpoints
            wait for the next try; ``None`` keeps them in ``destination`` until the step ends. Several machines keep
            them to themselves, and begin anew after an interruption.
        devices: that train, such as ``"GPU:0"``; none takes all GPUs, or without one the CPU.
        finished: closed by the caller when the model is in its place (see :func:`graftflow.seals.sealed_work`): only
            then views and checkpoints go. ``None``: they go when the model is written.

    Returns:
        What stands in ``model.json``.

    Raises:
        InputError: for a setting out of range, or weights that are not the head's.
    """
    if num_blocks < 0:
        raise InputError(f"num_blocks must be at least 0. Received: {num_blocks}")
    recipe = recipe or Recipe()
    recipe.check()
    if recipe.adversarial_training != "none" and not num_blocks:
        raise InputError(
            "adversarial_training needs blocks that train: num_blocks must be at least 1, or adversarial_training "
            f"'none'. Received: {num_blocks} and '{recipe.adversarial_training}'"
        )
    with distribution.strategy_of(devices).scope():
        distribution.check_batch_size(recipe.batch_size)
        return _write_model(
            Path(destination), dataset_path, head_path, weights, num_blocks, recipe, cache, finished
        )


def _write_model(
    destination: Path,
    dataset_path: str | Path,
    head_path: str | Path,
    weights: str,
    num_blocks: int,
    recipe: Recipe,
    cache: str | Path | None,
    finished: ExitStack | None,
) -> dict[str, Any]:
    head = files.read_json(Path(head_path) / "head.json")
    layers = heads.read_layers(head_path)
    features_model = backbones.build(head["backbone"]["name"], weights=weights)
    identity = backbones.identity(head["backbone"]["name"], features_model, weights=weights)
    if identity["weights_sha256"] != head["backbone"]["weights_sha256"]:
        raise InputError(
            f"The backbone must have the weights that the head was trained on "
            f"({head['backbone']['weights']}, {head['backbone']['weights_sha256'][:12]}…). "
            f"Received: '{weights}' ({identity['weights_sha256'][:12]}…)"
        )
    modules = (activations, adversarial_training, augmentation, distribution, fine_tuning)
    facts = {
        **cache_facts(identity),
        "code": [inspect.getsource(module) for module in modules],
        "recipe": asdict(recipe),
        "num_blocks": num_blocks,
        "dataset": datasets.load_info(dataset_path).digest,
        "head": files.sha256_file(Path(head_path) / "head.npz"),
    }
    model = build_classifier(features_model, layers)
    with _workplace(destination, cache, facts, finished) as workplace:
        trained = _fine_tune(
            model, features_model, head, recipe, num_blocks, dataset_path=dataset_path, workplace=workplace
        )
        model.get_layer("backbone").trainable = False
        settings = {name: head[name] for name in ("type", "class_weight", "chosen_c") if name in head}
        summary = {"backbone": identity, "head_settings": settings, **trained}
        if distribution.writes():
            keras_files.save_model(model, destination / "model.keras")
            files.write_json(destination / "model.json", summary)
    return summary


def figures_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the validation figures of what :func:`write_model` returned, each by the model and its own name.

    ``head_accuracy``, ``head_log_loss``, the same of ``fine_tuned`` where something was trained; of adversarial
    training also ``head_robust_accuracy``, ``standard_robust_accuracy`` and ``adversarial_robust_accuracy``.
    """
    parts = {"head": summary["head"], "fine_tuned": summary["fine_tuned"] or {}}
    figures = {
        f"{part}_{name}": float(value) for part, scores in parts.items() for name, value in scores.items()
    }
    models = summary["trade"]["models"] if summary["trade"] else []
    return figures | {f"{row['name']}_robust_accuracy": float(row["robust_accuracy"]) for row in models}


@contextmanager
def _workplace(
    destination: Path, cache: str | Path | None, facts: dict[str, Any], finished: ExitStack | None
) -> Iterator[Path]:
    """Yield the folder for views and checkpoints; what is in the cache stays until the work is finished."""
    if distribution.num_machines() > 1:
        # What one machine finds another one may not: then one would compute alone, and wait for the other for ever.
        with tempfile.TemporaryDirectory(prefix="fine-tune-") as own:
            yield Path(own)
        return
    if cache is not None:
        with ExitStack() as own:
            stack = own if finished is None else finished
            kept = stack.enter_context(caches.unfinished_work(cache, "checkpoints", caches.key_of(facts)))
            if kept:
                files.remove_asides(kept)
                yield kept
                return
        print("Another run trains the same: this one keeps its views and checkpoints to itself.", flush=True)
    folder = destination / ".scratch"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fine_tune(
    model: Any,
    features_model: Any,
    head: dict[str, Any],
    recipe: Recipe,
    num_blocks: int,
    *,
    dataset_path: str | Path,
    workplace: Path,
) -> dict[str, Any]:
    """Train ``model`` in place, or leave it as it is; returns ``model.json`` without the backbone's identity."""
    backbone, size = head["backbone"]["name"], int(head["backbone"]["input_size"])
    depths = unfreeze_last_blocks(features_model, backbone, num_blocks)
    parts = cut(features_model, backbone, num_blocks)
    tail = tail_of(model, parts)
    prepare = partial(prepare_lesson, tail, parts, depths, head, size, dataset_path)
    lesson = prepare(recipe, workplace)
    logits, labels = lesson.logits(), lesson.validation[1]
    frozen, tuned, chosen, traded = score(logits, labels), None, "head", None
    history: list[dict[str, float]] = []
    if num_blocks:
        start = tail.get_weights()
        if lesson.adversary is None:
            history, tuned_logits = lesson.learn()
            better = is_better(tuned_logits, logits, labels)
        else:
            usual = prepare(replace(recipe, adversarial_training="none"), workplace / "standard")
            least = frozen["accuracy"] - recipe.clean_tolerance
            history, tuned_logits, better, traded = trade(lesson, lesson.adversary, usual, tail, least)
        tuned = score(tuned_logits, labels)
        if better:
            logits, chosen = tuned_logits, "fine-tuned"
        else:
            tail.set_weights(start)
    temperature = calibration.fit_temperature(logits, labels)
    last = model.get_layer("logits")
    last.set_weights([value / temperature for value in last.get_weights()])
    return {
        "classes": head["classes"],
        "chosen": chosen,
        "unfrozen_blocks": num_blocks,
        "head": frozen,
        "fine_tuned": tuned,
        "history": history,
        "recipe": asdict(recipe),
        "views": lesson.num_views,
        "temperature": temperature,
        "calibrated": score(logits / temperature, labels),
        "trade": traded,
    }


def tail_of(model: Any, parts: Cut) -> keras.Model:
    """Join the backbone's tail and the classifier's own head into one model from activations to logits.

    Args:
        model: what :func:`build_classifier` returned; its layers are shared.
        parts: of the feature extractor that it was built on.
    """
    activations = keras.Input(parts.shape, name="activations")
    x = parts.tail(activations, training=False) if parts.tail else activations
    for name in ("dropout", "hidden", "logits"):
        if any(layer.name == name for layer in model.layers):
            x = distribution.whole_batch(model.get_layer(name))(x)
    return keras.Model(activations, x, name="tail")
