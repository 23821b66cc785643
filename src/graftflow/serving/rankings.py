"""What a model answers about a picture, in whichever form, as classes and their probabilities, best first."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from graftflow.errors import InputError

Ranking = list[tuple[str, float]]


def ranking(row: Any) -> Ranking:
    """Return the classes of one picture and their scores, best first.

    Args:
        row: the answer for one picture, in one of these forms: ``{"classes", "scores"}`` (this project's signature
            ``ranked``); ``{"probabilities"}`` or ``{"scores"}``, with ``label`` and ``class_index`` where the model has
            them (``serving_default``); a dict with one list of numbers under any name; a list of numbers; pairs of
            label and score (TensorFlow Serving's Classify). A class without a name is ``class 3``.

    Raises:
        InputError: where it is none of them.
    """
    if isinstance(row, Mapping):
        if isinstance(row.get("classes"), list) and isinstance(row.get("scores"), list):
            return _pairs(list(zip(row["classes"], row["scores"], strict=False)), row)
        vector = _vector(row)
        if vector is not None:
            return _named(vector, row.get("label"), row.get("class_index"), row)
    elif _numbers(row):
        return _named(row, None, None, row)
    elif isinstance(row, list) and row and all(isinstance(p, list) and len(p) == 2 for p in row):
        return _pairs(row, row)
    raise _unknown(row)


def _vector(row: Mapping[str, Any]) -> Sequence[float] | None:
    for name in ("probabilities", "scores"):
        if _numbers(row.get(name)):
            return list(row[name])
    vectors = [value for value in row.values() if _numbers(value)]
    return vectors[0] if len(vectors) == 1 else None


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and {type(v) for v in value} <= {int, float}


def _pairs(pairs: Sequence[Sequence[Any]], row: Any) -> Ranking:
    if not all(isinstance(name, str | bytes | int | float) for name, _ in pairs):
        raise _unknown(row)
    try:
        found = [(str(name), float(score)) for name, score in pairs]
    except (TypeError, ValueError, OverflowError):
        raise _unknown(row) from None
    if not found:
        raise _unknown(row)
    return sorted(found, key=_by_score)


def _named(numbers: Sequence[float], label: Any, index: Any, row: Any) -> Ranking:
    try:
        vector = [float(number) for number in numbers]
    except OverflowError:  # a whole number of hundreds of digits
        raise _unknown(row) from None
    if not isinstance(index, int) or not 0 <= index < len(vector):
        index = max(range(len(vector)), key=lambda i: (not math.isnan(vector[i]), vector[i]))
    names = [f"class {i}" for i in range(len(vector))]
    if isinstance(label, str):
        names[index] = label
    return sorted(zip(names, vector, strict=True), key=_by_score)


def _by_score(pair: tuple[str, float]) -> tuple[bool, float]:
    return math.isnan(pair[1]), -pair[1]


def _unknown(row: Any) -> InputError:
    received = (
        f"outputs {', '.join(sorted(map(str, row)))}" if isinstance(row, Mapping) else reprlib.repr(row)
    )
    return InputError(
        "the model must answer with classes and scores, probabilities, or a list of numbers for each picture. "
        f"Received: {received:.200}"
    )
