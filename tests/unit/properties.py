"""What the property tests share: how many examples they take, and how good bytes become bad ones."""

import os
import tempfile
from collections.abc import Callable
from functools import reduce
from typing import Any

from hypothesis import HealthCheck, configuration, settings
from hypothesis import strategies as st

from graftflow.errors import InputError, one_line

# Nothing is remembered from run to run: the suite takes the same examples on every machine.
configuration.set_hypothesis_home_dir(tempfile.gettempdir())
settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("stress", settings.get_profile("suite"), derandomize=False, max_examples=600)
settings.load_profile("stress" if os.environ.get("GRAFTFLOW_STRESS") == "1" else "suite")


def examples(share: float) -> Callable[[Any], Any]:
    """Take more or fewer examples than the profile does."""
    return settings(max_examples=max(1, round(share * settings.default.max_examples)))


def refusal_or(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the InputError that it raises, which must be one printable line."""
    try:
        return call()
    except InputError as error:
        line = str(error)
    if not line or line != one_line(line):
        raise AssertionError(f"not one printable line: {line!r}")
    return InputError(line)


_change = st.tuples(
    st.sampled_from(["bit", "byte", "cut", "insert", "double", "delete", "zeros", "ones"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=1, max_size=12),
)


def changed(data: bytes) -> st.SearchStrategy[bytes]:
    """These bytes with one to eight changes, each anywhere: bits, bytes, what is cut off, put in, doubled, dropped."""
    return st.lists(_change, min_size=1, max_size=8).map(lambda changes: reduce(_apply, changes, data))


def _apply(data: bytes, change: tuple[str, float, int, bytes]) -> bytes:
    kind, place, number, payload = change
    at = int(place * len(data))
    before, rest = data[:at], data[at:]
    match kind:
        case "bit" if rest:
            return before + bytes([rest[0] ^ 1 << number % 8]) + rest[1:]
        case "byte":
            return before + payload[:1] + rest[1:]
        case "cut":
            return before
        case "insert":
            return before + payload + rest
        case "double":
            return before + rest[: 1 + number % 64] + rest
        case "delete":
            return before + rest[1 + number % 64 :]
        case "zeros" | "ones":
            size = (1, 2, 4, 8)[number % 4]
            return before + (b"\0" if kind == "zeros" else b"\xff") * size + rest[size:]
    return data
