"""Features of every picture, computed by the frozen backbone once, whatever splits and heads follow."""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from graftflow import (
    backbones,
    caches,
    datasets,
    efficientnet_lite,
    encodings,
    feature_cache,
    files,
    passes,
    preprocessing,
)
from graftflow.errors import InputError
from graftflow.feature_cache import FeatureCache
from graftflow.feature_shards import FILE as SHARD_FILE
from graftflow.feature_shards import Shard
from graftflow.mapped_arrays import mapped_aside
from graftflow.progress import Progress
from graftflow.splits import SPLITS


def pixels_of(dataset_path: str | Path, split: str, input_size: int, *, batch_size: int) -> tf.data.Dataset:
    """Read a split as batches of ``{"pixels": float32 (b, s, s, 3) in [0, 1], "label", "path"}``, in its order."""

    def decoded(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        pixels = preprocessing.decode(record["image"], input_size)
        return {"pixels": pixels, "label": record["label"], "path": record["path"]}

    records = datasets.read_split(dataset_path, split)
    return records.map(decoded, tf.data.AUTOTUNE).batch(batch_size).prefetch(2)


def write_features(
    destination: str | Path,
    *,
    dataset_path: str | Path,
    backbone: str,
    weights: str,
    batch_size: int | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Write the ``features`` artifact into an existing folder.

    With a cache, only pictures run through the backbone that it has not seen: a row is found by the SHA-256 of the
    picture's stored bytes, under a key of all that features depend on (:func:`cache_facts`). So another seed, other
    fractions, another head or a grown folder cost what is new; other weights or another version cost everything.

    Args:
        destination: an existing folder.
        dataset_path: a ``dataset`` artifact.
        backbone: a name of the table in :mod:`graftflow.backbones`.
        weights: its weights: ``imagenet``, ``none``, an address or a file.
        batch_size: pictures a forward pass, by default :func:`graftflow.passes.batch_size`.
        cache: folder for :func:`graftflow.caches.open_cache`, ``""`` for its default; ``None`` uses no cache. It
            grows by 4 bytes a feature and picture, up to :data:`graftflow.feature_cache.LIMIT_BYTES`.

    Returns:
        What stands in ``features.json``; ``computed`` pictures ran through the backbone, ``cached`` ones did not.

    Raises:
        InputError: for an unknown backbone, weights that do not fit it, or a cache that cannot be written.
    """
    summary = _extract(
        Path(destination),
        ("features", "labels", "paths"),
        dataset_path=dataset_path,
        backbone=backbone,
        weights=weights,
        batch_size=batch_size,
        cache=cache,
        shard=Shard(0, 1),
    )
    files.write_json(Path(destination) / "features.json", summary)
    return summary


def write_feature_shard(
    destination: str | Path,
    *,
    dataset_path: str | Path,
    backbone: str,
    weights: str,
    shard: int,
    num_shards: int,
    batch_size: int | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Write one ``feature_shard`` artifact into an existing folder: what :func:`write_features` writes, of a part.

    Shards share nothing but the cache, which any number of processes may use at once. A picture's features do not
    depend on the pictures beside it, so :func:`graftflow.feature_shards.merge_shards` gives the unsharded bits.

    Args:
        destination: an existing folder.
        dataset_path: as for :func:`write_features`; likewise ``backbone``, ``weights``, ``batch_size`` and ``cache``.
        shard: which part, from 0.
        num_shards: how many parts there are.

    Returns:
        What stands in ``shard.json``.

    Raises:
        InputError: as :func:`write_features`, or for a shard that is none of ``num_shards``.
    """
    part = Shard(shard, num_shards)
    summary = _extract(
        Path(destination),
        ("places", "features", "labels", "paths"),
        dataset_path=dataset_path,
        backbone=backbone,
        weights=weights,
        batch_size=batch_size,
        cache=cache,
        shard=part,
    )
    summary = {"shard": part.number, "num_shards": part.total, **summary}
    files.write_json(Path(destination) / SHARD_FILE, summary)
    return summary


def computed(
    dataset_path: str | Path,
    function: Callable[[tf.Tensor], tf.Tensor],
    *,
    wanted: npt.NDArray[np.bool_],
    decode_ahead: int | None = None,
    batch_size: int | None = None,
    at_once: int | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Send pictures of a data set through a network, several batches at once.

    The splits are one stream: at the end of each a core would be idle until the last batch is through. The rows have
    the same bits whatever the batches, and wherever they are decoded.

    Args:
        dataset_path: a ``dataset`` artifact.
        function: from encoded pictures, ``string (b,)``, to ``float32 (b, d)``, as :func:`graftflow.passes.decoding`;
            with ``decode_ahead`` from pixels, ``float32 (b, s, s, 3)`` in [0, 1], as
            :func:`graftflow.passes.frozen_function`.
        wanted: bool ``(n,)``, which pictures to take, of all splits, one behind the other.
        decode_ahead: s, in pixels, where ``tf.data`` is to decode beside the passes, which keeps a GPU at work: four
            batches, and one for each pass, are held as pixels at most, and some pictures of the next.
        batch_size: pictures a forward pass, by default :func:`graftflow.passes.batch_size`.
        at_once: passes at once, by default :func:`graftflow.passes.num_passes`.

    Yields:
        The pictures' places among those n, int64 ``(b,)``, ascending, and their rows, float32 ``(b, d)``.
    """
    mask = tf.constant(wanted)
    records, *others = [datasets.read_split(dataset_path, split) for split in SPLITS]
    for other in others:
        records = records.concatenate(other)
    images = (
        records.enumerate()
        .filter(lambda place, _: mask[place])
        .map(lambda place, record: (place, record["image"]))
    )
    if (size := decode_ahead) is not None:
        images = images.map(lambda place, image: (place, preprocessing.decode(image, size)), tf.data.AUTOTUNE)
    # Decoding fused with the making of batches would hold two to five batches more.
    options = tf.data.Options()
    options.experimental_optimization.map_and_batch_fusion = False
    batches = images.batch(batch_size or passes.batch_size()).prefetch(2).with_options(options)
    named = ((places.numpy(), batch) for places, batch in batches)
    yield from passes.side_by_side(function, named, at_once=at_once)


def _extract(
    destination: Path,
    columns: Sequence[str],
    *,
    dataset_path: str | Path,
    backbone: str,
    weights: str,
    batch_size: int | None,
    cache: str | Path | None,
    shard: Shard,
) -> dict[str, Any]:
    """Compute the features of a shard's pictures and write ``columns`` of them, one ``.npz`` a split.

    There are ``places`` int64 (n,), the pictures' places in their split, ``features`` float32 (n, d), ``labels``
    int64 (n,) and ``paths`` str (n,).
    """
    started = time.monotonic()
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1. Received: {batch_size}")
    facts = backbones.get(backbone)
    backbones.check_weights(weights)
    info = datasets.load_info(dataset_path)
    root = None if cache is None else caches.open_cache(cache) / "features"
    model = backbones.build(backbone, weights=weights)
    identity = backbones.identity(backbone, model, weights=weights)
    rows = None
    if root is not None:
        folder = root / caches.key_of(cache_facts(identity))
        rows = FeatureCache(folder, width=facts.feature_width)
    counts = {split: datasets.split_size(dataset_path, split) for split in SPLITS}
    parts = _parts(dataset_path, counts, shard, digests=rows is not None)
    digests = [digest for part in parts for digest in part.digests]
    new = _is_new(digests, rows)
    places = np.concatenate([part.first + part.places for part in parts])
    found = mapped_aside(destination, (len(places), facts.feature_width))
    progress = Progress("features", total=len(places), unit="pictures")
    if not new.all():
        progress.advance(int((~new).sum()))
    if new.any():
        # Folding the constants takes longer than a run without new pictures.
        function = passes.frozen_function(model, facts.input_size)
        wanted = np.zeros(sum(counts.values()), bool)
        wanted[places[new]] = True
        decode_ahead = facts.input_size if passes.on_gpu() else None
        if decode_ahead is None:
            function = passes.decoding(function, facts.input_size)
        batches = computed(
            dataset_path, function, wanted=wanted, decode_ahead=decode_ahead, batch_size=batch_size
        )
        _fill(found, batches, places, digests, rows, progress)
    if rows is not None:
        for row in np.flatnonzero(~new):
            found[row] = rows.get(digests[row])
    _write(destination, columns, parts, found)
    if root is not None:
        feature_cache.bound(root, keep=folder)
    return {
        "backbone": identity,
        "classes": list(info.classes),
        "dataset_digest": info.digest,
        "counts": counts,
        "computed": int(new.sum()),
        "cached": int((~new).sum()),
        "seconds": round(time.monotonic() - started, 2),
    }


def _fill(
    found: npt.NDArray[np.float32],
    batches: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]],
    places: npt.NDArray[np.int64],
    digests: Sequence[bytes],
    rows: FeatureCache | None,
    progress: Progress,
) -> None:
    """Put what :func:`computed` yields where it belongs among a shard's ``places``, and keep it for the next run."""
    try:
        for batch_places, batch in batches:
            at = np.searchsorted(places, batch_places)
            found[at] = batch
            if rows is not None:
                rows.add([digests[row] for row in at], batch)
            progress.advance(len(at))
    finally:
        # Also of a run that fails here: the next one goes on behind it.
        if rows is not None:
            rows.flush()


def _write(
    destination: Path, columns: Sequence[str], parts: Sequence["_Part"], found: npt.NDArray[np.float32]
) -> None:
    """Write ``columns`` of a shard's pictures, one ``.npz`` a split; ``found`` has the rows of all, in order."""
    done = 0
    for part in parts:
        rows = found[done : done + len(part.places)]
        arrays: dict[str, Any] = {
            "places": part.places,
            "features": rows,
            "labels": part.labels,
            "paths": part.paths,
        }
        np.savez(destination / f"{part.split}.npz", **{name: arrays[name] for name in columns})
        done += len(rows)


def cache_facts(identity: dict[str, Any]) -> dict[str, Any]:
    """Return all that the features of given bytes depend on, for :func:`graftflow.caches.key_of`.

    Args:
        identity: of :func:`graftflow.backbones.identity`. The name of its weights does not count, their digest does.
    """
    sources = (preprocessing, encodings, efficientnet_lite)
    code = "".join(inspect.getsource(source) for source in sources)
    return {
        "identity": {name: value for name, value in identity.items() if name != "weights"},
        "tensorflow": tf.__version__,
        # A GPU rounds otherwise (TF32), in the third digit.
        "device": "GPU" if tf.config.list_physical_devices("GPU") else "CPU",
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }


@dataclass(frozen=True)
class _Part:
    """A shard's pictures of one split, undecoded.

    Attributes:
        split: its name.
        first: pictures of the splits before it.
        places: int64 (n,): in the split, ascending.
        labels: int64 (n,).
        paths: str (n,).
        digests: SHA-256 of each picture's stored bytes, empty where nobody asks.
    """

    split: str
    first: int
    places: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    paths: npt.NDArray[np.str_]
    digests: list[bytes]


def _parts(dataset_path: str | Path, counts: dict[str, int], shard: Shard, *, digests: bool) -> list[_Part]:
    """Read which pictures a shard has of each split."""
    parts, first = [], 0
    for split in SPLITS:
        places = shard.places(counts[split], first=first)
        mine, labels, paths = set(places.tolist()), [], []
        found: list[bytes] = []
        records = datasets.read_split(dataset_path, split).prefetch(64).as_numpy_iterator()
        for place, record in enumerate(records):
            if place in mine:
                labels.append(record["label"])
                paths.append(record["path"].decode())
                found.append(hashlib.sha256(record["image"]).digest() if digests else b"")
        columns = np.array(labels, np.int64), np.array(paths, str)
        parts.append(_Part(split, first, places, *columns, found))
        first += counts[split]
    return parts


def _is_new(digests: list[bytes], rows: FeatureCache | None) -> npt.NDArray[np.bool_]:
    """Return which pictures must be computed: all without a cache, else the first of each digest it does not hold."""
    new = np.ones(len(digests), bool)
    if rows is None:
        return new
    seen: set[bytes] = set()
    for place, digest in enumerate(digests):
        new[place] = digest not in rows and digest not in seen
        seen.add(digest)
    return new
