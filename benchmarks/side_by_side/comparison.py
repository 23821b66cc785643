"""Figures over the seeds: means with intervals, and differences of pairs picture by picture."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graftflow.errors import InputError
from graftflow.metrics import bootstrap_counts, with_interval

TARGETS = (0.97, 0.98)
RESAMPLES, CONFIDENCE = 10_000, 0.95
# An outcome a picture: was it right (0 or 1), and the negative log probability of its class (nats).
Outcomes = dict[str, tuple[float, float]]


def outcomes_of(probabilities: Mapping[str, Sequence[float]], classes: Sequence[str]) -> Outcomes:
    """Judge test predictions.

    Args:
        probabilities: for every path (class/file) one probability a class.
        classes: the classes' names, in the order of the probabilities.
    """
    judged = {}
    for path, row in probabilities.items():
        label = classes.index(path.split("/")[0])
        judged[path] = (float(int(np.argmax(row)) == label), float(-np.log(max(row[label], 1e-12))))
    return judged


def mean_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean with its 95 % interval by Student's t; None for the ends where there is one value."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return {"value": mean, "low": None, "high": None}
    reach = float(
        stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    )
    return {"value": mean, "low": mean - reach, "high": mean + reach}


def paired(first: Sequence[Outcomes], second: Sequence[Outcomes], *, which: int) -> dict[str, float | None]:
    """Return the mean difference, first less second, over the test pictures of all seeds, with a 95 % interval.

    A photograph can be a test picture of several seeds: the bootstrap draws photographs, not predictions (Field and
    Welsh 2007, the cluster bootstrap).

    Args:
        first: outcomes of one recipe, one entry a seed.
        second: of the other, the same seeds and pictures.
        which: 0 accuracy, 1 log loss.

    Raises:
        InputError: the two were not tested on the same pictures.
    """
    differences: dict[str, list[float]] = defaultdict(list)
    for one, other in zip(first, second, strict=True):
        if one.keys() != other.keys():
            raise InputError(
                f"Recipes must predict the same test pictures. Received: {len(one.keys() ^ other.keys())} that one "
                "of two recipes has not seen."
            )
        for path in sorted(one):
            differences[path].append(one[path][which] - other[path][which])
    sums = np.array([sum(found) for found in differences.values()])
    sizes = np.array([len(found) for found in differences.values()], dtype=float)
    counts = bootstrap_counts(len(sums), resamples=RESAMPLES, seed=0)
    return with_interval((counts @ sums) / (counts @ sizes), confidence=CONFIDENCE)


def seconds_to(record: Mapping[str, Any], accuracy: float) -> float | None:
    """Return the seconds at which a curve first reached a validation accuracy; None where it never did."""
    return next((p["seconds"] for p in record["curve"] if p["accuracy"] >= accuracy), None)


def seconds_to_final(record: Mapping[str, Any]) -> float:
    """Return the seconds at which a curve first reached the validation accuracy that it ends with."""
    found = seconds_to(record, record["curve"][-1]["accuracy"])
    return float(record["curve"][-1]["seconds"] if found is None else found)


def compare(records: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Summarise records of some recipes and seeds.

    Returns:
        ``recipes``: for every model (a recipe may report two) its ``recipe``, ``seeds``, test ``accuracy`` and
        ``log_loss`` with intervals, ``seconds`` and ``cpu_seconds`` until it was ready, and ``times`` graftflow's
        seconds (of the same seeds); ``phases``: mean seconds of each recipe; ``reached``: for each recipe the mean
        seconds to each target and how many seeds reached it; ``pairs``: differences of every two models.
    """
    models: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        for result in record["results"]:
            judged = outcomes_of(result["probabilities"], classes)
            models[result["name"]][record["seed"]] = {
                **result,
                "outcomes": judged,
                "recipe": record["recipe"],
            }
    return {
        "models": {name: _summary(runs, models.get("graftflow", {})) for name, runs in models.items()},
        "phases": {name: _phases(found) for name, found in _by_recipe(records).items()},
        "reached": {name: _reached(found) for name, found in _by_recipe(records).items()},
        "pairs": _pairs(models),
    }


def _by_recipe(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        found[record["recipe"]].append(record)
    return found


def _summary(runs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    judged = [list(run["outcomes"].values()) for run in runs.values()]
    shared = sorted(runs.keys() & base.keys())
    ratio = (
        sum(runs[s]["seconds"] for s in shared) / sum(base[s]["seconds"] for s in shared) if shared else None
    )
    return {
        "recipe": next(iter(runs.values()))["recipe"],
        "seeds": sorted(runs),
        "accuracy": mean_interval([float(np.mean([right for right, _ in found])) for found in judged]),
        "log_loss": mean_interval([float(np.mean([loss for _, loss in found])) for found in judged]),
        "seconds": mean_interval([run["seconds"] for run in runs.values()]),
        "cpu_seconds": mean_interval([run["cpu_seconds"] for run in runs.values()]),
        "times": ratio,
    }


def _phases(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    names = records[0]["phases"]
    return {
        name: {unit: float(np.mean([r["phases"][name][unit] for r in records])) for unit in names[name]}
        for name in names
    }


def _reached(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, list[float]] = {"final": [seconds_to_final(record) for record in records]}
    for target in TARGETS:
        times = [seconds_to(record, target) for record in records]
        found[f"{target:g}"] = [time for time in times if time is not None]
    return {
        name: {"seconds": float(np.mean(times)) if times else None, "reached": len(times), "of": len(records)}
        for name, times in found.items()
    }


def _pairs(models: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    names = list(models)
    pairs = []
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            seeds = sorted(models[first].keys() & models[second].keys())
            if not seeds:
                continue
            one, other = ([models[name][seed]["outcomes"] for seed in seeds] for name in (first, second))
            pairs.append(
                {
                    "first": first,
                    "second": second,
                    "seeds": seeds,
                    "accuracy": paired(one, other, which=0),
                    "log_loss": paired(one, other, which=1),
                }
            )
    return pairs
