"""Numbers as people read them: percentages, intervals, counts and digests."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

NOTHING = "–"
_SPACE = "\N{NO-BREAK SPACE}"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage; what is merely near 0 or 100 % is not rounded to it."""
    if value is None:
        return NOTHING
    smallest = 0.1**digits
    if 0 < value < 1 and round(100 * value, digits) in (0, 100):
        near = f"< {smallest:.{digits}f}" if value < 0.5 else f"> {100 - smallest:.{digits}f}"
        return f"{near}{_SPACE}%"
    text = f"{100 * value:.{digits}f}"
    return f"{text.removesuffix('.' + '0' * digits) if value in (0, 1) else text}{_SPACE}%"


def short_percent(value: float) -> str:
    """Write a round fraction, such as a threshold, without digits that say nothing: ``90 %``."""
    return f"{100 * value:.4g}{_SPACE}%"


def percents_apart(first: float, round_one: float) -> tuple[str, str]:
    """Write a fraction and a round one with as many digits as tell them apart."""
    second = round_one
    for digits in range(1, 7):
        exact = abs(100 * second - float(f"{100 * second:.4g}")) < 1e-9
        pair = percent(first, digits), short_percent(second) if exact else percent(second, digits)
        if first == second or round(100 * first, digits) != round(100 * second, digits):
            return pair
    return repr(first), repr(second)


def decimal(value: float | None) -> str:
    """Write a loss: three digits after the point, more where it is small."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def count(value: float) -> str:
    """Write a count or a size, thousands apart."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def plural(value: int, noun: str) -> str:
    """Write a count with its noun: ``1 picture``, ``2 pictures``, ``3 classes``."""
    ending = "" if value == 1 else "es" if noun.endswith("s") else "s"
    return f"{count(value)}{_SPACE}{noun}{ending}"


def interval(metric: Mapping[str, Any], write: Callable[[float | None], str] = percent) -> str:
    """Write the ends of ``{"value", "low", "high"}``; a dash where there are none."""
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None:
        return NOTHING
    return f"{write(low)} to {write(high)}"


def epsilon(value: float) -> str:
    """Write a radius given in units of 1/255."""
    return f"{value:g}/255"


def names(values: Sequence[str]) -> str:
    """Write ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join([", ".join(values[:-1]), values[-1]]) if len(values) > 1 else values[0]
