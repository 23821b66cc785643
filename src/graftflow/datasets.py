"""The ``dataset`` artifact: pictures that were looked at, divided into splits, and written down."""

import csv
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from graftflow.audit import LeftOut, audit_or_recall
from graftflow.contact_sheets import draw_contact_sheet, draw_pairs, shown_classes, shown_pairs, spread
from graftflow.conversions import Conversion, Stored, open_conversion
from graftflow.errors import InputError, unknown_name
from graftflow.files import read_json, sha256_file, write_json
from graftflow.findings import crowd_note, describe, leak_notes, summarise
from graftflow.folders import MINIMUM_CLASSES, MINIMUM_PICTURES
from graftflow.grouping import Grouping, Likeness, group_pictures, leaks
from graftflow.pictures import Source
from graftflow.progress import Progress, track
from graftflow.records import Record, Spool, read_shards, write_shards
from graftflow.sources import check_source, open_source, parse_source
from graftflow.splits import SPLITS, Member, check_fractions, check_seed, divide, shuffled
from graftflow.storage import writing

MANIFEST = ("path", "sha256", "label", "split", "width", "height", "format", "converted", "group")


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
        audit: counts: ``pictures`` (kept), ``left_out``, ``duplicates`` (kept pictures whose bytes another
            one has), ``near_duplicates`` (kept pictures that are nearly equal to another one),
            ``near_conflicts`` (those of them that are so to one of another class), ``leaks`` (pictures with a
            copy in another of the source's own splits), ``converted`` and ``conversions`` by reason,
            ``wrong_format`` (for their suffix), ``grey``, ``plain``, ``small``, ``elongated``; ``imbalance``
            (pictures of the largest class, relative to the smallest), ``formats``, ``widths``, ``heights``.
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


def write_dataset(
    destination: str | Path,
    *,
    source: str,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    shard_megabytes: float = 128,
    tfds_data_dir: str | Path | None = None,
    cache: str | Path | None = None,
    mirrors: Sequence[str] = (),
    finished: ExitStack | None = None,
) -> DatasetInfo:
    """Fetch pictures, audit them, divide them and write the ``dataset`` artifact.

    Pictures that cannot be decoded are left out with a reason; equal bytes in two classes are left out, all of them.
    Equal and nearly equal pictures (see :mod:`graftflow.near_duplicates`) and those of one group of the source stay
    in one split, unless the source has splits of its own: they are kept, and copies across them are reported. JPEG
    and PNG of 8 bits, grey or RGB, upright and opaque, are kept as they are; everything else becomes an RGB PNG. The
    bytes pass through one spool on disk: memory does not grow with them, the disk holds them twice for a while.

    Args:
        destination: an existing empty folder; see ``docs/architecture.md`` for what it holds then.
        source: ``closeups``, ``digits``, ``directory:PATH``, ``archive:PATH-or-URL`` or
            ``tfds:NAME``.
        seed: fixes the splits and the order of the records, on every machine; 0 to 2**63 - 1.
        validation_fraction: share of each class for validation, above 0 and below 1.
        test_fraction: share of each class for test; together they stay below 1.
        shard_megabytes: megabytes of pictures a TFRecord file, above 0.
        tfds_data_dir: where prepared data sets of TensorFlow Datasets are; ``None``: its choice.
        cache: a folder that outlives the step, ``""`` for :func:`graftflow.caches.open_cache`'s choice. Downloads are
            kept in it, and so are the pictures looked at until the data set is complete: a killed run goes on where
            it stopped. ``None`` keeps nothing.
        mirrors: addresses that are asked for an archive where its own address does not answer.
        finished: closed by the caller when the data set is in its place (see :func:`graftflow.seals.sealed_work`):
            only then the pictures looked at go. ``None``: they go when all is written.

    Returns:
        What was written.

    Raises:
        InputError: a setting out of range; a source that is missing or refused; fewer than two
            classes; a class with fewer than three different usable pictures, or too few groups or splits of its own
            (see :func:`graftflow.splits.divide`); a full disk.
    """
    check_fractions(validation_fraction=validation_fraction, test_fraction=test_fraction)
    check_seed(seed)
    if not shard_megabytes > 0:
        raise InputError(f"shard_megabytes must be above 0. Received: {shard_megabytes}.")
    check_source(source)
    folder = Path(destination)
    scratch = folder / ".scratch"
    fractions = {"test": test_fraction, "validation": validation_fraction}
    try:
        with writing(folder), warnings.catch_warnings():
            # The audit says what is wrong with a picture; Pillow's remarks would only repeat it.
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            scratch.mkdir()
            with (
                open_source(
                    source, scratch=scratch, tfds_data_dir=tfds_data_dir, cache=cache, mirrors=mirrors
                ) as opened,
                open_conversion(scratch, cache=cache, source=_place(source), finished=finished) as conversion,
            ):
                stored, left_out = _audit(opened, conversion)
                grouping = group_pictures(stored, conversion)
                left_out += grouping.conflicts
                classes = _check_classes(grouping, left_out, source)
                splits, note = divide(
                    [[Member(p.path, p.label, p.split) for p in group] for group in grouping.groups],
                    seed=seed,
                    fractions=fractions,
                )
                leaked = leaks(grouping.copies, splits)
                write_json(folder / "classes.json", classes)
                _write_records(folder, grouping, classes, splits, conversion.spool, seed, shard_megabytes)
                _write_tables(folder, grouping, left_out, splits)
                _write_pictures(folder, grouping, classes, conversion.spool)
                found = describe(grouping, left_out, leaked)
                write_json(folder / "audit.json", found)
                counts = Counter((splits[p.path], p.label) for p in grouping.pictures)
                info = {
                    "source": source,
                    "seed": seed,
                    "fractions": {
                        "train": round(1.0 - validation_fraction - test_fraction, 12),
                        "validation": validation_fraction,
                        "test": test_fraction,
                    },
                    "counts": {s: {c: counts[s, c] for c in classes} for s in SPLITS},
                    "digest": sha256_file(folder / "manifest.csv"),
                    "note": " ".join(
                        filter(None, (opened.note, note, leak_notes(found), crowd_note(grouping)))
                    ),
                    "audit": summarise(found, grouping),
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


def _place(source: str) -> str:
    """Return a source that means the same from every working folder."""
    kind, value = parse_source(source)
    if kind in ("directory", "archive") and "://" not in value:
        return f"{kind}:{Path(value).expanduser().absolute()}"
    return source


def _audit(opened: Source, conversion: Conversion) -> tuple[list[Stored], list[LeftOut]]:
    stored: list[Stored] = []
    left_out = [LeftOut(path, "", reason) for path, reason in opened.left_out]
    results = audit_or_recall(opened.pictures, recall=conversion.recall)
    for picture, result in track(results, "audit", total=opened.total, unit="pictures"):
        kept = conversion.keep(picture, result)
        if isinstance(kept, LeftOut):
            left_out.append(kept)
        else:
            stored.append(kept)
    return stored, left_out


def _check_classes(grouping: Grouping, left_out: Sequence[LeftOut], source: str) -> list[str]:
    """Check that every class has enough different pictures, and return the classes."""
    contents: dict[str, set[str]] = defaultdict(set)
    for picture in grouping.pictures:
        contents[picture.label].add(picture.facts.sha256)
    labels = sorted({*contents, *(p.label for p in left_out if p.label)})
    if len(labels) < MINIMUM_CLASSES:
        raise InputError(
            f"A data set needs at least {MINIMUM_CLASSES} classes. '{source}' has {len(labels)}"
            f"{': ' if labels else ''}{', '.join(labels)}."
        )
    for label in labels:
        count = len(contents[label])
        if count < MINIMUM_PICTURES:
            lost = sorted((p.path, p.reason) for p in left_out if p.label == label)
            why = f" {len(lost)} left out, first: '{lost[0][0]}' {lost[0][1]}." if lost else ""
            raise InputError(
                f"Each class needs at least {MINIMUM_PICTURES} different pictures that can be "
                f"decoded, one for each split. Class '{label}' of '{source}' has {count}.{why}"
            )
    return labels


def _write_records(
    folder: Path,
    grouping: Grouping,
    classes: Sequence[str],
    splits: Mapping[str, str],
    spool: Spool,
    seed: int,
    shard_megabytes: float,
) -> None:
    index = {label: i for i, label in enumerate(classes)}
    by_path = {p.path: Record(p.path, index[p.label], p.span) for p in grouping.pictures}
    progress = Progress("write records", total=len(by_path), unit="pictures")
    divided = {
        split: [by_path[p] for p in shuffled([p for p in by_path if splits[p] == split], seed=seed)]
        for split in SPLITS
    }
    shard_bytes = max(1, int(shard_megabytes * 10**6))
    write_shards(folder, divided, spool, shard_bytes=shard_bytes, advance=progress.advance)


def _write_tables(
    folder: Path, grouping: Grouping, left_out: Sequence[LeftOut], splits: Mapping[str, str]
) -> None:
    group = {p.path: found[0].path for found in grouping.groups if len(found) > 1 for p in found}
    rows = (
        (
            p.path,
            p.facts.sha256,
            p.label,
            splits[p.path],
            p.facts.width,
            p.facts.height,
            p.facts.format,
            p.facts.converted,
            group.get(p.path, ""),
        )
        for p in grouping.pictures
    )
    _write_csv(folder / "manifest.csv", MANIFEST, rows)
    _write_csv(folder / "left_out.csv", ("path", "reason"), sorted((p.path, p.reason) for p in left_out))


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_pictures(folder: Path, grouping: Grouping, classes: Sequence[str], spool: Spool) -> None:
    """Draw ``contact_sheet.jpg`` and, where nearly equal pictures were found, ``near_duplicates.jpg``."""
    by_label: dict[str, list[Stored]] = defaultdict(list)
    for picture in grouping.pictures:
        by_label[picture.label].append(picture)
    shown, more = shown_classes(classes)
    rows = [
        (
            label,
            f"{len(by_label[label]):,} pictures",
            [spool.get(picture.span) for picture in spread(by_label[label])],
        )
        for label in shown
    ]
    heading = f"{len(grouping.pictures):,} pictures in {len(classes)} classes"
    draw_contact_sheet(rows, heading=heading, more=more).save(folder / "contact_sheet.jpg", quality=85)
    if grouping.pairs:

        def kind(pair: Likeness) -> str:
            return ", ".join(["two classes"] * pair.conflicting + ["mirrored"] * pair.mirrored)

        pairs = [
            (kind(pair), [(p.path, spool.get(p.span)) for p in (pair.first, pair.second)])
            for pair in shown_pairs(grouping.pairs)
        ]
        draw_pairs(pairs, heading=f"Nearly equal pictures: {grouping.likeness.pairs:,} pairs").save(
            folder / "near_duplicates.jpg", quality=85
        )
