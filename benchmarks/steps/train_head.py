"""train_head: limit, the products of its evaluations of loss and gradient alone; peer, scikit-learn's own search."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.rows import Row
from benchmarks.steps.clocks import Setting, Spent, clocked, median, total

_AGAIN = 20


@contextmanager
def _evaluations() -> Iterator[Counter[tuple[int, int, int]]]:
    """Yield how often loss and gradient are evaluated in the block, by pictures, features and classes."""
    from sklearn.linear_model._linear_loss import LinearModelLoss

    counts: Counter[tuple[int, int, int]] = Counter()
    kept = LinearModelLoss.loss_gradient

    def loss_gradient(self: Any, coef: Any, x: Any, y: Any, *rest: Any, **settings: Any) -> Any:
        counts[(*x.shape, max(1, np.size(coef) // (x.shape[1] + 1)))] += 1
        return kept(self, coef, x, y, *rest, **settings)

    LinearModelLoss.loss_gradient = loss_gradient
    try:
        yield counts
    finally:
        LinearModelLoss.loss_gradient = kept


def measure(setting: Setting) -> tuple[list[Row], dict[str, Any]]:
    """Choose and fit a head as the step does, its limit, and scikit-learn on the same penalties and folds, in turns."""
    from graftflow import heads, logistic, neighbours

    found = [neighbours.read_features(setting.artifacts["features"], s) for s in ("train", "validation")]
    splits = [(split["features"], split["labels"]) for split in found]
    classes = int(splits[0][1].max()) + 1
    with _evaluations() as counts:
        head = heads.fit_head(*splits, num_classes=classes)
    steps, limits, peers = [], [], []
    for _ in range(setting.rounds):
        steps.append(clocked(lambda: heads.fit_head(*splits, num_classes=classes))[1])
        with logistic.one_thread():
            limits.append(total(_products(shape).times(count) for shape, count in counts.items()))
            peers.append(clocked(lambda: _sklearn(*splits[0]))[1])
    taken, limit, slow = median(steps), median(limits), median(peers)
    note = (
        f"the two matrix products of {counts.total()} evaluations of loss and gradient; exponentials are ours"
    )
    rows = [
        Row("train_head", "s", taken.seconds, limit=limit.seconds, peers={"scikit-learn": slow.seconds},
            ahead=True, note=note),
        Row("train_head, CPU", "s", taken.cpu, limit=limit.cpu, peers={"scikit-learn": slow.cpu},
            note="seconds of all cores"),
    ]  # fmt: skip
    details = {
        "evaluations": {" × ".join(map(str, shape)): count for shape, count in counts.items()},
        "chosen_c": head.chosen_c,
        "rounds": [[vars(s) for s in three] for three in zip(steps, limits, peers, strict=True)],
    }
    return rows, details


def _products(shape: tuple[int, int, int]) -> Spent:
    """Return what X · W and Rᵀ · X take, for X (n, d) and W (d, k)."""
    pictures, features, classes = shape
    generator = np.random.default_rng(0)
    x, w, r = (
        generator.normal(size=size).astype(np.float32)
        for size in ((pictures, features), (features, classes), (pictures, classes))
    )

    def both() -> None:
        for _ in range(_AGAIN):
            x @ w
            r.T @ x

    both()
    return clocked(both)[1].times(1 / _AGAIN)


def _sklearn(features: Any, labels: Any) -> Any:
    """Search the same penalties in as many folds, with scikit-learn's defaults else, on standardised features."""
    import warnings

    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.preprocessing import StandardScaler

    from graftflow.heads import STRENGTHS

    search = LogisticRegressionCV(Cs=list(STRENGTHS), cv=5, scoring="neg_log_loss", max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return search.fit(StandardScaler().fit_transform(features), labels)
