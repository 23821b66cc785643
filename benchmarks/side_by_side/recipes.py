"""The recipes, and how one of them runs: in a process of its own, timed from its start."""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.side_by_side.splits import Split
from graftflow import files
from graftflow.caches import key_of
from graftflow.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Recipe:
    """One way to a classifier.

    Attributes:
        module: what runs it, in this package.
        needs: modules that its interpreter must have.
        source: whose recipe it is.
        flags: further arguments.
        peers: whether it runs in the peers' interpreter.
    """

    module: str
    needs: tuple[str, ...]
    source: str
    flags: tuple[str, ...] = ()
    peers: bool = False


RECIPES = {
    "graftflow": Recipe("graftflow_recipe", ("graftflow",), "this project, its pipeline's defaults"),
    "keras": Recipe("keras_recipe", ("keras",), "Keras guide, transfer learning"),
    "fastai": Recipe("fastai_recipe", ("torch", "timm", "fastai"), "fastbook, chapter 2", peers=True),
    "sklearn": Recipe("sklearn_recipe", ("keras", "sklearn"), "LogisticRegressionCV on features"),
    "keras-longer": Recipe("keras_recipe", ("keras",), "Keras guide, stopped early", flags=("--longer",)),
}
DEFAULT = ("graftflow", "keras", "fastai", "sklearn")


class RecipeError(Exception):
    """A recipe's process ended with an error; the message is its last line."""


def missing(recipe: Recipe, interpreter: str) -> str:
    """Return why a recipe cannot run here, or ``""``."""
    code = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if not u.find_spec(m)])"
    try:
        command = [interpreter, "-c", code, *recipe.needs]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"'{interpreter}' is no Python that works"
    names = found.stdout.split()
    return (
        f"{', '.join(names)} not installed for {Path(interpreter).name}; see benchmarks/README.md"
        if names
        else ""
    )


def run(
    name: str,
    split: Split,
    *,
    interpreter: str,
    weights: Path,
    defaults: Mapping[str, Any],
    quick: bool,
    log: Path,
) -> dict[str, Any]:
    """Run a recipe on a split and return its record.

    The process gets a home of its own, so that no cache of an earlier run helps it.

    Args:
        name: of the recipe.
        split: what it sees.
        interpreter: path of its Python.
        weights: the package's EfficientNet-Lite0 weights.
        defaults: graftflow's settings.
        quick: one epoch a stage.
        log: file that takes what it prints.

    Raises:
        RecipeError: the process ended with an error.
    """
    recipe = RECIPES[name]
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        home, scratch, record = (Path(folder) / part for part in ("home", "scratch", "record.json"))
        home.mkdir()
        scratch.mkdir()
        settings = {
            "data": split.data,
            "pictures": split.pictures,
            "weights": weights,
            "scratch": scratch,
            "record": record,
            "seed": split.seed,
            "validation-fraction": split.validation_fraction,
            "test-fraction": split.test_fraction,
            "defaults": json.dumps(dict(defaults)),
        }
        command = [interpreter, "-m", f"benchmarks.side_by_side.{recipe.module}"]
        command += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        command += [*recipe.flags, *(["--quick"] if quick else [])]
        environment = os.environ | {
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.monotonic()
        with open(log, "w", encoding="utf-8") as output:
            ended = subprocess.run(
                [*command, "--started", repr(started)],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        seconds = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if ended.returncode or not record.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RecipeError(
                f"exit {ended.returncode}: {lines[-1] if lines else 'it printed nothing'} ({log})"
            )
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {**files.read_json(record), "process": {"seconds": seconds, "cpu_seconds": cpu}}


def key(name: str, split: Split, *, defaults: Mapping[str, Any], quick: bool) -> str:
    """Return what a record depends on, as a key: a record with another key is measured again."""
    here = Path(__file__).parent
    sources = [here / f"{RECIPES[name].module}.py", here / "stopwatch.py"]
    sources += [here / "keras_recipe.py"] if name == "sklearn" else []
    sources += [here / "timm_weights.py"] if name == "fastai" else []
    sources += sorted((ROOT / "src" / "graftflow").rglob("*.py")) if name == "graftflow" else []
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    facts = {"recipe": name, "pictures": split.digest, "seed": split.seed, "quick": quick, "code": code}
    return key_of({**facts, "defaults": dict(defaults), "python": sys.version})


def choose(names: str) -> list[str]:
    """Return the recipes of a list with commas.

    Raises:
        InputError: one is not there, or one comes twice.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(RECIPES):
        raise InputError(f"recipes must be some of {', '.join(RECIPES)}, each once. Received: '{names}'.")
    return wanted
