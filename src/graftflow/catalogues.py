"""Pictures of TensorFlow Datasets, by name."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from graftflow.addresses import file_name, mirrored
from graftflow.downloads import DownloadError, download
from graftflow.errors import InputError
from graftflow.files import read_json, remove, sha256_file
from graftflow.locks import locked
from graftflow.pictures import Picture, Source, Unusable
from graftflow.seals import find_damage, seal

LABEL = "label"
FILE_NAMES = ("image/filename", "file_name", "filename", "image/file_name")
PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".gz", ".tar.bz2", ".bz2", ".tbz", ".tbz2", ".tar.xz")


def parse_catalogue(name: str) -> tuple[str, str]:
    """Split ``NAME@FEATURE`` into the data set's name and the feature that holds the class, ``label`` by default.

    Raises:
        InputError: there is no feature behind the ``@``.
    """
    plain, at, feature = name.partition("@")
    if at and not feature.strip():
        raise InputError(
            f"tfds:NAME@FEATURE must name the feature that holds the class behind its '@'. Received: '{name}'."
        )
    return plain.strip(), feature.strip() or LABEL


def check_catalogue(name: str) -> None:
    """Check, without importing tensorflow, that TensorFlow Datasets knows a name.

    Args:
        name: as ``tfds.builder`` takes it: ``name``, ``name/config`` or ``name/config:version``; ``@FEATURE`` may
            follow.

    Raises:
        InputError: there is no such data set; the nearest names are given.
    """
    import tensorflow_datasets as tfds

    known = sorted(set(tfds.list_builders(with_community_datasets=False)))
    plain = parse_catalogue(name)[0].split("/")[0].split(":")[0]
    if plain in known:
        return
    near = get_close_matches(plain.lower(), known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise InputError(
        f"tfds:NAME must be one of the {len(known)} data sets of tensorflow-datasets "
        f"{tfds.__version__}, listed at https://www.tensorflow.org/datasets/catalog. "
        f"Received: '{name}'.{hint}"
    )


def open_catalogue(
    name: str, *, data_dir: Path | None = None, mirrors: Sequence[str] = (), own: bool = False
) -> Source:
    """Open a data set of TensorFlow Datasets, all its splits together, downloading it where needed.

    The files of a data set whose sizes and checksums the package knows are fetched by
    :func:`graftflow.downloads.download` (resumed, tried again, from mirrors) to the place where the package looks
    for them; others by the package itself. Kept ones are compared with the SHA-256 that was noted when they came.

    In a folder of our own a prepared data set is sealed, and prepared again where the seal does not hold. Elsewhere
    others may have prepared it: there TensorFlow's checksums of the records hold, and nothing does for the names of
    the classes.

    Args:
        name: as ``tfds.builder`` takes it; ``@FEATURE`` behind it names the feature that holds the class.
        data_dir: where prepared data sets are; ``None`` is the package's own choice.
        mirrors: addresses of folders that may hold a file of the data set under the last part of its address.
        own: nobody else prepares data sets in ``data_dir``, so that what is damaged there, or was left by a killed
            preparation, is removed.

    Raises:
        InputError: the name is unknown, the data set has no ``image`` picture or no such class, or it cannot be
            downloaded.
    """
    check_catalogue(name)
    import tensorflow_datasets as tfds

    plain, feature = parse_catalogue(name)
    if own and data_dir is not None:
        _remove_damaged(tfds, plain, data_dir)
    builder = _builder(tfds, plain, data_dir)
    image, label = _features(tfds, builder, feature)
    if not builder.data_path.exists():
        builder = _prepare(tfds, builder, plain, data_dir, mirrors, own)
    splits = sorted(builder.info.splits)
    total = sum(builder.info.splits[split].num_examples for split in splits)
    notes = []
    if len(splits) > 1:
        names = ", ".join(splits)
        notes.append(f"The splits {names} of {builder.info.full_name} were put together and split anew.")
    notes += _dropped(builder)
    return Source(_pictures(tfds, builder, splits, image, feature, label), total, " ".join(notes))


def _builder(tfds: Any, name: str, data_dir: Path | None) -> Any:
    try:
        return tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
    except Exception as error:  # an unknown version is an AssertionError, a config a ValueError
        raise InputError(f"tfds:NAME cannot be opened. Received: '{name}'. {_line(error)}") from error


def _remove_damaged(tfds: Any, name: str, data_dir: Path) -> None:
    """Remove a prepared data set that is not as it was sealed, before the package reads its names and numbers."""
    with (
        tempfile.TemporaryDirectory() as nowhere
    ):  # a builder that finds nothing, but knows where it would be
        prepared = data_dir / Path(_builder(tfds, name, Path(nowhere)).data_dir).relative_to(nowhere)
    if not prepared.exists():
        return
    with locked(prepared):
        if prepared.exists() and (damage := find_damage(prepared)):
            print(f"the prepared tfds:{name} has {damage[1]}: it is prepared again", flush=True)
            remove(prepared)


def _features(tfds: Any, builder: Any, feature: str) -> tuple[Any, Any]:
    features = builder.info.features
    names = ", ".join(sorted(features)) if hasattr(features, "keys") else type(features).__name__
    wanted = {"image": tfds.features.Image, feature: tfds.features.ClassLabel}
    found = []
    for key, kind in wanted.items():
        held = features[key] if hasattr(features, "keys") and key in features else None
        if not isinstance(held, kind):
            raise InputError(
                f"tfds data sets need the features 'image' (Image) and 'label' (ClassLabel; another one by "
                f"tfds:NAME@FEATURE). '{builder.name}' has no such '{key}'; its features: {names}."
            )
        found.append(held)
    return found[0], found[1]


def _dropped(builder: Any) -> list[str]:
    """Return what the data set's description says of pictures that its preparation leaves out."""
    sentences = re.split(r"(?<=\.)\s+", " ".join(str(builder.info.description or "").split()))
    told = [s for s in sentences if re.search(r"corrupt", s) and re.search(r"dropped|skipped|removed", s)]
    return [f"TensorFlow Datasets on {builder.info.full_name}: {sentence}" for sentence in told]


def _prepare(
    tfds: Any, builder: Any, name: str, data_dir: Path | None, mirrors: Sequence[str], own: bool
) -> Any:
    """Download and convert a data set, one process at a time; return a builder that knows its splits."""
    final = Path(builder.data_dir)
    try:
        if "://" in str(builder.data_dir):  # a bucket, by TFDS_DATA_DIR: no place for files to go on with
            builder.download_and_prepare()
            return builder
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final):
            if builder.data_path.exists() and not (own and find_damage(final)):
                # Made by another process; a builder reads it when it is made itself.
                return _builder(tfds, name, data_dir)
            downloads = Path(builder.data_dir_root) / "downloads"
            # The package takes what is unpacked there already for whole.
            unpacked = final.with_name(f".{final.name}.unpacked") if own else downloads / "extracted"
            if own:
                _remove_left_over(tfds, final, downloads / builder.name)
                remove(unpacked)
            _remove_damaged_downloads(downloads / builder.name)
            fetched = _fetch_known(builder, downloads, mirrors)
            config = tfds.download.DownloadConfig(
                extract_dir=str(unpacked),
                # A prepared copy in Google's cloud would spare the conversion, not the download that is done.
                try_download_gcs=not fetched,
            )
            builder.download_and_prepare(download_dir=str(downloads), download_config=config)
            if own:
                remove(unpacked)
                seal(final)
            return builder
    except InputError:
        raise
    except Exception as error:
        # Downloads fail in as many ways as there are builders; all of them end the step.
        raise InputError(
            f"tfds data set '{name}' cannot be prepared in '{builder.data_dir}': {_line(error)}"
        ) from error


def _remove_left_over(tfds: Any, final: Path, downloads: Path) -> None:
    """Remove what a killed preparation of this data set left, while its lock is held; downloads stay."""
    left = final.parent.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*_{final.name}")
    for path in (final, *left, *downloads.glob("*.tmp.*")):
        remove(path)


def _remove_damaged_downloads(downloads: Path) -> None:
    """Remove kept files of a data set that differ from the SHA-256 which is noted beside them, in ``.INFO``."""
    for info in sorted(downloads.rglob("*.INFO")):
        kept = info.with_suffix("")
        try:
            noted = read_json(info)["url_info"]["checksum"]
        except (ValueError, KeyError, TypeError):
            noted = ""
        if kept.is_file() and sha256_file(kept) != noted:
            print(f"the kept {kept.name} is cut or altered, and is fetched again", flush=True)
            remove(kept)
            remove(info)


def _fetch_known(builder: Any, downloads: Path, mirrors: Sequence[str]) -> int:
    """Put the files that a builder wants and whose checksums it has where its download manager finds them.

    That is ``<downloads>/<data set>/<address and checksum>`` with a file ``.INFO`` beside it.

    Returns:
        How many of them there are.
    """
    from tensorflow_datasets.core.download import resource as places

    known, count = builder.url_infos or {}, 0
    for wanted in _wanted(builder):
        url, folder = wanted.url, Path(wanted.relative_download_dir)
        info = known.get(url)
        if info is None or not _plain_file(url, info.filename):
            continue
        count += 1
        stored = folder / places.get_dl_fname(url, info.checksum)
        found = [downloads / builder.name / stored, downloads / stored]
        by_hand = info.filename and (downloads / "manual" / info.filename).is_file()
        if by_hand or any(places.is_locally_cached(place) for place in found):
            continue
        name = info.filename or file_name(url)
        sources = [url, *(mirrored(mirror, name) for mirror in mirrors)]
        try:
            download(sources, found[0], sha256=info.checksum, size=int(info.size), name=name)
        except DownloadError as error:
            raise InputError(
                f"tfds data set '{builder.name}' needs '{name}'. {error} Go on with mirrors= addresses of folders "
                f"that hold it, or with archive: and a copy of the pictures, one folder a class."
            ) from error
        places.get_info_path(found[0]).unlink(missing_ok=True)
        places.write_info_file(
            url=url, path=found[0], dataset_name=builder.name, original_fname=name, url_info=info
        )
    return count


def _plain_file(url: str, name: str | None) -> bool:
    """Return whether an address can be fetched as it is, and its kind be told from a name."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.netloc == "drive.google.com":
        return False  # tfds has ways of its own for these
    return bool(name) or parts.path.lower().endswith(PACKED)


class _Listener:
    """Stands in for a download manager of tfds and notes what a builder wants; no file is where it says."""

    def __init__(self, nowhere: Path) -> None:
        self._nowhere = nowhere
        self.wanted: list[Any] = []

    def download(self, urls: Any) -> Any:
        if isinstance(urls, dict):
            return {key: self.download(value) for key, value in urls.items()}
        if isinstance(urls, list | tuple):
            return [self.download(value) for value in urls]
        self.wanted.append(urls)
        return self._nowhere / str(len(self.wanted))

    download_and_extract = download

    def extract(self, paths: Any) -> Any:
        return paths

    def iter_archive(self, _path: Any) -> Iterator[Any]:
        return iter(())

    iter_files = iter_archive


def _wanted(builder: Any) -> list[Any]:
    """Return the downloads that a builder asks for, as ``tfds.download.Resource``.

    Its registered addresses may be those of other versions and configurations too; so it is asked, and stops where
    it first looks for a file.
    """
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as nowhere:
        listener = _Listener(Path(nowhere) / "none")
        with suppress(Exception):  # whatever its way of missing a file is
            builder._split_generators(listener)
    resource = tfds.download.Resource
    return [one if isinstance(one, resource) else resource(url=str(one)) for one in listener.wanted]


def _pictures(
    tfds: Any, builder: Any, splits: list[str], image: Any, feature: str, label: Any
) -> Iterator[Picture]:
    suffix = {"jpeg": ".jpg", "png": ".png"}.get(image.encoding_format, "")
    features = {"image": image, feature: label}
    known = builder.info.features
    named = next((n for n in FILE_NAMES if n in known and isinstance(known[n], tfds.features.Text)), "")
    if named:
        features[named] = known[named]
    seen: set[str] = set()
    for split in splits:
        examples = builder.as_dataset(
            split=split,
            shuffle_files=False,
            # Other features may be pictures or videos, too; what is not asked for is not decoded.
            decoders=tfds.decode.PartialDecoding(features, decoders={"image": tfds.decode.SkipDecoding()}),
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
        for i, example in enumerate(_read(examples, builder)):
            index = int(example[feature])
            name = label.int2str(index) if 0 <= index < label.num_classes else ""
            folder = name or "unlabelled"
            path = f"{folder}/{split}-{i:07d}{suffix}"
            if named and (own := _inside(example[named], name)) and f"{folder}/{own}" not in seen:
                path = f"{folder}/{own}"
            seen.add(path)
            yield Picture(path, name, _reader(example["image"] if name else None))


def _inside(file: bytes, label: str) -> str:
    """Return a file's name below the folder of its class, where it has one: ``PetImages/Cat/0.jpg`` → ``0.jpg``."""
    parts = file.decode("utf-8", "backslashreplace").replace("\\", "/").split("/")
    parts = [part for part in parts if part not in ("", ".", "..")]
    same = [i for i, part in enumerate(parts[:-1]) if part.lower() == label.lower()]
    return "/".join(parts[same[-1] + 1 :] if same else parts)


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
