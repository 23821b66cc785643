"""How long requests took, in constant memory however many there were."""

import math
import threading
from collections import Counter
from dataclasses import dataclass

_STEP = math.log(1.02)  # buckets are 2 % apart, so a quantile is right to 1 %
_LEAST = 1e-6  # seconds; what is shorter counts as this


@dataclass(frozen=True)
class Summary:
    """Requests of a time.

    Attributes:
        requests: answered and failed.
        seconds: the time.
        per_second: requests answered a second.
        milliseconds: ``p50``, ``p90``, ``p99`` and ``max`` of those answered; empty where none was.
        errors: failed ones by code.
    """

    requests: int
    seconds: float
    per_second: float
    milliseconds: dict[str, float]
    errors: dict[str, int]

    def line(self) -> str:
        """Return it as one line."""
        parts = [f"{self.requests} requests in {self.seconds:.1f} s", f"{self.per_second:.1f}/s"]
        if self.milliseconds:
            parts.append(" ".join(f"{name} {value:.1f}" for name, value in self.milliseconds.items()) + " ms")
        told = ", ".join(f"{code}: {count}" for code, count in sorted(self.errors.items()))
        parts.append(f"errors {sum(self.errors.values())}" + (f" ({told})" if told else ""))
        return " · ".join(parts)


class Latencies:
    """Counts requests; may be used by several threads at a time."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._errors: Counter[str] = Counter()
        self._longest = 0.0
        self._lock = threading.Lock()

    def answered(self, seconds: float) -> None:
        """Count a request that was answered after so many seconds."""
        bucket = round(math.log(max(seconds, _LEAST) / _LEAST) / _STEP)
        with self._lock:
            self._buckets[bucket] += 1
            self._longest = max(self._longest, seconds)

    def failed(self, code: str) -> None:
        """Count a request that failed."""
        with self._lock:
            self._errors[code] += 1

    def summary(self, seconds: float) -> Summary:
        """Return the figures of all requests so far.

        Args:
            seconds: how long they were counted.
        """
        with self._lock:
            buckets, errors, longest = sorted(self._buckets.items()), dict(self._errors), self._longest
        answered = sum(count for _, count in buckets)
        quantiles = {}
        if answered:
            for percent in (50, 90, 99):
                quantiles[f"p{percent}"] = 1e3 * min(_quantile(buckets, percent, answered), longest)
            quantiles["max"] = 1e3 * longest
        return Summary(
            answered + sum(errors.values()), seconds, answered / max(seconds, 1e-9), quantiles, errors
        )


def _quantile(buckets: list[tuple[int, int]], percent: int, total: int) -> float:
    """The value that ``percent`` of all do not exceed (nearest rank)."""
    rank = math.ceil(total * percent / 100)
    for bucket, count in buckets:
        rank -= count
        if rank <= 0:
            return _LEAST * math.exp(bucket * _STEP)
    return 0.0
