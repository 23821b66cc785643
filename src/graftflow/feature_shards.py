"""Features in parts: which pictures each shard has, and the gather that puts every row at its place.

Loads no TensorFlow, so that the gather costs less than a second beside the extraction it ends.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftflow import files
from graftflow.errors import InputError
from graftflow.splits import SPLITS

FILE = "shard.json"
MAXIMUM = 1024
# What all shards of one extraction say alike.
_SHARED = ("num_shards", "dataset_digest", "backbone", "classes", "counts")
_SAID = ("shard", *_SHARED, "computed", "cached", "seconds")
_COLUMNS = ("places", "features", "labels", "paths")


def check_shards(name: str, value: int) -> None:
    """Raise InputError unless ``value`` is a number of shards that a cluster can be asked for.

    Args:
        name: of the setting, for the message.
        value: 1 to 1024: each is a pod with a start of its own.
    """
    if not 1 <= value <= MAXIMUM:
        raise InputError(f"{name} must be a whole number from 1 to {MAXIMUM}. Received: {value}")


@dataclass(frozen=True)
class Shard:
    """One of ``total`` parts of a dataset, ``number`` from 0.

    A shard has every ``total``-th picture, counted through all splits. So shards differ by one picture at most,
    whatever the splits' sizes, and new pictures of a grown dataset spread over all of them; contiguous ranges would
    give one shard the large pictures of one folder, or all that the cache lacks.

    Raises:
        InputError: for a number that is none of the parts.
    """

    number: int
    total: int

    def __post_init__(self) -> None:
        check_shards("num_shards", self.total)
        if not 0 <= self.number < self.total:
            raise InputError(
                f"shard must be a whole number from 0 to {self.total - 1}, below num_shards. "
                f"Received: {self.number}"
            )

    def places(self, count: int, *, first: int) -> npt.NDArray[np.int64]:
        """Return this shard's places ``(n,)`` in a split, ascending from 0.

        Args:
            count: pictures of the split.
            first: pictures of the splits before it.
        """
        return np.arange((self.number - first) % self.total, count, self.total, dtype=np.int64)


def merge_shards(destination: str | Path, *, shard_paths: Sequence[str | Path]) -> dict[str, Any]:
    """Gather shards into the ``features`` artifact, in an existing folder: every row at its picture's place.

    Args:
        destination: an existing folder.
        shard_paths: ``feature_shard`` artifacts in any order, all of one extraction.

    Returns:
        What stands in ``features.json``: ``computed`` and ``cached`` pictures of all shards; ``seconds`` are the sum of
        theirs, the work done, which shards that ran at once took less time for.

    Raises:
        InputError: a shard is missing, there twice, unreadable or of another extraction, or a picture has no row, or
            more than one.
    """
    said = _read_all([Path(path) for path in shard_paths])
    first = next(iter(said.values()))
    summary = {
        **{name: first[name] for name in ("backbone", "classes", "dataset_digest", "counts")},
        "computed": sum(shard["computed"] for shard in said.values()),
        "cached": sum(shard["cached"] for shard in said.values()),
        "seconds": round(sum(shard["seconds"] for shard in said.values()), 2),
    }
    for split in SPLITS:
        parts = [_load(path / f"{split}.npz") for path in said]
        np.savez(Path(destination) / f"{split}.npz", **_gather(parts, split, first["counts"][split]))
    files.write_json(Path(destination) / "features.json", summary)
    return summary


def _read_all(paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Read what the shards say, in the order of their numbers; checks that they are all parts of one extraction."""
    said = {}
    for path in paths:
        try:
            content = files.read_json(path / FILE)
            said[path] = {name: content[name] for name in _SAID}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _unreadable(path / FILE) from error
    if not said:
        raise InputError("feature_shards must hold at least one shard. Received: none")
    first = min(said.values(), key=lambda shard: shard["shard"])
    for shard in said.values():
        for name in _SHARED:
            if shard[name] != first[name]:
                raise InputError(
                    f"feature_shards must be of one extraction, with the same {name}. Received: "
                    f"{_shown(first[name])} in shard {first['shard']}, "
                    f"{_shown(shard[name])} in shard {shard['shard']}"
                )
    numbers = sorted(shard["shard"] for shard in said.values())
    if numbers != list(range(first["num_shards"])) or len(said) != len(paths):
        missing = sorted(set(range(first["num_shards"])) - set(numbers))
        received = sorted(said[path]["shard"] for path in paths)
        raise InputError(
            f"feature_shards must hold each shard from 0 to {first['num_shards'] - 1} once. Received: "
            f"{_listed(received)}{f' (missing: {_listed(missing)})' if missing else ''}"
        )
    return dict(sorted(said.items(), key=lambda item: item[1]["shard"]))


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        # An archive that is cut leaves the file open where numpy opens it itself.
        with path.open("rb") as file, np.load(file) as arrays:
            columns = {name: arrays[name] for name in _COLUMNS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(path) from error
    if len({len(column) for column in columns.values()}) > 1:
        raise _unreadable(path)
    return columns


def _gather(parts: Sequence[Mapping[str, npt.NDArray[Any]]], split: str, count: int) -> dict[str, Any]:
    """Put the rows of all parts at their places ``(count,)``."""
    places = np.concatenate([part["places"] for part in parts])
    if not np.array_equal(np.sort(places), np.arange(count)):
        rows = np.bincount(places[(places >= 0) & (places < count)], minlength=count)
        raise InputError(
            f"feature_shards must hold one row for each of the {count} pictures of {split}. Received: "
            f"{len(places)} rows, {int((rows == 0).sum())} pictures without one, "
            f"{int((rows > 1).sum())} with more"
        )
    gathered: dict[str, Any] = {}
    for name in ("features", "labels", "paths"):
        # The dtype of paths is as wide as the longest: an empty part's must not count.
        columns = [part[name] for part in parts if len(part[name])]
        column = np.concatenate(columns) if columns else parts[0][name]
        gathered[name] = np.empty_like(column)
        gathered[name][places] = column
    return gathered


def _unreadable(path: Path) -> InputError:
    return InputError(
        "A feature_shard artifact must hold shard.json and its .npz files, as extract_features writes them. "
        f"Received: '{path}'"
    )


def _shown(value: Any) -> str:
    """Return a value in a few characters; of a backbone, its name and the digest of its weights."""
    if isinstance(value, dict) and "weights_sha256" in value:
        value = f"{value['name']} {value['weights_sha256'][:12]}"
    text = str(value)
    return f"'{text if len(text) <= 60 else text[:57] + '...'}'"


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:10])
    return f"{shown}, … ({len(numbers)})" if len(numbers) > 10 else shown
