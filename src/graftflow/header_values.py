"""What HTTP headers say, where a server may say anything: a number, a wait, a validator, or nothing."""

import time
from email.utils import parsedate_to_datetime

_MOST_DIGITS = 18  # more than any file has bytes; of 4,300 and more Python makes no number
_LONGEST_VALIDATOR = 1024  # it is sent back, and servers take no headers of any length


def whole_number(text: str) -> int | None:
    """Return a number of bytes; ``None`` where the text is none. ``²`` is a digit to Python, and no number."""
    digits = text.strip()
    return int(digits) if digits.isdecimal() and len(digits) <= _MOST_DIGITS else None


def validator(text: str) -> str:
    """Return an ``ETag`` or a time of change as it can be sent back, or ``""``."""
    sendable = text.isascii() and text.isprintable() and text == text.strip()
    return text if sendable and len(text) <= _LONGEST_VALIDATOR else ""


def retry_after(text: str, date: str = "") -> float | None:
    """Return the seconds that ``Retry-After`` asks for (RFC 9110, section 10.2.3), as a number or as a date.

    Args:
        text: the header, or ``""``.
        date: the answer's ``Date``. A date is meant by the server's clock, which this tells; this machine's may be
            another one, and is taken where the server tells none.

    Returns:
        Seconds from 0, infinite for a number of very many digits; ``None`` where it has neither form.
    """
    if text.strip().isdecimal():
        return float(text)
    then, now = _moment(text), _moment(date)
    return None if then is None else max(0.0, then - (time.time() if now is None else now))


def _moment(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    # What the parser makes of malformed dates.
    except (TypeError, ValueError, OverflowError, OSError, IndexError):
        return None
