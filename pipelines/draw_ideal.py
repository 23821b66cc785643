"""Draws what a network wants to see of one class: ``python -m pipelines.draw_ideal --class="Siamese cat"``."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines import run_index
from pipelines.attack_picture import LATEST, model_of, show
from pipelines.console import RunConsole
from pipelines.run_index import Run
from pipelines.run_local import LineWriter, fail, interrupt_on_sigterm

BACKBONE = "efficientnet_lite0"


def run_of(folder: Path | None) -> Run | None:
    """Return the run that is named, else the latest, else ``None``: ImageNet's classes need no run.

    Raises:
        RunError: where the named folder is no run's.
    """
    if folder is None and not LATEST.is_dir():
        return None
    return run_index.load(folder or LATEST)


def draw(
    class_name: str, run: Run | None, folder: Path, *, backbone: str, weights: str, **settings: int
) -> dict[str, Any]:
    """Draw one class and write the picture and how it came about.

    Args:
        class_name: a class of the run's model or, where it has none of that name or a backbone is named, of ImageNet.
        run: whose classes, backbone and weights to take, or ``None``.
        folder: where the files go; made here.
        backbone: whose ImageNet classifier draws, or ``""``: the run's, and without a run EfficientNet-Lite0.
        weights: of that classifier, or ``""``: the run's, unless a backbone is named.
        settings: ``seed``, ``size`` in pixels and ``steps``.

    Returns:
        As :func:`graftflow.class_drawings.write_class_drawing`.

    Raises:
        InputError: a setting breaks its rule, or the class is neither the run's nor ImageNet's.
    """
    from graftflow.class_drawings import draw_class, write_class_drawing
    from graftflow.progress import Progress

    parameters = {} if run is None or backbone else run.parameters
    has_model = run is not None and not backbone and run.artifact("model") is not None
    progress = Progress(f"ideal image of {class_name}", total=max(settings["steps"], 1), unit="steps")
    drawn = draw_class(
        class_name,
        model_path=model_of(run) if run is not None and has_model else None,
        backbone=backbone or parameters.get("backbone", BACKBONE),
        weights=weights or parameters.get("weights", "imagenet"),
        advance=progress.advance,
        **settings,
    )
    return write_class_drawing(folder, drawn)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error, 130 when interrupted."""
    interrupt_on_sigterm()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(prog="python -m pipelines.draw_ideal", description=__doc__)
    add = parser.add_argument
    add("--class", dest="class_name", required=True, help="a class of the run's model, or of ImageNet")
    add(
        "--backbone",
        default="",
        help=f"draw with its ImageNet classifier (default: the run's, or {BACKBONE})",
    )
    add("--weights", default="", help="of that classifier: imagenet, a file or an address")
    add("--run", type=Path, help="folder of a run (default: the latest, if there is one)")
    add("--size", type=int, default=224, help="side in pixels (default: %(default)s)")
    add("--steps", type=int, default=128, help="of the drawing (default: %(default)s)")
    add("--seed", type=int, default=0, help="fixes the noise that it starts from (default: %(default)s)")
    add("--output", type=Path, help="folder for the pictures (default: a new one beside the runs)")
    add("--open", action="store_true", help="open the picture where there is a display")
    given = parser.parse_args(arguments)
    name = re.sub(r"\W+", "-", given.class_name).strip("-").lower() or "class"
    try:
        run = run_of(given.run)
        root = run.folder.parent if run is not None else LATEST.parent
        folder = given.output or root / f"ideal-{name}-{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
        with RunConsole(sys.stdout) as console, contextlib.redirect_stdout(LineWriter(console.line)):
            console.started("draw_ideal")
            found = draw(
                given.class_name,
                run,
                folder,
                backbone=given.backbone,
                weights=given.weights,
                seed=given.seed,
                size=given.size,
                steps=given.steps,
            )
    except (ValueError, OSError, run_index.RunError) as error:
        return fail(f"ideal: {error}")
    except KeyboardInterrupt:
        fail("interrupted; nothing was written")
        return 130
    print(f"{found['class']} ({found['network']}): probability {found['probability']:.4f}")
    print(f"\nPicture  {folder / 'ideal.png'}\nProcess  {folder / 'ideal.webp'}")
    if given.open:
        show(folder / "ideal.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
