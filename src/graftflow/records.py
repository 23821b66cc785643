"""Encoded pictures on disk: a spool while the data set is made, TFRecord shards when it is."""

import errno
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from graftflow.errors import InputError

THREADS = min(4, os.cpu_count() or 1)


class Span(NamedTuple):
    """Where the bytes of one picture stand in a spool."""

    offset: int
    length: int


class Spool:
    """One file that takes bytes in and gives them back in any order, so that memory stays flat.

    Bytes go to the operating system at once: those of a finished :meth:`add` outlive a killed process. Reading is
    safe from several threads.

    Args:
        path: the file, made where it is missing.
        end: how many of the bytes that it holds already are good; the rest is cut off.
    """

    def __init__(self, path: Path, *, end: int = 0) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._file, end)
        self._end = end

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def add(self, data: bytes) -> Span:
        """Append ``data`` and return where it stands."""
        span = Span(self._end, len(data))
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file, rest, self._end)
            self._end += written
            rest = rest[written:]
        return span

    def get(self, span: Span) -> bytes:
        """Return the bytes that stand at ``span``."""
        data = os.pread(self._file, span.length, span.offset)
        if len(data) != span.length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data


class Record(NamedTuple):
    """One picture of a split: its name, the index of its class and where its bytes are."""

    path: str
    label: int
    span: Span


def write_shards(
    folder: Path,
    splits: Mapping[str, Sequence[Record]],
    spool: Spool,
    *,
    shard_bytes: int,
    advance: Callable[[], None],
) -> None:
    """Write splits as ``<split>-00000-of-0000n.tfrecord`` files of about ``shard_bytes`` each, several at once.

    The bytes of a file depend on its records alone.

    Args:
        folder: where to write.
        splits: for each split its records, in the order in which they shall be read.
        spool: holds the bytes.
        shard_bytes: bytes of pictures a file.
        advance: called after each record, by one thread at a time.

    Raises:
        InputError: TensorFlow cannot write, e.g. because the disk is full.
    """
    import tensorflow as tf

    lock, failed = Lock(), False

    def write(file: Path, shard: Sequence[Record]) -> None:
        nonlocal failed
        try:
            with tf.io.TFRecordWriter(str(file)) as writer:
                for record in shard:
                    if failed:
                        return
                    writer.write(_example(tf, record, spool.get(record.span)))
                    with lock:
                        advance()
        except BaseException:
            failed = True
            raise

    shards = [
        (folder / f"{split}-{i:05d}-of-{len(divided):05d}.tfrecord", shard)
        for split, records in splits.items()
        for divided in [_divide(records, shard_bytes)]
        for i, shard in enumerate(divided)
    ]
    try:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="shards") as pool:
            futures = [pool.submit(write, file, shard) for file, shard in shards]
        for future in futures:
            future.result()
    except tf.errors.OpError as error:
        reason = str(error.message).splitlines()[0]
        raise InputError(f"Cannot write in folder '{folder}': {reason}.") from error


def _divide(records: Sequence[Record], shard_bytes: int) -> list[list[Record]]:
    """Cut records into runs of about equal bytes, at least one."""
    total = sum(record.span.length for record in records)
    num_shards = max(1, math.ceil(total / shard_bytes))
    shards: list[list[Record]] = [[] for _ in range(num_shards)]
    before = 0
    for record in records:
        shards[before * num_shards // total].append(record)
        before += record.span.length
    return shards


def read_shards(folder: Path, split: str, *, size: int) -> Any:
    """Read a split.

    Args:
        folder: where the shards are.
        split: name of the split.
        size: number of pictures in it.

    Returns:
        A ``tf.data.Dataset`` of dicts: ``image`` string scalar (encoded bytes), ``label`` int64
        scalar, ``path`` string scalar; in the order in which they were written.

    Raises:
        InputError: shards are missing.
    """
    import tensorflow as tf

    files = sorted(folder.glob(f"{split}-*-of-*.tfrecord"))
    expected = int(files[0].stem.rpartition("-")[2]) if files else 1
    if len(files) != expected:
        raise InputError(f"Split '{split}' must have {expected} TFRecord files. '{folder}' has {len(files)}.")
    features = {
        "image": tf.io.FixedLenFeature((), tf.string),
        "label": tf.io.FixedLenFeature((), tf.int64),
        "path": tf.io.FixedLenFeature((), tf.string),
    }
    records = tf.data.TFRecordDataset([str(file) for file in files]).with_options(untuned())
    examples = records.map(lambda record: tf.io.parse_single_example(record, features))
    return examples.apply(tf.data.experimental.assert_cardinality(size))


def untuned() -> Any:
    """Return ``tf.data.Options`` without autotuning, for a data set and all that is made of it.

    Where an iterator goes, TensorFlow (2.21 seen) waits for the thread that tunes it, and about once in ten times fails
    to wake it. That thread sleeps the longer the longer it tuned, up to a minute: 5 s after 2,800 pictures. Without it
    ``tf.data.AUTOTUNE`` means a call for each core, 16 at most.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _example(tf: Any, record: Record, data: bytes) -> bytes:
    def text(value: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        "image": text(data),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[record.label])),
        "path": text(record.path.encode()),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    serialized: bytes = example.SerializeToString(deterministic=True)
    return serialized
