"""One picture attacked: what the model saw before and after, as files to keep and to look at."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from graftflow import attacks, preprocessing
from graftflow.encodings import as_stored
from graftflow.errors import InputError, unknown_name
from graftflow.files import atomic_directory, read_json, write_json
from graftflow.pictures import Unusable
from graftflow.predictions import Array, predict
from graftflow.served_attacks import best, check_radius
from graftflow.training import load_classifier

PANEL, GAP, MARGIN, HEAD = 336, 16, 20, 86
BACKGROUND, INK, FAINT, ALERT, GOOD = "#ffffff", "#22252a", "#5d636d", "#a5311f", "#1c6b3a"
# The perturbation is shown so many times larger, around grey.
MAGNIFIED = 10
# Square has no gradient to go by: it asks so many times for every step of the others.
_QUERIES_A_STEP = 10

Attack = Callable[..., Any]


def _fgsm(logits_of: attacks.Logits, pixels: Array, labels: Array, **settings: Any) -> Any:
    found = attacks.fast_gradient(
        logits_of, pixels, labels, epsilon=settings["epsilon"], targeted=settings["targeted"], eight_bits=True
    )
    return found.pixels


def _pgd(logits_of: attacks.Logits, pixels: Array, labels: Array, **settings: Any) -> Any:
    return attacks.projected_gradient(logits_of, pixels, labels, eight_bits=True, **settings).pixels


def _apgd(logits_of: attacks.Logits, pixels: Array, labels: Array, **settings: Any) -> Any:
    return attacks.apgd(logits_of, pixels, labels, eight_bits=True, **settings).pixels


def _square(logits_of: attacks.Logits, pixels: Array, labels: Array, **settings: Any) -> Any:
    queries = _QUERIES_A_STEP * settings.pop("steps")
    return attacks.square(logits_of, pixels, labels, queries=queries, eight_bits=True, **settings).pixels


def _ensemble(logits_of: attacks.Logits, pixels: Array, labels: Array, **settings: Any) -> Any:
    if settings.pop("targeted"):
        others = ", ".join(name for name in ATTACKS if name != "ensemble")
        raise InputError(
            f"a target must go with one of the attacks {others}. Received: 'ensemble', which has none."
        )
    queries = _QUERIES_A_STEP * settings["steps"]
    return attacks.ensemble(logits_of, pixels, labels, queries=queries, eight_bits=True, **settings).pixels


ATTACKS: dict[str, Attack] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "apgd": _apgd,
    "square": _square,
    "ensemble": _ensemble,
}


@dataclass(frozen=True)
class AttackedPicture:
    """One picture before and after an attack, at the model's input size.

    Attributes:
        classes: class i of the probabilities is ``classes[i]``.
        original: ``uint8 (s, s, 3)``.
        adversarial: ``uint8 (s, s, 3)``.
        before: probabilities of ``original``, ``float32 (k,)``.
        after: probabilities of ``adversarial``, ``float32 (k,)``.
        attack: name of the attack.
        target: the class that the attack aimed at, or ``""``: any but that of ``original``.
        epsilon: radius, in [1/255, 1].
        seconds: that the attack took, its compilation included.
    """

    classes: tuple[str, ...]
    original: Array
    adversarial: Array
    before: Array
    after: Array
    attack: str
    target: str
    epsilon: float
    seconds: float

    @property
    def fooled(self) -> bool:
        """Whether the target is predicted, or without one another class than before."""
        after = best(self.after, self.classes)["label"]
        return bool(
            after == self.target if self.target else after != best(self.before, self.classes)["label"]
        )

    @property
    def largest_change(self) -> int:
        """Levels of 255 by which a channel changed at most."""
        return int(np.abs(self.adversarial.astype(int) - self.original).max())


def attack_picture(
    data: bytes,
    *,
    model_path: str | Path,
    epsilon: float,
    target: str = "",
    attack: str = "pgd",
    steps: int = 40,
    seed: int = 0,
) -> AttackedPicture:
    """Attack one picture, squashed to the model's input size; what is reported is what a server would answer.

    Args:
        data: an encoded picture, as for :func:`graftflow.encodings.as_stored`.
        model_path: a ``model`` artifact.
        epsilon: radius in the attack's norm, in [1/255, 1].
        target: the class to be predicted, or ``""``: any but the one that the model predicts now.
        attack: a name in ``ATTACKS``.
        steps: gradient evaluations, at most; ≥ 1. FGSM takes one; Square asks ten times as often, without gradients.
        seed: fixes what is random in the attack.

    Returns:
        The picture before and after; both are whole levels, as a PNG keeps them.

    Raises:
        InputError: where a setting breaks its rule, the class is unknown or predicted already, or the data are no
            picture.
    """
    if attack not in ATTACKS:
        raise unknown_name("attack", attack, ATTACKS)
    check_radius(epsilon)
    if steps < 1:
        raise InputError(f"steps must be at least 1. Received: {steps}.")
    try:
        stored = as_stored(data)
    except Unusable as error:
        raise InputError(
            f"the image must be a picture that can be decoded. Received: one that {error}."
        ) from error
    classes = tuple(classes_of(model_path))
    if target and target not in classes:
        raise unknown_name("target", target, classes)
    model = load_classifier(model_path)
    logits_of = attacks.logits_model(model)
    original = _levels(preprocessing.decode(tf.constant(stored), model.input_shape[1]))[None]
    before = predict(logits_of, _pixels(original))
    predicted = int(before[0].argmax())
    if target == classes[predicted]:
        others = ", ".join(name for name in classes if name != target)
        raise InputError(
            f"target must be another class than the model predicts already. Received: '{target}'. Others: {others}."
        )
    label = classes.index(target) if target else predicted
    started = time.monotonic()
    found = ATTACKS[attack](
        logits_of,
        _pixels(original),
        np.array([label], np.int64),
        epsilon=epsilon,
        steps=steps,
        seed=seed,
        targeted=bool(target),
    )
    adversarial = _levels(found)
    seconds = time.monotonic() - started
    after = predict(logits_of, _pixels(adversarial))
    return AttackedPicture(
        classes, original[0], adversarial[0], before[0], after[0], attack, target, epsilon, seconds
    )


def write_attacked_picture(destination: str | Path, attacked: AttackedPicture) -> dict[str, Any]:
    """Write a picture's attack into a new folder.

    Args:
        destination: the folder; made here, whole or not at all. Receives ``adversarial.png``, at the model's input size
            and exactly as attacked, ``side_by_side.png`` and ``attack.json``.
        attacked: what :func:`attack_picture` returned.

    Returns:
        What stands in ``attack.json``: ``{"attack", "target", "epsilon" and "largest_change" (in 1/255), "fooled",
        "original" and "adversarial": {"label", "probability"}, "probabilities": {class: [before, after]}}``.
    """
    result = {
        "attack": attacked.attack,
        "target": attacked.target,
        "epsilon": round(255 * attacked.epsilon, 6),
        "largest_change": attacked.largest_change,
        "fooled": attacked.fooled,
        "original": best(attacked.before, attacked.classes),
        "adversarial": best(attacked.after, attacked.classes),
        "probabilities": {
            name: [float(before), float(after)]
            for name, before, after in zip(attacked.classes, attacked.before, attacked.after, strict=True)
        },
    }
    with atomic_directory(destination) as folder:
        Image.fromarray(attacked.adversarial).save(folder / "adversarial.png")
        draw_side_by_side(attacked).save(folder / "side_by_side.png")
        write_json(folder / "attack.json", result)
    return result


def draw_side_by_side(attacked: AttackedPicture) -> Image.Image:
    """Draw original, perturbation and adversarial picture, each under what it is and what the model says of it.

    Returns:
        An RGB picture, 1,080 pixels wide; dark on white, so that it can be read on a dark page too.
    """
    change = 127.5 + MAGNIFIED * (attacked.adversarial.astype(float) - attacked.original)
    middle = np.clip(np.round(change), 0, 255).astype(np.uint8)
    before, after = (best(p, attacked.classes) for p in (attacked.before, attacked.after))
    verdict = "fooled" if attacked.fooled else "not fooled"
    panels = (
        ("original", before["label"], f"probability {before['probability']:.3f}", attacked.original, INK),
        (
            f"change × {MAGNIFIED}",
            f"at most {attacked.largest_change}/255",
            f"{attacked.attack}, ε = {255 * attacked.epsilon:.4g}/255",
            middle,
            INK,
        ),
        (
            f"adversarial: {verdict}",
            after["label"],
            f"probability {after['probability']:.3f}",
            attacked.adversarial,
            ALERT if attacked.fooled else GOOD,
        ),
    )
    width, height = 2 * MARGIN + 3 * PANEL + 2 * GAP, 2 * MARGIN + HEAD + PANEL
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (title, large, small, levels, colour) in enumerate(panels):
        x = MARGIN + number * (PANEL + GAP)
        pen.text((x, MARGIN), title, FAINT, _font(15))
        pen.text((x, MARGIN + 22), _shortened(large, _font(24, bold=True)), colour, _font(24, bold=True))
        pen.text((x, MARGIN + 57), small, INK, _font(16))
        picture = Image.fromarray(levels).resize((PANEL, PANEL), Image.Resampling.BICUBIC)
        sheet.paste(picture, (x, MARGIN + HEAD))
    return sheet


def classes_of(model_path: str | Path) -> list[str]:
    """Return the classes of a ``model`` artifact; raises InputError where it cannot be read."""
    try:
        return list(read_json(Path(model_path) / "model.json")["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"A model artifact must hold a readable model.json. Received: '{model_path}' ({error})."
        ) from error


def _levels(pixels: Any) -> Array:
    """Return pixels in [0, 1] as the nearest of 256 levels, ``uint8``."""
    return np.round(np.asarray(pixels) * np.float32(255)).astype(np.uint8)


def _pixels(levels: Array) -> Array:
    """Return levels as the ``float32`` pixels that the exported model makes of a PNG of its input size."""
    return levels.astype(np.float32) / np.float32(255)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return matplotlib's DejaVu, which knows Greek and Cyrillic, or else Pillow's own font."""
    spec = find_spec("matplotlib")
    if spec is not None and spec.submodule_search_locations:
        fonts = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
        file = fonts / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut a name with … where it is wider than a panel."""
    line = " ".join(text.split())
    if font.getlength(line) <= PANEL:
        return line
    while line and font.getlength(line + "…") > PANEL:
        line = line[:-1]
    return line + "…"
