"""The one exception that users are meant to read."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A setting, file or folder that breaks a rule; the message is one line: rule, value, choices."""


def unknown_name(kind: str, received: str, choices: Iterable[str]) -> InputError:
    """Return the error for a name that is in no table, nearest names first.

    Args:
        kind: what the name stands for, e.g. ``"backbone"``.
        received: the name as the user gave it.
        choices: the names that exist.
    """
    names = sorted(choices)
    near = get_close_matches(received.lower(), names, n=1, cutoff=0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return InputError(f"{kind} must be one of {', '.join(names)}. Received: '{received}'.{hint}")
