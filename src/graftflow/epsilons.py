"""Radii of attacks as people write them: ``"4/255"`` or ``"0.03"``. Needs no TensorFlow."""

import math
import re

from graftflow.errors import InputError

_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
_EPSILON = re.compile(rf"\s*(?P<above>{_NUMBER})\s*(?:/\s*(?P<below>{_NUMBER})\s*)?")
_RULE = "epsilon must be a number in [0, 1] or a quotient such as '4/255'"


def parse_epsilon(text: str) -> float:
    """Return the L-infinity radius that ``text`` names, as a fraction of the pixel range [0, 1].

    Args:
        text: ``"4/255"``, ``"0.5/255"``, ``"0.03"`` or ``"0"``.

    Raises:
        InputError: for anything else: negative, not finite, above 1, divided by zero.
    """
    match = _EPSILON.fullmatch(text)
    if match is None:
        raise InputError(f"{_RULE}. Received: '{text}'.")
    above, below = float(match["above"]), float(match["below"] or 1)
    if below == 0:
        raise InputError(f"{_RULE}; it cannot be divided by 0. Received: '{text}'.")
    if above / below > 1 or not math.isfinite(above / below):
        whole = match["below"] is None and above <= 255
        hint = f" Did you mean '{text.strip()}/255'?" if whole else ""
        raise InputError(f"{_RULE}. Received: '{text}'.{hint}")
    return above / below


def parse_epsilons(text: str) -> list[float]:
    """Return the radii of a comma-separated list, ascending, each once.

    Args:
        text: for example ``"0.5/255, 1/255, 2/255"``; each as for :func:`parse_epsilon`.

    Raises:
        InputError: where an entry is no radius, or there is none.
    """
    entries = [entry for entry in text.split(",") if entry.strip()]
    if not entries:
        raise InputError(
            f"epsilons must name at least one radius, such as '1/255,4/255'. Received: '{text}'."
        )
    return sorted({parse_epsilon(entry) for entry in entries})


def whole_levels(epsilon: float) -> int:
    """Return ⌊255 ε⌋: by how many of its 256 levels a channel of a PNG may change within ε."""
    return math.floor(255 * epsilon + 1e-9)
