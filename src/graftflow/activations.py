"""Activations at the cut: what the frozen part of a network makes of each picture, computed once a view."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from graftflow import datasets, distribution, files, seals
from graftflow.augmentation import augment
from graftflow.mapped_arrays import mapped_file
from graftflow.passes import side_by_side
from graftflow.preprocessing import decode
from graftflow.progress import Progress
from graftflow.storage import writing

Array = npt.NDArray[Any]
Batch = tuple[Array, Array]  # activations float32 (b, …), labels int64 (b,)

# Views may fill this much of the disk while the step runs; what does not fit is computed anew each epoch.
MOST_BYTES = 8 * 10**9
# Half the disk and half the reading; rounding to 11 bits is far below what a view changes.
_STORED = np.float16


def views_that_fit(num_pictures: int, shape: tuple[int, ...], wanted: int, *, input_size: int) -> int:
    """Return how many views of every picture are worth keeping.

    Args:
        num_pictures: training pictures.
        shape: of the activations of one picture.
        wanted: how many views the user asks for.
        input_size: side of the network's input, in pixels.

    Returns:
        At most ``wanted``; 0 where a view has more values than the picture, or none fits on the disk.
    """
    values = int(np.prod(shape))
    if values >= 3 * input_size**2:
        return 0
    return min(wanted, MOST_BYTES // max(1, num_pictures * values * np.dtype(_STORED).itemsize))


class ViewSource:
    """Batches of activations of augmented training pictures, an epoch at a time.

    Args:
        dataset_path: a ``dataset`` artifact, of which ``train`` is read.
        trunk: callable from pixels ``float32 (b, s, s, 3)`` to activations ``(b, …)``.
        shape: of the activations of one picture.
        input_size: side of the pictures in pixels.
        num_views: epoch e sees view ``e % num_views``, computed when it is first asked for; 0 computes a new view
            for each epoch and keeps none.
        folder: where views are kept; finished ones that lie there are used, once their digest was checked.
        batch_size: pictures a batch.
        seed: fixes the views and the order of the pictures.
        augmentation: see :func:`graftflow.augmentation.augment`.
    """

    def __init__(
        self,
        dataset_path: str | Path,
        trunk: Callable[[tf.Tensor], tf.Tensor],
        *,
        shape: tuple[int, ...],
        input_size: int,
        num_views: int,
        folder: Path,
        batch_size: int,
        seed: int,
        augmentation: str,
    ) -> None:
        self._dataset_path, self._trunk, self._shape = dataset_path, trunk, shape
        self._input_size, self._num_views, self._folder = input_size, num_views, folder
        self._batch_size, self._seed, self._augmentation = batch_size, seed, augmentation
        self._intact: set[Path] = set()
        self.num_pictures = datasets.split_size(dataset_path, "train")
        records = datasets.read_split(dataset_path, "train").map(lambda record: record["label"])
        self.labels = np.fromiter(records.as_numpy_iterator(), np.int64, self.num_pictures)

    @property
    def num_batches(self) -> int:
        """How many batches an epoch has."""
        return -(-self.num_pictures // self._batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch ``number``, counted from 0, every picture once, in an order of its own."""
        if not self._num_views:
            yield from self._fresh(number)
            return
        view = self._view(number % self._num_views)
        order = _permutation(self.num_pictures, self._seed, number)
        for start in range(0, self.num_pictures, self._batch_size):
            # Sorted, so that the disk is read forwards; the order inside a batch does not matter.
            chosen = np.sort(order[start : start + self._batch_size])
            yield view[chosen].astype(np.float32), self.labels[chosen]

    def _view(self, index: int) -> Array:
        """Return a view of all pictures, ``float16 (n, …)``, mapped from the disk."""
        path = self._folder / f"view-{index}.npy"
        if path in self._intact or seals.ends_with_digest(path):
            self._intact.add(path)
            return np.asarray(np.load(path, mmap_mode="r"))
        if path.exists():
            print(f"The view '{path}' is cut or altered, and is computed again.", flush=True)
        label = f"view {index + 1} of {self._num_views} at the cut"
        progress = Progress(label, total=self.num_pictures, unit="pictures")
        with writing(self._folder), files.atomic_file(path) as aside:
            written = mapped_file(aside, _STORED, (self.num_pictures, *self._shape))
            done = 0
            for activations, _ in self._computed(self._pixels(index)):
                written[done : done + len(activations)] = activations
                done += len(activations)
                progress.advance(len(activations))
            written.flush()
            seals.end_with_digest(aside)
        self._intact.add(path)
        return np.asarray(np.load(path, mmap_mode="r"))

    def _fresh(self, number: int) -> Iterator[Batch]:
        """Yield an epoch of new views; pictures are shuffled as encoded bytes, some 50 kB each, 4,096 at a time."""
        yield from self._computed(self._pixels(number, shuffle=min(self.num_pictures, 4096)))

    def _pixels(self, view: int, *, shuffle: int = 0) -> tf.data.Dataset:
        records = datasets.read_split(self._dataset_path, "train").enumerate()
        if shuffle:
            records = records.shuffle(shuffle, seed=self._seed + view, reshuffle_each_iteration=False)
        # One number for each picture of each view.
        first = view * self.num_pictures

        def example(index: tf.Tensor, record: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            pixels = decode(record["image"], self._input_size)
            seed = tf.stack([tf.cast(self._seed, tf.int64), first + index])
            return augment(pixels, seed, augmentation=self._augmentation), record["label"]

        return records.map(example, tf.data.AUTOTUNE).batch(self._batch_size).prefetch(2)

    def _computed(self, batches: tf.data.Dataset) -> Iterator[Batch]:
        for labels, activations in _passed(self._trunk, batches):
            yield activations, labels


def validation_activations(
    dataset_path: str | Path,
    trunk: Callable[[tf.Tensor], tf.Tensor],
    *,
    shape: tuple[int, ...],
    input_size: int,
    batch_size: int,
    path: Path,
) -> Batch:
    """Compute the activations of the validation pictures, not augmented.

    Args:
        dataset_path: a ``dataset`` artifact.
        trunk: callable from pixels to activations.
        shape: of the activations of one picture.
        input_size: side of the pictures in pixels.
        batch_size: pictures a forward pass.
        path: file that holds them while they are used, so that memory stays flat.

    Returns:
        Activations ``float32 (n, …)``, mapped from the disk, and labels ``int64 (n,)``.
    """
    total = datasets.split_size(dataset_path, "validation")
    progress = Progress("validation at the cut", total=total, unit="pictures")
    written = mapped_file(path, np.float32, (total, *shape))
    labels = np.empty(total, np.int64)
    records = datasets.read_split(dataset_path, "validation")
    pictures = records.map(
        lambda record: (decode(record["image"], input_size), record["label"]), tf.data.AUTOTUNE
    )
    done = 0
    for batch_labels, activations in _passed(trunk, pictures.batch(batch_size).prefetch(2)):
        end = done + len(batch_labels)
        written[done:end], labels[done:end] = activations, batch_labels
        progress.advance(end - done)
        done = end
    written.flush()
    return written, labels


def _passed(
    trunk: Callable[[tf.Tensor], tf.Tensor], batches: tf.data.Dataset
) -> Iterator[tuple[Array, Array]]:
    """Yield labels ``(b,)`` and activations ``(b, …)`` of batches of pixels and labels, in their order."""
    named = ((labels.numpy(), pixels) for pixels, labels in batches)
    # Several devices are one pass; and their strategy is known only to the thread that asks.
    return side_by_side(trunk, named, at_once=None if distribution.num_replicas() == 1 else 1)


def _permutation(count: int, seed: int, epoch: int) -> Array:
    keys = np.random.PCG64([seed, 2, epoch]).random_raw(count)
    return np.argsort(keys, kind="stable")
