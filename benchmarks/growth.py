"""Does time or memory grow faster than the pictures? ``python -m benchmarks.growth --output runs/growth.json``.

Every step of the pipeline runs on 1, 4 and 16 times as many pictures, each time in a process of its own that imports
what it needs. Settings are those of a short run: what is done once a picture is counted, not once a run. The pictures
are those of :mod:`benchmarks.streaming`: crops of the photographs in scikit-image, so no data set is needed.

A step whose seconds are ``fixed + each · pictures`` has the same ``each`` between 1 and 4 times as between 4 and 16
times. Their quotient is the growth: 1 is linear, below 1 is better than that. Seconds are those of the CPU, of the
process and its children, for other work on the machine stretches the clock and not them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, write
from benchmarks.streaming import make_pictures, take

TIMES = (1, 4, 16)
# Steps that read pictures one batch after another and keep none of them; the others hold what they say: rows of
# features, the pictures under attack.
STREAMING = ("download_data", "extract_features", "export_model", "evaluate", "deploy_model")
DOUBT = 0.1
_METRICS = {"fine_tune_metrics", "head_metrics", "test_metrics", "classification", "robustness"}


def plan(pictures: Path, count: int, store: Path) -> dict[str, tuple[dict[str, Any], list[str], list[str]]]:
    """Return every step's settings, the artifacts that it reads and those that it writes, in the pipeline's order.

    Args:
        pictures: a folder a class.
        count: how many pictures there are; a fifth of them is tested, and attacked.
        store: the model store.
    """
    # Attacks and drawings are short, so that what is done once a picture is not lost beside them.
    return {
        "download_data": (
            {
                "source": f"directory:{pictures}",
                "seed": 0,
                "validation_fraction": 0.2,
                "test_fraction": 0.2,
                "cache": str(store.parent / "cache"),
            },
            [],
            ["dataset"],
        ),
        "extract_features": (
            {
                "backbone": "efficientnet_lite0",
                "weights": "imagenet",
                "shard": 0,
                "num_shards": 1,
                "cache": str(store.parent / "cache"),
            },
            ["dataset"],
            ["feature_shard"],
        ),
        "merge_features": ({}, ["feature_shards"], ["features"]),
        "train_head": ({}, ["features"], ["head", "head_metrics"]),
        "fine_tune": (
            {
                "weights": "imagenet",
                "num_blocks": 2,
                "epochs": 3,
                "learning_rate": 3e-5,
                "seed": 0,
                "num_views": 1,
                "layer_decay": 0.7,
                "weight_decay": 1e-4,
                "label_smoothing": 0.0,
                "mixup": 0.0,
                "ema_decay": 0.99,
                "augmentation": "light",
                "precision": "float32",
                "cache": str(store.parent / "cache"),
            },
            ["dataset", "head"],
            ["model", "fine_tune_metrics"],
        ),
        "export_model": ({"version": 1}, ["dataset", "model"], ["saved_model"]),
        "evaluate": (
            {"seed": 0},
            ["dataset", "saved_model"],
            ["evaluation", "test_metrics", "classification"],
        ),
        "generate_adversarial": (
            {
                "epsilons": "1/255",
                "steps": 2,
                "num_pictures": count // 5,
                "target_class": "",
                "seed": 0,
            },
            ["dataset", "model", "head", "evaluation"],
            ["adversarial", "robustness"],
        ),
        "visualise_model": (
            {"backbone_weights": "imagenet", "ideal_classes": "zebra", "steps": 2, "seed": 0},
            ["dataset", "model", "features", "evaluation"],
            ["visuals"],
        ),
        "write_report": (
            {"min_accuracy": 0.0, "min_robust_accuracy": 0.0, "robust_epsilon": "1/255"},
            ["dataset", "features", "head", "model", "saved_model", "evaluation", "adversarial", "visuals"],
            ["report"],
        ),
        "deploy_model": (
            {"store": str(store), "model_name": "growth", "label": "stable"},
            ["dataset", "saved_model", "evaluation"],
            ["deployment"],
        ),
    }


def run_component(
    step: str, folder: Path, settings: dict[str, Any], inputs: list[str], outputs: list[str]
) -> None:
    """Run one component on artifacts that are folders of ``folder``; prints seconds and peak memory as JSON."""
    from kfp import dsl

    def artifact(name: str) -> Any:
        kind = (
            dsl.ClassificationMetrics
            if name == "classification"
            else dsl.Metrics
            if name in _METRICS
            else dsl.Artifact
        )
        return kind(name=name, uri=str(folder / name))

    given: dict[str, Any] = {name: artifact(name) for name in [*inputs, *outputs]}
    if "feature_shards" in given:
        given["feature_shards"] = [artifact("feature_shard")]
    started = time.perf_counter()
    getattr(import_module(f"components.{step}"), step).python_func(**settings, **given)
    wall = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures = {
        "wall": wall,
        "cpu": sum(one.ru_utime + one.ru_stime for one in used),
        "peak_mb": max(one.ru_maxrss for one in used) / 1024,
    }
    print(json.dumps(figures))


def measure(folder: Path, pictures: Path, count: int, steps: Sequence[str]) -> dict[str, dict[str, float]]:
    """Run the steps one after another on ``count`` pictures, each in a process of its own."""
    found = {}
    for step, call in plan(pictures, count, folder / "store").items():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.growth", "--one", step, str(folder), json.dumps(call)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{step} failed on {count} pictures:\n{done.stderr[-2000:]}")
        if step in steps:
            found[step] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{count:>6,} pictures  {step:<22}{found[step]['cpu']:>8.1f} s{found[step]['peak_mb']:>8.0f} MB",
                flush=True,
            )
    return found


def growth(counts: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Return the seconds of a further picture among many, of those among few; ``None`` where few cost nothing.

    Args:
        counts: three numbers of pictures, ascending.
        seconds: what they took.
    """
    few = (seconds[1] - seconds[0]) / (counts[1] - counts[0])
    many = (seconds[2] - seconds[1]) / (counts[2] - counts[1])
    # A step that takes no longer for four times the pictures has no cost a picture to compare with.
    return many / few if few * counts[1] > 0.1 * seconds[0] else None


def summarise(
    counts: Sequence[int], measured: dict[int, dict[str, dict[str, float]]]
) -> list[dict[str, Any]]:
    """Return a row a step: seconds a picture, growth and peak memory for every number of pictures."""
    rows = []
    for step in measured[counts[0]]:
        seconds = [measured[count][step]["cpu"] for count in counts]
        rows.append(
            {
                "step": step,
                "cpu": seconds,
                "wall": [measured[count][step]["wall"] for count in counts],
                "milliseconds_a_picture": [
                    1000 * s / count for s, count in zip(seconds, counts, strict=True)
                ],
                "growth": growth(counts, seconds),
                "peak_mb": [measured[count][step]["peak_mb"] for count in counts],
            }
        )
    return rows


def to_rows(counts: Sequence[int], measured: Sequence[dict[str, Any]]) -> list[Row]:
    """Return the rows of the one table: seconds of a further picture, and the memory of the steps that stream."""
    rows = []
    for step in measured:
        name, seconds = step["step"], step["cpu"]
        if step["growth"] is not None:
            few = 1000 * (seconds[1] - seconds[0]) / (counts[1] - counts[0])
            # Imports and building vary by a tenth from process to process, and few pictures cost hardly more.
            doubt = 1000 * DOUBT * seconds[0] / (counts[1] - counts[0])
            note = (
                f"CPU of a further picture among {counts[2]:,}; the goal is 1.15 times that among {counts[1]:,}, "
                f"{few:.3g} ms, with a tenth of the seconds for {counts[0]:,} in doubt"
            )
            rows.append(
                Row(f"growth of {name}", "ms", few * step["growth"], goal=1.15 * few + doubt, note=note)
            )
        if name in STREAMING:
            _, full, last = step["peak_mb"]
            note = f"peak with {counts[2]:,} pictures; the goal is 1.1 times that with {counts[1]:,}"
            rows.append(Row(f"memory of {name}", "MB", last, goal=1.1 * full, note=note))
    return rows


def table(counts: Sequence[int], rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"| step | CPU seconds, {' / '.join(f'{count:,}' for count in counts)} pictures "
        "| ms a picture | growth | peak MB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        said = "none a picture" if row["growth"] is None else f"{row['growth']:.2f}"
        cells = [
            " / ".join(f"{value:.1f}" for value in row["cpu"]),
            " / ".join(f"{value:.0f}" for value in row["milliseconds_a_picture"]),
            said,
            " / ".join(f"{value:.0f}" for value in row["peak_mb"]),
        ]
        lines.append(f"| `{row['step']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, counts: Sequence[int], rows: Sequence[dict[str, Any]]) -> None:
    """Draw time a picture and peak memory of every step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.2), constrained_layout=True)
    colours = pyplot.get_cmap("tab20")
    for place, row in enumerate(rows):
        style = {"marker": "os^Dv"[place % 5], "color": colours(place), "linewidth": 1.6, "markersize": 5}
        left.plot(counts, row["milliseconds_a_picture"], label=row["step"], **style)
        right.plot(counts, row["peak_mb"], label=row["step"], **style)
    left.set(
        xscale="log",
        yscale="log",
        ylabel="CPU milliseconds a picture",
        title="Time a picture, start included",
    )
    right.set(xscale="log", ylabel="MB", title="Peak memory")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off() if axes is right else axes.tick_params(
            axis="x", which="minor", bottom=False, labelbottom=False
        )
        axes.set_xlabel("pictures")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Make the pictures, run the steps, print a table and write JSON and the drawing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=int, default=120, help="pictures of the smallest set (default: 120)")
    parser.add_argument("--only", default="", help="steps to report, separated by commas; all of them run")
    parser.add_argument("--output", type=Path, help="a file for the figures")
    parser.add_argument("--drawing", type=Path, help="a file for the drawing, such as docs/growth.png")
    parser.add_argument("--one", nargs=3, metavar=("STEP", "FOLDER", "CALL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        step, folder, call = given.one
        run_component(step, Path(folder), *json.loads(call))
        return
    counts = [given.base * times for times in TIMES]
    steps = given.only.split(",") if given.only else list(plan(Path(), 0, Path()))
    measured = {}
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        root = Path(scratch)
        make_pictures(root / "pictures", counts[-1])
        for count in counts:
            source = take(root / "pictures", root / f"first-{count}", count)
            folder = root / str(count)
            folder.mkdir()
            measured[count] = measure(folder, source, count, steps)
    rows = summarise(counts, measured)
    print(table(counts, rows))
    if given.output:
        write(given.output, "growth", to_rows(counts, rows), details={"pictures": counts, "steps": rows})
    if given.drawing:
        draw(given.drawing, counts, rows)


if __name__ == "__main__":
    main()
