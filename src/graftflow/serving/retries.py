"""Asking again after a failure that may pass: exponential back-off with jitter, under one deadline."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from graftflow.serving.refusals import PassingError

Result = TypeVar("Result")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds


class Deadline:
    """The end of one request, however often it is tried.

    Args:
        timeout: seconds from now.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._end = time.monotonic() + timeout

    def left(self) -> float:
        """Return the seconds that are left, at least a millisecond, because 0 means forever to some libraries."""
        return max(self._end - time.monotonic(), 1e-3)

    @property
    def passed(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() >= self._end


def ask_again(ask: Callable[[], Result], deadline: Deadline, patience: float) -> Result:
    """Return the result of ``ask``, tried again as long as it raises :class:`PassingError`.

    Pauses double from 0.1 to 2 seconds, each shortened by a random part of up to a half. They are not seeded: clients
    that failed together must not come back together. A pause that the server asks for is kept in full.

    Args:
        ask: one try.
        deadline: no try begins after it.
        patience: seconds during which it is tried again where the server does not say when to come back.

    Raises:
        ServerUnreachableError: the last failure, where time ran out.
    """
    end = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        try:
            return ask()
        except PassingError as error:
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  # nosec B311 # spreads clients; no secret
            if error.pause is not None:
                wait = max(wait, error.pause)
            elif time.monotonic() + wait > end:
                raise error.final from error
            if wait >= deadline.left():
                raise error.final from error
        time.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)
