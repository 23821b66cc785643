"""Attacks one picture with a run's model: ``python -m pipelines.attack_picture --image=dog.jpg --target=cat``."""

import argparse
import os
import sys
import webbrowser
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import run_index
from pipelines.run_index import Run
from pipelines.run_local import ROOT, fail, interrupt_on_sigterm

SHOWN_CLASSES = 5
LATEST = ROOT / "runs" / "latest"


def model_of(run: Run) -> Path:
    """Return the folder of a run's ``model`` artifact.

    Raises:
        RunError: where the run lacks it.
        InputError: where it is damaged.
    """
    found = run.artifact("model")
    if found is None or not Path(found["uri"]).is_dir():
        raise run_index.RunError(
            f"RUN must have the artifact 'model' of fine_tune, which '{run.folder.name}' lacks. "
            f"Run: make fine-tune RUN={run.folder}"
        )
    from graftflow.seals import check_seals

    check_seals(found["uri"])
    return Path(found["uri"])


def attack(
    image: Path, run: Run, folder: Path, *, target: str, epsilon: str, attack: str, steps: int, seed: int
) -> dict[str, Any]:
    """Attack a picture file and write what came of it.

    Args:
        image: the file.
        run: has the artifact ``model``.
        folder: where the pictures and ``attack.json`` go; made here.
        target: the class to be predicted, or ``""``: any but the one predicted now.
        epsilon: radius, such as ``"4/255"`` or ``"0.02"``.
        attack: name of the attack.
        steps: gradient evaluations, at most.
        seed: fixes what is random.

    Returns:
        As :func:`graftflow.picture_attacks.write_attacked_picture`, and ``"seconds"`` of the attack itself.

    Raises:
        RunError: the run has no model.
        InputError: a setting breaks its rule, or the file is no picture that can be read.
    """
    from graftflow.epsilons import parse_epsilon
    from graftflow.errors import InputError

    radius, model = parse_epsilon(epsilon), model_of(run)
    try:
        data = image.read_bytes()
    except OSError as error:
        raise InputError(
            f"IMAGE must be a picture file that can be read. Received: '{image}' ({error.strerror})."
        ) from error
    # TensorFlow takes seconds to import: what is wrong above is said at once.
    from graftflow.picture_attacks import attack_picture, write_attacked_picture

    attacked = attack_picture(
        data, model_path=model, epsilon=radius, target=target, attack=attack, steps=steps, seed=seed
    )
    return {**write_attacked_picture(folder, attacked), "seconds": attacked.seconds}


def print_attack(found: dict[str, Any], console: Console) -> None:
    """Print both predictions as a table, and whether the model was fooled."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("class")
    table.add_column("original", justify="right")
    table.add_column("adversarial", justify="right")
    before, after = found["original"]["label"], found["adversarial"]["label"]
    ranked = sorted(found["probabilities"].items(), key=lambda item: -max(item[1]))
    # Whatever is said below stands in the table, however improbable the target stayed.
    wanted = [item for item in ranked if item[0] in (before, after, found["target"])]
    rows = (wanted + [item for item in ranked if item not in wanted])[:SHOWN_CLASSES]
    for name, (first, second) in sorted(rows, key=ranked.index):
        marks = ("▸ " if name == before else "", "▸ " if name == after else "")
        table.add_row(name, f"{marks[0]}{first:.4f}", f"{marks[1]}{second:.4f}")
    console.print(table)
    within = f"within {found['epsilon']:g}/255 (largest change {found['largest_change']}/255)"
    aim = f" towards '{found['target']}'" if found["target"] else ""
    if found["fooled"]:
        text = f"Fooled{aim} by {found['attack']} {within}: '{before}' became '{after}'."
    else:
        text = (
            f"Not fooled{aim} by {found['attack']} {within}: '{after}'. Try a larger EPSILON or more STEPS."
        )
    console.print(f"\n{text}", soft_wrap=True, markup=False)


def show(path: Path) -> None:
    """Open a file in the desktop's viewer where there is a display; nothing happens where there is none."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(path.resolve().as_uri())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error, 130 when interrupted."""
    interrupt_on_sigterm()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(prog="python -m pipelines.attack_picture", description=__doc__)
    add = parser.add_argument
    add("--image", type=Path, required=True, help="a picture: JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM")
    add("--target", default="", help="class to be predicted (default: any but the one predicted now)")
    add("--epsilon", default="4/255", help="radius, a fraction or k/255 (default: %(default)s)")
    add("--run", type=Path, default=LATEST, help="folder of a run")
    add("--attack", default="pgd", help="fgsm, pgd, apgd, square or ensemble (default: %(default)s)")
    add("--steps", type=int, default=40, help="gradient evaluations, at most (default: %(default)s)")
    add("--seed", type=int, default=0, help="fixes the random start (default: %(default)s)")
    add("--output", type=Path, help="folder for the pictures (default: a new one in the run's attacks/)")
    add("--open", action="store_true", help="open the side-by-side picture where there is a display")
    given = parser.parse_args(arguments)
    try:
        run = run_index.load(given.run)
        folder = (
            given.output
            or run.folder / "attacks" / f"{given.image.stem}-{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
        )
        found = attack(
            given.image,
            run,
            folder,
            target=given.target,
            epsilon=given.epsilon,
            attack=given.attack,
            steps=given.steps,
            seed=given.seed,
        )
    except (ValueError, OSError, run_index.RunError) as error:
        return fail(f"attack: {error}")
    except KeyboardInterrupt:
        fail("interrupted; nothing was written")
        return 130
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=160)
    print_attack(found, console)
    print(f"\nPicture  {folder / 'adversarial.png'}\nBeside   {folder / 'side_by_side.png'}")
    if given.open:
        show(folder / "side_by_side.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
