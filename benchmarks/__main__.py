"""Every speed point in one table: ``python -m benchmarks --output runs/bench`` (``make bench``), some 15 minutes.

Each benchmark runs in a process of its own, one after the other, and leaves its rows, ratios of one run, as JSON in the
output folder; they are collected into one printed table and ``bench.json``. One that fails is told and does not stop
the others. Exit code 1: a goal was missed, or a benchmark failed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("extraction", "extraction.choices", "steps", "orchestration", "growth")
# Those that measure beside libraries of another environment.
WITH_PEERS = ("extraction", "steps")


def collect(
    names: Sequence[str], output: Path, *, peers_python: str = "", root: Path = ROOT
) -> tuple[list[Row], list[str]]:
    """Run benchmarks and read their rows.

    Args:
        names: modules of the package ``benchmarks`` under ``root``.
        output: folder for ``<name>.json`` and ``<name>.log``; what stands there under these names is removed first.
        peers_python: the Python that has torch, timm and the attack libraries; ``""`` leaves these peers out.
        root: what holds the package.

    Returns:
        The rows of all that ended well, and one line for each that did not.
    """
    output.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    failed: list[str] = []
    for name in names:
        record, log = output / f"{name}.json", output / f"{name}.log"
        record.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(record.resolve())]
        if peers_python and name in WITH_PEERS:
            command += ["--peers-python", peers_python]
        print(f"{name}: running (load {os.getloadavg()[0]:.1f}; {log} says how far)", flush=True)
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(command, cwd=root, stdout=file, stderr=subprocess.STDOUT, check=False)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        try:
            new = rows.read(record) if record.is_file() else []
        except ValueError as error:
            failed.append(f"{name}: {error}")
            continue
        found += new
        # A benchmark may end with 1 where a goal was missed: then its rows say so.
        if not new:
            last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"])[-1]
            failed.append(f"{name}: no rows, exit code {done.returncode} ({last[:200]})")
    return found, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(MODULES), help="in this order (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "bench", help="folder for the JSON files"
    )
    parser.add_argument(
        "--peers-python", default="", help="a Python with the peers, see benchmarks/README.md"
    )
    given = parser.parse_args(arguments)
    names = [name for name in given.only.split(",") if name]
    if not names or not set(names) <= set(MODULES):
        parser.error(f"--only must be some of {', '.join(MODULES)}. Received: '{given.only}'")
    found, failed = collect(names, given.output, peers_python=given.peers_python)
    print(f"\n{rows.table(found)}")
    for line in failed:
        print(f"failed: {line}")
    content = {name: json.loads(path.read_text(encoding="utf-8")) for name in names
               if (path := given.output / f"{name}.json").is_file()}  # fmt: skip
    summary = {"failed": failed, "benchmarks": content}
    (given.output / "bench.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return int(bool(failed) or any(row.held is False for row in found))


if __name__ == "__main__":
    sys.exit(main())
