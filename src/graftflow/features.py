"""Features of every picture, computed by the frozen backbone once, whatever splits and heads follow."""

import hashlib
import inspect
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    preprocessing,
)
from graftflow.errors import InputError
from graftflow.feature_cache import FeatureCache
from graftflow.feature_shards import FILE as SHARD_FILE
from graftflow.feature_shards import Shard
from graftflow.progress import Progress
from graftflow.splits import SPLITS

# Pictures a forward pass. CPU seconds a picture hardly depend on it: 8 to 128 differ by some 5 % (EfficientNet-Lite0, 2
# cores, oneDNN), and a picture alone costs 1.2 times as much: ``python -m benchmarks.extraction.choices``.
BATCH_SIZE = 64
_PASSES = 2


def frozen_function(model: Any, input_size: int) -> Any:
    """Return ``model`` as a function whose weights are constants.

    With constants TensorFlow folds BatchNorm into the convolutions: measured 1.3 times the pictures a second of the
    same model with variables (EfficientNet-Lite0, 2 cores, batch 64; XLA on CPU was 14 times slower).

    Args:
        model: a ``keras.Model`` for pixels.
        input_size: side of its pictures in pixels.

    Returns:
        A callable from ``float32 (n, s, s, 3)`` to the model's output.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = [tf.TensorSpec((None, input_size, input_size, 3), tf.float32)]
    function = tf.function(lambda pixels: model(pixels, training=False), input_signature=signature)
    constant = convert_variables_to_constants_v2(function.get_concrete_function())
    return lambda pixels: constant(pixels)[0]


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
    batch_size: int = BATCH_SIZE,
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
        batch_size: pictures a forward pass.
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
    batch_size: int = BATCH_SIZE,
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
    split: str,
    function: Callable[[tf.Tensor], tf.Tensor],
    *,
    input_size: int,
    wanted: npt.NDArray[np.bool_],
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Send pictures of a split through a network, a batch at a time, while the next ones are decoded.

    Six batches at most are held as pixels, and some pictures of the next beside them, however large the split is.

    Args:
        dataset_path: a ``dataset`` artifact.
        split: name of the split.
        function: from pixels ``float32 (b, s, s, 3)`` in [0, 1] to ``float32 (b, d)``, as :func:`frozen_function`.
        input_size: s, in pixels.
        wanted: bool ``(n,)``, which pictures of the split to take.
        batch_size: pictures a forward pass.

    Yields:
        The pictures' places in the split, int64 ``(b,)``, ascending, and their rows, float32 ``(b, d)``.
    """
    # Two passes at once keep both cores at work where an operation of one uses one alone, or waits for a decoder, and a
    # third that waits starts when either ends: measured on two cores 100 to 107 pictures a second in four rounds,
    # without the third 92 to 105, with one pass at a time 60 to 109.
    passes: deque[tuple[npt.NDArray[np.int64], Future[npt.NDArray[np.float32]]]] = deque()
    with ThreadPoolExecutor(_PASSES) as pool:
        for places, pixels in _wanted(dataset_path, split, input_size, wanted, batch_size=batch_size):
            passes.append((places, pool.submit(lambda batch: function(batch).numpy(), pixels)))
            if len(passes) > _PASSES:
                first, rows = passes.popleft()
                yield first, rows.result()
        for last, rows in passes:
            yield last, rows.result()


def _extract(
    destination: Path,
    columns: Sequence[str],
    *,
    dataset_path: str | Path,
    backbone: str,
    weights: str,
    batch_size: int,
    cache: str | Path | None,
    shard: Shard,
) -> dict[str, Any]:
    """Compute the features of a shard's pictures and write ``columns`` of them, one ``.npz`` a split.

    There are ``places`` int64 (n,), the pictures' places in their split, ``features`` float32 (n, d), ``labels``
    int64 (n,) and ``paths`` str (n,).
    """
    started = time.monotonic()
    if batch_size < 1:
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
    features_of: Any = None
    counts, pictures, sent, first = {}, 0, 0, 0
    for split in SPLITS:
        counts[split] = datasets.split_size(dataset_path, split)
        places = shard.places(counts[split], first=first)
        first += counts[split]
        index = _index(dataset_path, split, places, digests=rows is not None)
        new = _is_new(index["digests"], rows)
        progress = Progress(f"features of {split}", total=len(places), unit="pictures")
        found = np.empty((len(places), facts.feature_width), np.float32)
        if not new.all():
            progress.advance(int((~new).sum()))
        wanted = np.zeros(counts[split], bool)
        wanted[places[new]] = True
        if new.any() and features_of is None:
            # Folding the constants takes longer than a run without new pictures.
            features_of = frozen_function(model, facts.input_size)
        batches = computed(dataset_path, split, features_of, input_size=facts.input_size,
                           wanted=wanted, batch_size=batch_size) if new.any() else ()  # fmt: skip
        for batch_places, batch in batches:
            at = np.searchsorted(places, batch_places)
            found[at] = batch
            if rows is not None:
                rows.add([index["digests"][row] for row in at], found[at])
            progress.advance(len(at))
        if rows is not None:
            for row in np.flatnonzero(~new):
                found[row] = rows.get(index["digests"][row])
            rows.flush()
        pictures, sent = pictures + len(places), sent + int(new.sum())
        arrays = {"places": places, "features": found, "labels": index["labels"], "paths": index["paths"]}
        np.savez(destination / f"{split}.npz", **{name: arrays[name] for name in columns})
    if root is not None:
        feature_cache.bound(root, keep=folder)
    return {
        "backbone": identity,
        "classes": list(info.classes),
        "dataset_digest": info.digest,
        "counts": counts,
        "computed": sent,
        "cached": pictures - sent,
        "seconds": round(time.monotonic() - started, 2),
    }


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


def _index(
    dataset_path: str | Path, split: str, places: npt.NDArray[np.int64], *, digests: bool
) -> dict[str, Any]:
    """Read the pictures at ``places`` (n,) undecoded: ``labels`` int64 (n,), ``paths`` str, ``digests`` or None."""
    mine, labels, paths, found = set(places.tolist()), [], [], []
    records = datasets.read_split(dataset_path, split).prefetch(64).as_numpy_iterator()
    for place, record in enumerate(records):
        if place in mine:
            labels.append(record["label"])
            paths.append(record["path"].decode())
            found.append(hashlib.sha256(record["image"]).digest() if digests else None)
    return {"labels": np.array(labels, np.int64), "paths": np.array(paths, str), "digests": found}


def _is_new(digests: list[bytes | None], rows: FeatureCache | None) -> npt.NDArray[np.bool_]:
    """Return which pictures must be computed: all without a cache, else the first of each digest it does not hold."""
    seen: set[bytes] = set()
    new = np.ones(len(digests), bool)
    for place, digest in enumerate(digests):
        if rows is not None and digest is not None:
            new[place] = digest not in rows and digest not in seen
            seen.add(digest)
    return new


def _wanted(
    dataset_path: str | Path, split: str, input_size: int, wanted: npt.NDArray[np.bool_], *, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.int64], tf.Tensor]]:
    """Decode the wanted pictures of a split: their places ``(b,)`` and pixels ``float32 (b, s, s, 3)`` in [0, 1]."""
    if not wanted.any():
        return
    mask = tf.constant(wanted)
    records = datasets.read_split(dataset_path, split).enumerate().filter(lambda place, _: mask[place])
    decoded = records.map(
        lambda place, record: (place, preprocessing.decode(record["image"], input_size)), tf.data.AUTOTUNE
    )
    for places, pixels in decoded.batch(batch_size).prefetch(2):
        yield places.numpy(), pixels
