"""Intervals of shares that were counted on few pictures."""

CONFIDENCE = 0.95


def share(count: int, total: int, *, confidence: float = CONFIDENCE) -> dict[str, float | None]:
    """Return a counted share and its Wilson score interval (Wilson 1927), which has a width at 0 and at 1 too.

    Args:
        count: how many of ``total``, 0 ≤ count ≤ total.
        total: how many were counted; 0 gives no share.
        confidence: of the interval, a fraction.

    Returns:
        ``{"value", "low", "high"}``, fractions; all ``None`` where ``total`` is 0.
    """
    from scipy.stats import binomtest

    if not total:
        return {"value": None, "low": None, "high": None}
    interval = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return {"value": count / total, "low": float(interval.low), "high": float(interval.high)}
