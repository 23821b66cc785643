"""One library's attacks, in a process of its own: ``python -m benchmarks.attacks.worker LIBRARY JOB.json RECORD.json``.

Every attack runs twice on the same pictures: the first time is told as ``first_seconds`` (what is traced or compiled is
in it), the second as ``seconds``. ``cpu_seconds``, of all cores, tell more than ``seconds`` where the machine has other
work. Success is judged here, by one function for all libraries.
"""

import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Attack = Callable[[Array, Array], Any]


@dataclass(frozen=True)
class Bench:
    """What every library is given.

    Attributes:
        model: Keras model from pixels ``float32 (n, s, s, 3)`` in [0, 1] to logits ``(n, k)``.
        num_classes: k.
        size: s.
        epsilon: L-infinity radius.
        l2_radius: L2 radius of a whole picture.
        queries: of Square, at most.
        seed: of whatever is random.
    """

    model: Any
    num_classes: int
    size: int
    epsilon: float
    l2_radius: float
    queries: int
    seed: int


def judge(bench: Bench, attack: str, found: Any, pixels: Array, labels: Array) -> dict[str, Any]:
    """Return how many of the pictures, all classified right before, are wrong now, and whether the ball was kept.

    ``success`` is counted on float pixels, projected into the ball first: no library gains by leaving it.
    """
    raw = np.asarray(found, np.float32)
    change = raw - pixels
    if "L2" in attack:
        lengths = np.sqrt((change.astype(np.float64) ** 2).sum(axis=(1, 2, 3), keepdims=True))
        excess = float(lengths.max() / bench.l2_radius)
        inside = change * np.minimum(1, bench.l2_radius / np.maximum(lengths, 1e-12))
    else:
        excess = float(np.abs(change).max() / bench.epsilon)
        inside = np.clip(change, -bench.epsilon, bench.epsilon)
    projected = np.clip(pixels + inside, 0, 1).astype(np.float32)
    wrong = np.asarray(bench.model(projected, training=False)).argmax(axis=1) != labels
    return {"success": float(wrong.mean()), "of_radius": excess, "fooled": [bool(w) for w in wrong]}


def measure(bench: Bench, name: str, attack: Attack, pixels: Array, labels: Array) -> dict[str, Any]:
    """Run an attack twice and time both."""
    seconds, cpu_seconds = [], []
    for _ in range(2):
        started, worked = time.perf_counter(), time.process_time()
        found = np.asarray(attack(pixels, labels))
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - worked)
    told = judge(bench, name, found, pixels, labels)
    return {
        "attack": name,
        "first_seconds": seconds[0],
        "seconds": seconds[1],
        "cpu_seconds": cpu_seconds[1],
        "pictures_a_second": len(pixels) / seconds[1],
        **told,
    }


def main() -> None:
    """Run one library's attacks at every radius; what fails is recorded with its error."""
    library, job_path, record_path = sys.argv[1:]
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    started = time.perf_counter()
    from graftflow import attacks
    from graftflow.training import load_classifier

    inputs = np.load(job["inputs"])
    pixels, labels = inputs["pixels"], inputs["labels"]
    model = attacks.logits_model(load_classifier(job["model"]))
    attacks_of = importlib.import_module(f"benchmarks.attacks.{library.split('-')[0]}_attacks").attacks_of
    rows: list[dict[str, Any]] = []
    record = {"library": library, "import_seconds": time.perf_counter() - started, "rows": rows}
    for epsilon in job["epsilons"]:
        # The L2 ball that a picture of ± ε everywhere would lie on the edge of is far larger than what fools it.
        l2_radius = epsilon * np.sqrt(pixels[0].size) / 4
        bench = Bench(
            model,
            int(model.output_shape[-1]),
            pixels.shape[1],
            epsilon,
            float(l2_radius),
            job["queries"],
            job["seed"],
        )
        try:
            named = attacks_of(bench, library)
        except Exception:
            rows.append({"attack": "(set up)", "epsilon": epsilon, "error": _last_line()})
            named = {}
        for name, attack in named.items():
            if job["only"] and name not in job["only"]:
                continue
            try:
                row = measure(bench, name, attack, pixels, labels)
            except Exception:
                row = {"attack": name, "error": _last_line()}
            rows.append({**row, "epsilon": epsilon})
            print(
                f"{library} {name} at {255 * epsilon:g}/255: {row.get('error') or row['seconds']}", flush=True
            )
            Path(record_path).write_text(json.dumps(record, indent=1), encoding="utf-8")
    Path(record_path).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _last_line() -> str:
    traceback.print_exc()
    return traceback.format_exc().strip().splitlines()[-1][:300]


if __name__ == "__main__":
    main()
