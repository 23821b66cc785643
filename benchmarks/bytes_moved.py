"""What a run's steps move through an object store, in bytes: ``python -m benchmarks.bytes_moved --run runs/latest``.

On a cluster KFP downloads every input artifact of a task into its pod and uploads every output. Both are counted here
from the artifacts of a real run, as its components declare them. A task that KFP takes from its cache starts no pod:
its outputs are the addresses that were uploaded before, and nothing moves.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines import run_index, run_step
from pipelines.run_index import Run

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Moved:
    """What one task of a run moves.

    Attributes:
        task: what the run calls it, e.g. ``extract_features 2``.
        downloads: input artifact → bytes; of a list, all of its artifacts together.
        uploads: output artifact → bytes.
        cached: whether this run took it from the cache: it then moved nothing, and these are what it had moved.
    """

    task: str
    downloads: dict[str, int]
    uploads: dict[str, int]
    cached: bool


def size_of(uri: str) -> int:
    """Return the bytes of an artifact: a file, or all files of a folder; 0 for one without content (metrics)."""
    path = Path(uri)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def moved_by(run: Run) -> list[Moved]:
    """Return what every task of a run moves; skipped and failed ones, which wrote nothing, are left out."""
    found = []
    for task, step in run.steps.items():
        if step.status not in ("done", "cached"):
            continue
        inputs = run_step.take_inputs(run_index.step_of(task), run)
        sizes = {name: _sizes(given) for name, given in inputs.items()}
        written = {name: size_of(artifact["uri"]) for name, artifact in step.artifacts.items()}
        found.append(Moved(task, sizes, written, step.status == "cached"))
    return found


def _sizes(given: Any) -> int:
    return sum(size_of(artifact.uri) for artifact in (given if isinstance(given, list) else [given]))


def table(tasks: Sequence[Moved]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| task | downloads | of which | uploads | this run moved |",
        "|---|---|---|---|---|",
    ]
    for task in tasks:
        inputs = sorted(task.downloads.items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {_megabytes(size)}" for name, size in inputs)
        taken, written = sum(task.downloads.values()), sum(task.uploads.values())
        now = "0 (cached)" if task.cached else _megabytes(taken + written)
        lines.append(f"| `{task.task}` | {_megabytes(taken)} | {told} | {_megabytes(written)} | {now} |")
    downloads = sum(sum(task.downloads.values()) for task in tasks)
    uploads = sum(sum(task.uploads.values()) for task in tasks)
    now = sum(sum(task.downloads.values()) + sum(task.uploads.values()) for task in tasks if not task.cached)
    lines.append(f"| all | {_megabytes(downloads)} | | {_megabytes(uploads)} | {_megabytes(now)} |")
    return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size else "0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bytes_moved", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "latest", help="folder of a run")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    try:
        tasks = moved_by(run_index.load(given.run))
    except run_index.RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(tasks))
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps([asdict(task) for task in tasks], indent=2)
        given.output.write_text(content + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
