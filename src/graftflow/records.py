"""Encoded pictures on disk: a spool while the data set is made, TFRecord shards when it is."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from graftflow.errors import InputError


class Span(NamedTuple):
    """Where the bytes of one picture stand in a spool."""

    offset: int
    length: int


class Spool:
    """One file that takes bytes in and gives them back in any order, so that memory stays flat.

    Args:
        path: the file to make.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._end = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, data: bytes) -> Span:
        """Append ``data`` and return where it stands."""
        self._file.seek(self._end)
        self._file.write(data)
        span = Span(self._end, len(data))
        self._end += len(data)
        return span

    def get(self, span: Span) -> bytes:
        """Return the bytes that stand at ``span``."""
        self._file.seek(span.offset)
        return self._file.read(span.length)


class Record(NamedTuple):
    """One picture of a split: its name, the index of its class and where its bytes are."""

    path: str
    label: int
    span: Span


def write_shards(
    folder: Path,
    split: str,
    records: Sequence[Record],
    spool: Spool,
    *,
    shard_bytes: int,
    advance: Callable[[], None],
) -> None:
    """Write a split as ``<split>-00000-of-0000n.tfrecord`` files of about ``shard_bytes`` each.

    Args:
        folder: where to write.
        split: name of the split.
        records: in the order in which they shall be read.
        spool: holds the bytes.
        shard_bytes: bytes of pictures a file.
        advance: called after each record.

    Raises:
        InputError: TensorFlow cannot write, e.g. because the disk is full.
    """
    import tensorflow as tf

    total = sum(record.span.length for record in records)
    num_shards = max(1, math.ceil(total / shard_bytes))
    shards: list[list[Record]] = [[] for _ in range(num_shards)]
    before = 0
    for record in records:
        shards[before * num_shards // total].append(record)
        before += record.span.length
    try:
        for i, shard in enumerate(shards):
            file = folder / f"{split}-{i:05d}-of-{num_shards:05d}.tfrecord"
            with tf.io.TFRecordWriter(str(file)) as writer:
                for record in shard:
                    writer.write(_example(tf, record, spool.get(record.span)))
                    advance()
    except tf.errors.OpError as error:
        reason = str(error.message).splitlines()[0]
        raise InputError(f"Cannot write in folder '{folder}': {reason}.") from error


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
    records = tf.data.TFRecordDataset([str(file) for file in files])
    examples = records.map(lambda record: tf.io.parse_single_example(record, features))
    return examples.apply(tf.data.experimental.assert_cardinality(size))


def _example(tf: Any, record: Record, data: bytes) -> bytes:
    def text(value: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        "image": text(data),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[record.label])),
        "path": text(record.path.encode()),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    serialized: bytes = example.SerializeToString()
    return serialized
