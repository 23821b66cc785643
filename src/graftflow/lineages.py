"""Where a model comes from, in the model itself: ``assets.extra/lineage.json`` of a SavedModel's version folder.

TensorFlow Serving ignores the file; the sha256 of the version folder covers it. Importing this module loads no
TensorFlow.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from graftflow import addresses, files
from graftflow.errors import InputError

FILE = "assets.extra/lineage.json"
FORMAT = 1
_PACKAGES = ("graftflow", "tensorflow", "keras", "numpy")
_FIGURES = ("head", "fine_tuned", "calibrated")


@dataclass(frozen=True)
class Origin:
    """The run that exported a model; ``""`` for what is not known.

    Attributes:
        run_id: of Kubeflow Pipelines, or the name of the run's folder on one machine.
        commit: of graftflow's code; ``-dirty`` follows where files were changed since.
        image: of the container that the step ran in, or the name that KFP's cache knows the code by.
    """

    run_id: str = ""
    commit: str = ""
    image: str = ""


def read_origin() -> Origin:
    """Return the origin that the environment tells: ``GRAFTFLOW_RUN_ID``, ``GRAFTFLOW_COMMIT``, ``GRAFTFLOW_IMAGE``.

    The environment, since a parameter of the step would be part of KFP's cache key: no export would ever be reused.
    An export from the cache keeps the run that made it.
    """
    names = {field: f"GRAFTFLOW_{field.upper()}" for field in Origin.__dataclass_fields__}
    return Origin(**{field: os.environ.get(name, "") for field, name in names.items()})


def write_lineage(
    folder: str | Path,
    *,
    origin: Origin,
    version: int,
    model_path: str | Path,
    dataset_path: str | Path,
) -> dict[str, Any]:
    """Write a version folder's ``assets.extra/lineage.json``; returns what stands in it.

    Args:
        folder: the version folder.
        origin: of the export.
        version: its number.
        model_path: a ``model`` artifact.
        dataset_path: the ``dataset`` artifact that it was trained on.
    """
    model = files.read_json(Path(model_path) / "model.json")
    data = files.read_json(Path(dataset_path) / "dataset.json")
    lineage = {
        "format": FORMAT,
        **asdict(origin),
        "version": version,
        "dataset": {
            "source": _shown(data["source"]),
            **{name: data[name] for name in ("digest", "seed", "fractions", "counts")},
        },
        "backbone": model["backbone"],
        "parameters": _parameters(model),
        "validation": _figures(model),
        "packages": _packages(),
    }
    (Path(folder) / FILE).parent.mkdir(exist_ok=True)
    files.write_json(Path(folder) / FILE, lineage)
    return lineage


def _shown(source: str) -> str:
    """A data set's source without passwords and tokens, such as ``archive:https://example.org/pets.zip``."""
    kind, colon, place = source.partition(":")
    return addresses.shown(source) if place.startswith("//") else f"{kind}{colon}{addresses.shown(place)}"


def _parameters(model: Mapping[str, Any]) -> dict[str, Any]:
    """How the classifier was made: all of ``model.json`` that is a setting or a choice."""
    names = ("head_settings", "chosen", "unfrozen_blocks", "recipe", "temperature")
    return {name: model[name] for name in names if model.get(name) is not None}


def _figures(model: Mapping[str, Any]) -> dict[str, float]:
    """Validation figures by name, such as ``head_accuracy`` and ``fine_tuned_log_loss``."""
    found = {
        f"{part}_{name}": float(value)
        for part in _FIGURES
        for name, value in (model.get(part) or {}).items()
        if isinstance(value, int | float)
    }
    models = (model.get("trade") or {}).get("models", [])
    return found | {f"{row['name']}_robust_accuracy": float(row["robust_accuracy"]) for row in models}


def _packages() -> dict[str, str]:
    """Versions of what computed the model."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return versions


def parse_lineage(text: str, place: str) -> dict[str, Any]:
    """Return a ``lineage.json``'s content.

    Args:
        text: of the file.
        place: of the file, for messages.

    Raises:
        InputError: where it is not what :func:`write_lineage` writes.
    """
    try:
        lineage = json.loads(text)
        for name in (
            "run_id",
            "commit",
            "image",
            "version",
            "dataset",
            "backbone",
            "parameters",
            "validation",
        ):
            lineage[name]
        number = int(lineage["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{place} must be a lineage, in JSON, as the step export_model writes it. Received: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if number > FORMAT:
        raise InputError(
            f"The format of {place} must be at most {FORMAT}. Received: {number}: use a newer graftflow"
        )
    return dict(lineage)


def read_lineage(folder: str | Path) -> dict[str, Any] | None:
    """Return the lineage of a version folder on this machine, or ``None`` where it has none.

    Raises:
        InputError: where the file is not in order.
    """
    file = Path(folder) / FILE
    try:
        return parse_lineage(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} must be UTF-8. Received: {error.reason}") from error


def with_test_figures(lineage: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a lineage with the figures on the test pictures, which no file of the version can hold: it is older."""
    return None if lineage is None else {**lineage, "test": dict(metrics)}


def metadata_of(lineage: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what a KFP artifact tells of a lineage: run, commit, image and the hashes of data set and backbone."""
    if lineage is None:
        return {}
    return {
        **{name: str(lineage[name]) for name in Origin.__dataclass_fields__},
        "dataset_digest": str(lineage["dataset"].get("digest", "")),
        "backbone_weights_sha256": str(lineage["backbone"].get("weights_sha256", "")),
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings one by one, such as ``recipe.epochs``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{name}", text


if __name__ == "__main__":
    from graftflow.lineage_commands import main

    sys.exit(main())
