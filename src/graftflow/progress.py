"""Progress of long work, as lines that read well in a pod's log and that a launcher can draw as a bar."""

import re
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# "progress: features 320/1280 pictures"
LINE = re.compile(r"progress: (?P<label>.+) (?P<done>\d+)/(?P<total>\d+) (?P<unit>\S+)$")


class Progress:
    """Prints how far a piece of work has come, at most every ``interval`` seconds and once at its end.

    Args:
        label: what is being done, e.g. ``"features"``.
        total: how many units there are; more than ``total`` is shown as ``total``.
        unit: one word for what is counted, e.g. ``"pictures"``.
        interval: seconds between two lines.
    """

    def __init__(self, label: str, *, total: int, unit: str, interval: float = 0.5) -> None:
        self._label, self._total, self._unit, self._interval = label, total, unit, interval
        self._done, self._last = 0, 0.0

    def advance(self, count: int = 1) -> None:
        """Add ``count`` finished units and print a line if one is due."""
        self._done = min(self._done + count, self._total)
        now = time.monotonic()
        if self._done == self._total or now - self._last >= self._interval:
            self._last = now
            print(f"progress: {self._label} {self._done}/{self._total} {self._unit}", flush=True)


def track(items: Iterable[Item], label: str, *, total: int, unit: str) -> Iterator[Item]:
    """Yield ``items``, reporting each one as done when the next is asked for."""
    progress = Progress(label, total=total, unit=unit)
    for item in items:
        yield item
        progress.advance()
