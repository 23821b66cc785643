"""The ``dataset`` artifact: pictures that were looked at, divided into splits, and written down."""

import csv
import shutil
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from graftflow.audit import LeftOut, audit
from graftflow.contact_sheets import COLUMNS, ROWS, draw_contact_sheet
from graftflow.errors import InputError, unknown_name
from graftflow.files import read_json, sha256_file, write_json
from graftflow.folders import MINIMUM_CLASSES, MINIMUM_PICTURES
from graftflow.pictures import Source
from graftflow.progress import Progress, track
from graftflow.records import Record, Span, Spool, read_shards, write_shards
from graftflow.sources import check_source, open_source
from graftflow.splits import SPLITS, assign_splits, check_fractions, check_seed, shuffled
from graftflow.storage import writing

Item = TypeVar("Item")

MANIFEST = ("path", "sha256", "label", "split", "width", "height", "format", "converted")


@dataclass(frozen=True)
class DatasetInfo:
    """What ``classes.json`` and ``dataset.json`` say.

    Attributes:
        classes: label i is ``classes[i]``.
        source: where the pictures came from.
        seed: what fixed the splits.
        fractions: share of each split.
        counts: ``{split: {class: number of pictures}}``.
        digest: SHA-256 of ``manifest.csv``: two data sets with one digest are the same pictures,
            labels and splits.
        note: what a reader of results should know, or ``""``.
        audit: ``pictures`` (kept), ``left_out``, ``duplicates`` (kept pictures whose bytes another
            one has), ``converted`` and ``conversions`` by reason, ``formats``, ``widths``,
            ``heights``.
    """

    classes: tuple[str, ...]
    source: str
    seed: int
    fractions: Mapping[str, float]
    counts: Mapping[str, Mapping[str, int]]
    digest: str
    note: str
    audit: Mapping[str, Any]

    @property
    def pictures(self) -> int:
        """How many pictures the data set has."""
        return sum(sum(split.values()) for split in self.counts.values())


@dataclass(frozen=True, slots=True)
class _Stored:
    """A usable picture whose bytes lie in the spool."""

    path: str
    label: str
    sha256: str
    width: int
    height: int
    format: str
    converted: str
    span: Span


def write_dataset(
    destination: str | Path,
    *,
    source: str,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    shard_megabytes: float = 128,
    tfds_data_dir: str | Path | None = None,
) -> DatasetInfo:
    """Fetch pictures, audit them, divide them and write the ``dataset`` artifact.

    Pictures that cannot be decoded are left out with a reason. Equal bytes stay in one split; equal
    bytes in two classes are left out, all of them. JPEG and PNG of 8 bits, grey or RGB, upright and
    opaque, are kept as they are; everything else becomes an RGB PNG. The bytes pass through one
    spool on disk: memory does not grow with them, the disk holds them twice for a while.

    Args:
        destination: an existing empty folder; see ``docs/architecture.md`` for what it holds then.
        source: ``closeups``, ``digits``, ``directory:PATH``, ``archive:PATH-or-URL`` or
            ``tfds:NAME``.
        seed: fixes the splits and the order of the records, on every machine; 0 to 2**63 - 1.
        validation_fraction: share of each class for validation, above 0 and below 1.
        test_fraction: share of each class for test; together they stay below 1.
        shard_megabytes: megabytes of pictures a TFRecord file, above 0.
        tfds_data_dir: where prepared data sets of TensorFlow Datasets are; ``None``: its choice.

    Returns:
        What was written.

    Raises:
        InputError: a setting out of range; a source that is missing or refused; fewer than two
            classes; a class with fewer than three different usable pictures; a full disk.
    """
    check_fractions(validation_fraction=validation_fraction, test_fraction=test_fraction)
    check_seed(seed)
    if not shard_megabytes > 0:
        raise InputError(f"shard_megabytes must be above 0. Received: {shard_megabytes}.")
    check_source(source)
    folder = Path(destination)
    scratch = folder / ".scratch"
    try:
        with writing(folder), warnings.catch_warnings():
            # The audit says what is wrong with a picture; Pillow's remarks would only repeat it.
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            scratch.mkdir()
            with (
                open_source(source, scratch=scratch, tfds_data_dir=tfds_data_dir) as opened,
                Spool(scratch / "pictures") as spool,
            ):
                stored, left_out = _audit(opened, spool)
                groups, conflicts = _groups(stored)
                left_out += conflicts
                _check_classes(groups, left_out, source)
                splits = assign_splits(
                    {label: [[p.path for p in g] for g in found] for label, found in groups.items()},
                    seed=seed,
                    validation_fraction=validation_fraction,
                    test_fraction=test_fraction,
                )
                kept = sorted((p for p in stored if p.path in splits), key=lambda p: p.path)
                classes = sorted(groups)
                write_json(folder / "classes.json", classes)
                _write_records(folder, kept, classes, splits, spool, seed, shard_megabytes)
                rows = ([getattr(p, c) if c != "split" else splits[p.path] for c in MANIFEST] for p in kept)
                _write_csv(folder / "manifest.csv", MANIFEST, rows)
                _write_csv(
                    folder / "left_out.csv",
                    ("path", "reason"),
                    sorted((p.path, p.reason) for p in left_out),
                )
                _write_contact_sheet(folder, kept, classes, spool)
            fractions = {
                "train": round(1.0 - validation_fraction - test_fraction, 12),
                "validation": validation_fraction,
                "test": test_fraction,
            }
            counts = Counter((splits[p.path], p.label) for p in kept)
            info = {
                "source": source,
                "seed": seed,
                "fractions": fractions,
                "counts": {s: {c: counts[s, c] for c in classes} for s in SPLITS},
                "digest": sha256_file(folder / "manifest.csv"),
                "note": opened.note,
                "audit": _summary(kept, left_out, groups),
            }
            write_json(folder / "dataset.json", info)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return load_info(folder)


def load_info(path: str | Path) -> DatasetInfo:
    """Read what a ``dataset`` artifact says about itself, without TensorFlow.

    Args:
        path: the artifact's folder.

    Raises:
        InputError: the folder is no ``dataset`` artifact.
    """
    folder = Path(path)
    try:
        classes, about = read_json(folder / "classes.json"), read_json(folder / "dataset.json")
        return DatasetInfo(
            classes=tuple(classes),
            source=about["source"],
            seed=about["seed"],
            fractions=about["fractions"],
            counts=about["counts"],
            digest=about["digest"],
            note=about["note"],
            audit=about["audit"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"A data set must be a folder with classes.json and dataset.json, as download_data "
            f"writes it. Received: '{folder}' ({type(error).__name__}: {error})."
        ) from error


def split_size(path: str | Path, split: str) -> int:
    """Return the number of pictures in a split, without TensorFlow.

    Args:
        path: the artifact's folder.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        InputError: no such split, or no such artifact.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return sum(load_info(path).counts[split].values())


def read_split(path: str | Path, split: str) -> Any:
    """Read the pictures of a split, always in the same order, classes mixed.

    Args:
        path: the artifact's folder.
        split: ``train``, ``validation`` or ``test``.

    Returns:
        A ``tf.data.Dataset`` of known cardinality that yields dicts of scalars: ``image`` string
        (the encoded JPEG or PNG), ``label`` int64, ``path`` string (``class/file``).

    Raises:
        InputError: no such split, no such artifact, or TFRecord files are missing.
    """
    return read_shards(Path(path), split, size=split_size(path, split))


def _audit(opened: Source, spool: Spool) -> tuple[list[_Stored], list[LeftOut]]:
    stored: list[_Stored] = []
    left_out = [LeftOut(path, "", reason) for path, reason in opened.left_out]
    results = audit(opened.pictures)
    for result in track(results, "audit", total=opened.total, unit="pictures"):
        if isinstance(result, LeftOut):
            left_out.append(result)
            continue
        stored.append(
            _Stored(
                result.path,
                result.label,
                result.sha256,
                result.width,
                result.height,
                result.format,
                result.converted,
                spool.add(result.data),
            )
        )
    return stored, left_out


def _groups(stored: Iterable[_Stored]) -> tuple[dict[str, list[list[_Stored]]], list[LeftOut]]:
    """Group the pictures of a class by content; content that has two labels is left out."""
    by_content: dict[str, list[_Stored]] = defaultdict(list)
    for picture in stored:
        by_content[picture.sha256].append(picture)
    groups: dict[str, list[list[_Stored]]] = defaultdict(list)
    conflicts = []
    for same in by_content.values():
        labels = {picture.label for picture in same}
        if len(labels) == 1:
            groups[same[0].label].append(same)
            continue
        for picture in same:
            other = next(p for p in same if p.label != picture.label)
            reason = f"has the same bytes as '{other.path}', which is of another class"
            conflicts.append(LeftOut(picture.path, picture.label, reason))
    return groups, conflicts


def _check_classes(groups: Mapping[str, Sequence[object]], left_out: Sequence[LeftOut], source: str) -> None:
    labels = sorted({*groups, *(p.label for p in left_out if p.label)})
    if len(labels) < MINIMUM_CLASSES:
        raise InputError(
            f"A data set needs at least {MINIMUM_CLASSES} classes. '{source}' has {len(labels)}"
            f"{': ' if labels else ''}{', '.join(labels)}."
        )
    for label in labels:
        count = len(groups.get(label, ()))
        if count < MINIMUM_PICTURES:
            lost = sorted((p.path, p.reason) for p in left_out if p.label == label)
            why = f" {len(lost)} left out, first: '{lost[0][0]}' {lost[0][1]}." if lost else ""
            raise InputError(
                f"Each class needs at least {MINIMUM_PICTURES} different pictures that can be "
                f"decoded, one for each split. Class '{label}' of '{source}' has {count}.{why}"
            )


def _write_records(
    folder: Path,
    kept: Sequence[_Stored],
    classes: Sequence[str],
    splits: Mapping[str, str],
    spool: Spool,
    seed: int,
    shard_megabytes: float,
) -> None:
    index = {label: i for i, label in enumerate(classes)}
    by_path = {picture.path: picture for picture in kept}
    progress = Progress("write records", total=len(kept), unit="pictures")
    for split in SPLITS:
        paths = shuffled([path for path in by_path if splits[path] == split], seed=seed)
        records = [Record(p, index[by_path[p].label], by_path[p].span) for p in paths]
        shard_bytes = max(1, int(shard_megabytes * 10**6))
        write_shards(folder, split, records, spool, shard_bytes=shard_bytes, advance=progress.advance)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_contact_sheet(folder: Path, kept: Sequence[_Stored], classes: Sequence[str], spool: Spool) -> None:
    shown = _spread(classes, ROWS)
    by_label: dict[str, list[_Stored]] = defaultdict(list)
    for picture in kept:
        by_label[picture.label].append(picture)
    rows = [
        (
            label,
            f"{len(by_label[label]):,} pictures",
            [spool.get(picture.span) for picture in _spread(by_label[label], COLUMNS)],
        )
        for label in shown
    ]
    hidden = len(classes) - len(shown)
    sheet = draw_contact_sheet(
        rows,
        heading=f"{len(kept):,} pictures in {len(classes)} classes",
        more=f"{hidden} more classes are not shown" if hidden else "",
    )
    sheet.save(folder / "contact_sheet.jpg", quality=85)


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return ``count`` items at even distances, or all where there are no more."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _summary(
    kept: Sequence[_Stored],
    left_out: Sequence[LeftOut],
    groups: Mapping[str, Sequence[Sequence[object]]],
) -> dict[str, Any]:
    conversions = Counter(p.converted for p in kept if p.converted)
    return {
        "pictures": len(kept),
        "left_out": len(left_out),
        "duplicates": sum(len(group) - 1 for found in groups.values() for group in found),
        "converted": conversions.total(),
        "conversions": dict(sorted(conversions.items())),
        "formats": dict(Counter(p.format for p in kept).most_common()),
        "widths": _spread_of([p.width for p in kept]),
        "heights": _spread_of([p.height for p in kept]),
    }


def _spread_of(values: Sequence[int]) -> dict[str, float]:
    return {"minimum": min(values), "median": statistics.median(values), "maximum": max(values)}
