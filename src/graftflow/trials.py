"""One trial of a search for hyperparameters: ``python -m graftflow.trials``, what a Job of Katib runs.

Trains head and tail as the pipeline's steps do, on its ``dataset`` and ``features`` artifacts, and prints figures of
the validation pictures as ``name=value``, which Katib's collector reads. Test pictures are never looked at (their files
are checked for damage), and no model is kept: the pipeline trains the best recipe anew.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from graftflow.errors import InputError
from graftflow.recipe_flags import add_recipe_flags, recipe_of
from graftflow.recipes import Recipe
from graftflow.seals import check_seals

METRICS = ("validation_log_loss", "validation_accuracy", "head_log_loss", "head_accuracy")


def run_trial(
    dataset_path: str | Path,
    features_path: str | Path,
    *,
    recipe: Recipe,
    num_blocks: int = 0,
    weights: str = "imagenet",
    head_type: str = "linear",
    class_weight: str = "none",
) -> dict[str, float]:
    """Train a head and then the tail by a recipe.

    Args:
        dataset_path: a ``dataset`` artifact.
        features_path: a ``features`` artifact of it.
        recipe: of fine-tuning; its seed is the head's too.
        num_blocks: how many of the backbone's last blocks train; 0 tries the head alone.
        weights: the backbone's weights, as for the features.
        head_type: see :func:`graftflow.heads.fit_head`.
        class_weight: ``none`` or ``balanced``.

    Returns:
        ``METRICS``: accuracies as fractions, log losses in nats; those of ``validation`` are of what was trained last,
        whether the pipeline would keep it or not.

    Raises:
        InputError: for a setting out of range, artifacts that cannot be read, or a training that diverged.
    """
    from graftflow.heads import write_head
    from graftflow.training import write_model

    with tempfile.TemporaryDirectory(prefix="trial-") as folder:
        head, model = Path(folder) / "head", Path(folder) / "model"
        head.mkdir()
        model.mkdir()
        write_head(
            head,
            features_path=features_path,
            head_type=head_type,
            class_weight=class_weight,
            seed=recipe.seed,
        )
        summary = write_model(
            model,
            dataset_path=dataset_path,
            head_path=head,
            weights=weights,
            num_blocks=num_blocks,
            recipe=recipe,
        )
    trained, alone = summary["fine_tuned"] or summary["head"], summary["head"]
    values = (trained["log_loss"], trained["accuracy"], alone["log_loss"], alone["accuracy"])
    figures = dict(zip(METRICS, map(float, values), strict=True))
    if (num_blocks and not summary["history"]) or not all(map(math.isfinite, figures.values())):
        raise InputError(
            f"A trial's training must not diverge: try a smaller learning_rate. Received: {recipe.learning_rate:g}"
        )
    return figures


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m graftflow.trials", description=__doc__)
    parser.add_argument("--dataset", required=True, help="folder of a dataset artifact")
    parser.add_argument("--features", required=True, help="folder of a features artifact of it")
    parser.add_argument("--weights", default="imagenet", help="of the backbone; default: %(default)s")
    parser.add_argument("--head-type", default="linear", help="linear or mlp; default: %(default)s")
    parser.add_argument("--class-weight", default="none", help="none or balanced; default: %(default)s")
    parser.add_argument("--num-blocks", type=int, default=1, help="that train; default: %(default)s")
    add_recipe_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for a setting or an artifact that is wrong."""
    given = build_parser().parse_args(arguments)
    try:
        check_seals(given.dataset, given.features)
        figures = run_trial(
            given.dataset,
            given.features,
            recipe=recipe_of(given),
            num_blocks=given.num_blocks,
            weights=given.weights,
            head_type=given.head_type,
            class_weight=given.class_weight,
        )
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in figures.items():
        print(f"{name}={value:.10g}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
