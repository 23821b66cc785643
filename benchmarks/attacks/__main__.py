"""``python -m benchmarks.attacks``: the attacks of graftflow, Foolbox and ART on one model, pictures, ε and steps."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftflow.epsilons import parse_epsilons
from graftflow.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("graftflow", "foolbox-compiled", "art-compiled", "foolbox", "art")
ATTACKS = ("FGSM", "PGD-10", "PGD-40", "PGD-40 L2", "Square", "ensemble")


def main(argv: Sequence[str] | None = None) -> int:
    """Run every library in a process of its own, one after the other, and print what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a model artifact")
    add("--dataset", type=Path, required=True, help="its dataset artifact; test pictures are attacked")
    add("--output", type=Path, required=True, help="folder of records and results.json")
    add("--peers-python", default=sys.executable, help="the Python that has foolbox and art")
    add("--libraries", default=",".join(LIBRARIES), help="in this order (default: %(default)s)")
    add("--attacks", default="", help=f"some of {', '.join(ATTACKS)} (default: all)")
    add("--pictures", type=int, default=32, help="all classified right before (default: %(default)s)")
    add(
        "--epsilons",
        default="0.1/255,4/255",
        help="where most resist, and where most are fooled (%(default)s)",
    )
    add("--queries", type=int, default=500, help="of Square (default: %(default)s)")
    add("--seed", type=int, default=0, help="fixes pictures and random starts (default: %(default)s)")
    given = parser.parse_args(argv)
    try:
        epsilons = parse_epsilons(given.epsilons)
        given.output.mkdir(parents=True, exist_ok=True)
        write_inputs(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    job = {
        "inputs": str((given.output / "inputs.npz").resolve()),
        "model": str(given.model.resolve()),
        "epsilons": epsilons,
        "queries": given.queries,
        "seed": given.seed,
        "only": [name for name in given.attacks.split(",") if name],
    }
    (given.output / "job.json").write_text(json.dumps(job, indent=1), encoding="utf-8")
    print(f"load before: {os.getloadavg()[0]:.2f}")
    for library in given.libraries.split(","):
        python = sys.executable if library == "graftflow" else given.peers_python
        command = [python, "-m", "benchmarks.attacks.worker", library]
        paths = [str(given.output / name) for name in ("job.json", f"{library}.json")]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "TF_CPP_MIN_LOG_LEVEL": "2"}
        with (given.output / f"{library}.log").open("w") as log:
            subprocess.run([*command, *paths], cwd=ROOT, env=environment, check=False, stdout=log, stderr=log)
        print(f"{library}: done, load {os.getloadavg()[0]:.2f}", flush=True)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in _records(given.output)]
    (given.output / "results.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    for epsilon in epsilons:
        print(f"\nε = {255 * epsilon:g}/255, {given.pictures} pictures\n{table(records, epsilon)}")
    return 0


def write_inputs(given: argparse.Namespace) -> None:
    """Choose pictures that the model classifies right, at its input size, in whole 1/255, into ``inputs.npz``.

    Raises:
        InputError: where the test split has fewer of them than asked for.
    """
    from graftflow import attacked_pictures, attacks
    from graftflow.training import load_classifier

    model = load_classifier(given.model)
    found = attacked_pictures.load(
        attacks.logits_model(model), given.dataset, 2 * given.pictures, None, model.input_shape[1], given.seed
    )
    chosen = np.flatnonzero(found.right)[: given.pictures]
    if len(chosen) < given.pictures:
        raise InputError(
            f"the test split must hold that many pictures classified right. Received: {len(chosen)} "
            f"for --pictures={given.pictures}."
        )
    np.savez(given.output / "inputs.npz", pixels=found.pixels[chosen], labels=found.labels[chosen])


def table(records: Sequence[dict[str, Any]], epsilon: float) -> str:
    """Return Markdown: for each attack and library success and speed beside graftflow's."""
    lines = [
        "| attack | library | success | pictures a second | slower | CPU s a picture | more | first run, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = {
        (row["attack"], record["library"]): row
        for record in records
        for row in record["rows"]
        if row["epsilon"] == epsilon
    }
    for attack, library in sorted(rows, key=lambda key: (_rank(ATTACKS, key[0]), _rank(LIBRARIES, key[1]))):
        row, own = rows[attack, library], rows.get((attack, "graftflow"), {})
        if "error" in row:
            lines.append(f"| {attack} | {library} | – | fails: {row['error']} | | | | |")
            continue
        slower, more = (
            f"{row[key] / own[key]:.1f}" if key in own else "" for key in ("seconds", "cpu_seconds")
        )
        lines.append(
            f"| {attack} | {library} | {row['success']:.3f} | {row['pictures_a_second']:.1f} | {slower} | "
            f"{row['cpu_seconds'] / len(row['fooled']):.2f} | {more} | {row['first_seconds']:.1f} |"
        )
    return "\n".join(lines)


def _rank(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _records(folder: Path) -> list[Path]:
    return [path for library in LIBRARIES if (path := folder / f"{library}.json").is_file()]


if __name__ == "__main__":
    sys.exit(main())
