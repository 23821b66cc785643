"""The artifacts that a report is made of: read once, with an error that names the one at fault."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graftflow.errors import InputError
from graftflow.files import read_json

# Name of the artifact: its JSON file, the step that writes it, what the file must say.
LAYOUT: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "dataset": (
        "dataset.json",
        "download_data",
        ("source", "seed", "counts", "digest", "note", "audit"),
    ),
    "features": ("features.json", "merge_features", ("backbone", "dataset_digest")),
    "head": ("head.json", "train_head", ("chosen_c", "path", "validation_accuracy")),
    "model": ("model.json", "fine_tune", ("chosen", "unfrozen_blocks", "head", "history")),
    "saved_model": ("export.json", "export_model", ("version", "sha256", "backbone")),
    "evaluation": (
        "evaluation.json",
        "evaluate",
        ("classes", "pictures", "metrics", "per_class", "confusion", "calibration", "roc"),
    ),
    "adversarial": (
        "adversarial.json",
        "generate_adversarial",
        ("pictures", "clean_accuracy", "epsilons", "attacks", "descent", "triplets"),
    ),
    "visuals": ("visuals.json", "visualise_model", ("ideal", "feature_maps")),
}


class Artifacts:
    """The folders of one run and what their JSON files say.

    Args:
        folders: name of the artifact → its folder.

    Raises:
        InputError: an artifact or its JSON file is missing, or says too little.
    """

    def __init__(self, folders: Mapping[str, str | Path]) -> None:
        missing = [name for name in LAYOUT if name not in folders]
        if missing:
            raise InputError(f"artifacts must name {', '.join(LAYOUT)}. Missing: {', '.join(missing)}.")
        self.folders = {name: Path(folders[name]) for name in LAYOUT}
        self.said = {name: self._read(name) for name in LAYOUT}

    def __getitem__(self, name: str) -> Any:
        return self.said[name]

    def file(self, name: str, relative: str) -> Path:
        """Return the path of an artifact's file."""
        return self.folders[name] / relative

    def left_out(self) -> list[dict[str, str]]:
        """Return the rows of the data set's ``left_out.csv``: path and reason."""
        with (
            self.blaming("dataset"),
            open(self.file("dataset", "left_out.csv"), newline="", encoding="utf-8") as file,
        ):
            return [{"path": r["path"], "reason": r["reason"]} for r in csv.DictReader(file)]

    def audit(self) -> dict[str, Any] | None:
        """Return what the data set's ``audit.json`` says; ``None`` where an earlier version wrote the data set."""
        file = self.file("dataset", "audit.json")
        if not file.exists():
            return None
        with self.blaming("dataset"):
            said = read_json(file)
            if not isinstance(said, dict):
                raise self._error("dataset", "audit.json holds no object")
            return said

    @contextmanager
    def blaming(self, name: str) -> Iterator[None]:
        """Turn errors of the block into the one that names an artifact."""
        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            detail = " ".join(str(error).split())
            raise self._error(name, f"{type(error).__name__}: {detail}") from error

    def _read(self, name: str) -> dict[str, Any]:
        file, _, keys = LAYOUT[name]
        with self.blaming(name):
            said = read_json(self.folders[name] / file)
        if not isinstance(said, dict):
            raise self._error(name, f"{file} holds no object")
        missing = [key for key in keys if key not in said]
        if missing:
            raise self._error(name, f"{file} lacks {', '.join(missing)}")
        return said

    def _error(self, name: str, detail: str) -> InputError:
        file, step, _ = LAYOUT[name]
        return InputError(
            f"The '{name}' artifact must be a folder with {file} and its files, as {step} writes "
            f"it. Received: '{self.folders[name]}' ({detail})."
        )
