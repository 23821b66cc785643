"""generate_adversarial: limit, its passes through networks at the cost of bare ones; peers, one PGD each."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.rows import Row
from benchmarks.steps.clocks import Setting, Spent, bare_passes, clocked, each, median, total

_EPSILONS = tuple(level / 255 for level in (0.5, 1, 2, 4, 8))
_PICTURES, _STEPS = 32, 10
PEERS = ("foolbox-compiled", "art-compiled", "foolbox", "art")


class _Counted:
    """A compiled pass that counts the pictures that go through it."""

    def __init__(self, compiled: Any, count: Callable[[int], None], position: int) -> None:
        self._compiled, self._count, self._position = compiled, count, position
        self.get_concrete_function = compiled.get_concrete_function

    def __call__(self, *given: Any) -> Any:
        self._count(int(given[self._position].shape[0]))
        return self._compiled(*given)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Yield how many pictures go through networks in the block: ``forward``, and ``gradient``."""
    from graftflow.attacks import networks

    counts: Counter[str] = Counter()
    kept = networks.predict_pass, networks.gradient_pass
    networks.predict_pass = _Counted(kept[0], lambda n: counts.update(forward=n), 1)
    networks.gradient_pass = _Counted(kept[1], lambda n: counts.update(gradient=n), 2)
    try:
        yield counts
    finally:
        networks.predict_pass, networks.gradient_pass = kept


def measure(setting: Setting) -> tuple[list[Row], dict[str, Any]]:
    """Run the step with the defaults of a run, and its limit, in turns; then one attack of every library."""
    from graftflow.adversarial import write_adversarial
    from graftflow.training import load_classifier

    paths = setting.artifacts
    forward, gradient, given = bare_passes(load_classifier(paths["model"]))
    steps, limits, rounds = [], [], []
    for _ in range(setting.rounds):
        folder = setting.fresh("adversarial")

        def step(folder: Any = folder) -> Any:
            return write_adversarial(
                folder,
                model_path=paths["model"],
                dataset_path=paths["dataset"],
                num_pictures=_PICTURES,
                epsilons=_EPSILONS,
                steps=_STEPS,
                target_class="",
                seed=0,
                head_path=paths["head"],
                evaluation_path=paths["evaluation"],
            )

        with counted() as counts:
            found, taken = clocked(step)
        bare = each(forward, given[0]), each(gradient, *given)
        limit = total([bare[0].times(counts["forward"]), bare[1].times(counts["gradient"])])
        steps.append(taken)
        limits.append(limit)
        rounds.append(
            {
                "passes": dict(counts),
                "step": vars(taken),
                "limit": vars(limit),
                "forward": vars(bare[0]),
                "gradient": vars(bare[1]),
                "worst_case": found["worst_case"]["accuracy"],
            }
        )
    taken, limit = median(steps), median(limits)
    note = f"{counts['gradient']} gradients and {counts['forward']} predictions at the cost of bare ones"
    rows = [
        Row("generate_adversarial", "s", taken.seconds, limit=limit.seconds, goal=0.8, note=note),
        Row("generate_adversarial, CPU", "s", taken.cpu, limit=limit.cpu, note="seconds of all cores"),
    ]
    compared = _peers(setting)
    return [*rows, *_attack_rows(compared)], {"rounds": rounds, "attacks": compared}


def _peers(setting: Setting) -> list[dict[str, Any]]:
    """Return the records of :mod:`benchmarks.attacks` for PGD with 40 steps, where most pictures resist."""
    if setting.peers_python is None:
        return []
    folder = setting.fresh("attacks")
    command = [sys.executable, "-m", "benchmarks.attacks", "--attacks", "PGD-40", "--epsilons", "0.1/255"]
    command += ["--model", str(setting.artifacts["model"]), "--dataset", str(setting.artifacts["dataset"])]
    command += ["--output", str(folder), "--peers-python", setting.peers_python]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def _attack_rows(records: list[dict[str, Any]]) -> list[Row]:
    """Return graftflow's PGD beside the peers', each after a first run that compiles."""
    spent = {
        record["library"]: Spent(row["seconds"], row["cpu_seconds"])
        for record in records
        for row in record["rows"]
        if "seconds" in row
    }
    if "graftflow" not in spent:
        return []
    return [
        Row(
            f"PGD, 40 steps{title}",
            "s",
            getattr(spent["graftflow"], name),
            peers={peer: getattr(spent[peer], name) if peer in spent else None for peer in PEERS},
            ahead=name == "seconds",
            note="32 pictures at ε = 0.1/255, where most resist; compiled is the peer with a model that we compiled",
        )
        for title, name in (("", "seconds"), (", CPU", "cpu"))
    ]
