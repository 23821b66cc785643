"""Pictures of TensorFlow Datasets, by name."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from graftflow.errors import InputError
from graftflow.pictures import Picture, Source, Unusable


def check_catalogue(name: str) -> None:
    """Check, without importing tensorflow, that TensorFlow Datasets knows a name.

    Args:
        name: as ``tfds.builder`` takes it: ``name``, ``name/config`` or ``name/config:version``.

    Raises:
        InputError: there is no such data set; the nearest names are given.
    """
    import tensorflow_datasets as tfds

    known = sorted(set(tfds.list_builders(with_community_datasets=False)))
    plain = name.split("/")[0].split(":")[0]
    if plain in known:
        return
    near = get_close_matches(plain.lower(), known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise InputError(
        f"tfds:NAME must be one of the {len(known)} data sets of tensorflow-datasets "
        f"{tfds.__version__}, listed at https://www.tensorflow.org/datasets/catalog. "
        f"Received: '{name}'.{hint}"
    )


def open_catalogue(name: str, *, data_dir: Path | None = None) -> Source:
    """Open a data set of TensorFlow Datasets, all its splits together, downloading it where needed.

    Args:
        name: as ``tfds.builder`` takes it.
        data_dir: where prepared data sets are; ``None`` is the package's own choice.

    Raises:
        InputError: the name is unknown, the data set has no ``image`` picture or no ``label``
            class, or it cannot be downloaded.
    """
    check_catalogue(name)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
    except Exception as error:  # an unknown version is an AssertionError, a config a ValueError
        raise InputError(f"tfds:NAME cannot be opened. Received: '{name}'. {_line(error)}") from error
    image, label = _features(tfds, builder)
    try:
        builder.download_and_prepare()
    except Exception as error:
        # Downloads fail in as many ways as there are builders; all of them end the step.
        raise InputError(
            f"tfds data set '{name}' cannot be prepared in '{builder.data_dir}': {_line(error)}"
        ) from error
    splits = sorted(builder.info.splits)
    total = sum(builder.info.splits[split].num_examples for split in splits)
    note = ""
    if len(splits) > 1:
        names = ", ".join(splits)
        note = f"The splits {names} of {builder.info.full_name} were put together and split anew."
    return Source(_pictures(tfds, builder, splits, image, label), total, note)


def _features(tfds: Any, builder: Any) -> tuple[Any, Any]:
    features = builder.info.features
    names = ", ".join(sorted(features)) if hasattr(features, "keys") else type(features).__name__
    wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    found = []
    for key, kind in wanted.items():
        feature = features[key] if hasattr(features, "keys") and key in features else None
        if not isinstance(feature, kind):
            raise InputError(
                f"tfds data sets need the features 'image' (Image) and 'label' (ClassLabel). "
                f"'{builder.name}' has no such '{key}'; its features: {names}."
            )
        found.append(feature)
    return found[0], found[1]


def _pictures(tfds: Any, builder: Any, splits: list[str], image: Any, label: Any) -> Iterator[Picture]:
    suffix = {"jpeg": ".jpg", "png": ".png"}.get(image.encoding_format, "")
    for split in splits:
        examples = builder.as_dataset(
            split=split,
            shuffle_files=False,
            # Other features may be pictures or videos, too; what is not asked for is not decoded.
            decoders=tfds.decode.PartialDecoding(
                {"image": image, "label": label}, decoders={"image": tfds.decode.SkipDecoding()}
            ),
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
        for i, example in enumerate(_read(examples, builder)):
            index = int(example["label"])
            name = label.int2str(index) if 0 <= index < label.num_classes else ""
            path = f"{name or 'unlabelled'}/{split}-{i:07d}{suffix}"
            yield Picture(path, name, _reader(example["image"] if name else None))


def _read(examples: Any, builder: Any) -> Iterator[Any]:
    try:
        yield from examples.as_numpy_iterator()
    except Exception as error:  # TensorFlow's, where a prepared file is damaged
        raise InputError(
            f"tfds data set '{builder.name}' in '{builder.data_dir}' cannot be read: {_line(error)}"
        ) from error


def _reader(data: bytes | None) -> Any:
    def read() -> bytes:
        if data is None:
            raise Unusable("has no label")
        return data

    return read


def _line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (text or type(error).__name__)[:300]
