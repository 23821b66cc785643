"""graftflow's attacks, as the pipeline runs them, on float pixels."""

from functools import partial

from benchmarks.attacks.worker import Attack, Bench


def attacks_of(bench: Bench, _library: str) -> dict[str, Attack]:
    """Return the attacks by name."""
    from graftflow import attacks

    found: dict[str, Attack] = {
        "FGSM": partial(attacks.fgsm, bench.model, epsilon=bench.epsilon),
    }
    for steps in (10, 40):
        found[f"PGD-{steps}"] = partial(
            attacks.pgd, bench.model, epsilon=bench.epsilon, steps=steps, seed=bench.seed
        )
    return found
