"""The one exception that users are meant to read."""

from collections.abc import Iterable
from difflib import get_close_matches
from unicodedata import category


class InputError(ValueError):
    """A setting, file or folder that breaks a rule; the message is one line: rule, value, choices.

    Args:
        message: the line; it may quote what came from outside, see :func:`one_line`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Return a text as one line that does nothing to the terminal that shows it.

    A name in an archive or a word of a server may hold escape sequences, which move the cursor or write into the
    clipboard, marks that turn the direction of reading, and halves of characters that no terminal can be sent. They are
    shown as Python writes them, ``\\x1b``; line ends become blanks.
    """
    if text.isprintable():
        return text
    shown = (" " if c in "\t\n\v\f\r\x85\u2028\u2029" else c for c in text)
    return "".join(c if c.isprintable() or category(c) == "Zs" else escaped(c) for c in shown)


def escaped(character: str) -> str:
    """Return a character as Python writes it in a text: ``\\x1b``, ``\\u202e``."""
    return character.encode("unicode_escape").decode("ascii")


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
