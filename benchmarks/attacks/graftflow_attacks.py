"""graftflow's attacks, as the pipeline runs them, on float pixels."""

from typing import Any

from benchmarks.attacks.worker import Array, Attack, Bench


def attacks_of(bench: Bench, _library: str) -> dict[str, Attack]:
    """Return the attacks by name."""
    from graftflow import attacks

    def attack(kind: Any, **settings: Any) -> Attack:
        def run(pixels: Array, labels: Array) -> Any:
            return kind(bench.model, pixels, labels, **{"epsilon": bench.epsilon, **settings}).pixels

        return run

    pgd, seed = attacks.projected_gradient, bench.seed
    return {
        "FGSM": attack(attacks.fast_gradient),
        "PGD-10": attack(pgd, steps=10, seed=seed),
        "PGD-40": attack(pgd, steps=40, seed=seed),
        "PGD-40 L2": attack(pgd, steps=40, seed=seed, norm="l2", epsilon=bench.l2_radius),
        "Square": attack(attacks.square, queries=bench.queries, seed=seed),
        # As many tries at DLR as ART has: one, which is the targeted one here.
        "ensemble": attack(attacks.ensemble, steps=40, queries=bench.queries, seed=seed, num_targets=1),
    }
