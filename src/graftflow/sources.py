"""Where pictures come from: packages, a folder, an archive or TensorFlow Datasets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from graftflow.archives import check_archive, download, extract, is_url
from graftflow.catalogues import check_catalogue, open_catalogue
from graftflow.embedded import open_closeups, open_digits
from graftflow.errors import InputError, unknown_name
from graftflow.folders import check_folder, descend, open_folder
from graftflow.pictures import Source

EMBEDDED = ("closeups", "digits")
NEEDS = {"directory": "PATH", "archive": "PATH-or-URL", "tfds": "NAME"}
FORMS = (*EMBEDDED, *(f"{kind}:{needed}" for kind, needed in NEEDS.items()))


def parse_source(source: str) -> tuple[str, str]:
    """Split a source into its kind and its value, e.g. ``("directory", "/data/cats")``.

    Args:
        source: one of ``closeups``, ``digits``, ``directory:PATH``, ``archive:PATH-or-URL``,
            ``tfds:NAME``.

    Raises:
        InputError: the kind is unknown, or the value is missing.
    """
    kind, colon, value = source.strip().partition(":")
    if kind in EMBEDDED and not colon:
        return kind, ""
    if kind not in NEEDS:
        error = unknown_name("source", source, FORMS)
        if source and Path(source).expanduser().is_dir():
            raise InputError(f"{error} Did you mean 'directory:{source}'?")
        raise error
    if not value:
        raise InputError(f"source '{kind}:' must name its {NEEDS[kind]}. Received: '{source}'.")
    return kind, value


def check_source(source: str) -> None:
    """Check a source before any work, in about a second, without network and without tensorflow.

    Args:
        source: as for :func:`parse_source`.

    Raises:
        InputError: an unknown kind; a folder that is missing, empty, of one class or with fewer
            than three files in a class; a missing archive or one that is neither zip nor tar; an
            unknown name of TensorFlow Datasets.
    """
    kind, value = parse_source(source)
    if kind == "directory":
        check_folder(Path(value).expanduser())
    elif kind == "archive" and is_url(value):
        if not (urlsplit(value).netloc or urlsplit(value).path.strip("/")):
            raise InputError(f"source 'archive:' must name a file. Received: '{source}'.")
    elif kind == "archive":
        check_archive(Path(value).expanduser())
    elif kind == "tfds":
        check_catalogue(value)


@contextmanager
def open_source(
    source: str, *, scratch: str | Path, tfds_data_dir: str | Path | None = None
) -> Iterator[Source]:
    """Open a source; its pictures are read one by one while the block runs.

    Args:
        source: as for :func:`parse_source`.
        scratch: an existing folder for what is downloaded and unpacked; the caller removes it.
        tfds_data_dir: where prepared data sets of TensorFlow Datasets are, or ``None``.

    Raises:
        InputError: as :func:`check_source`, and where an archive cannot be fetched or is refused.
    """
    kind, value = parse_source(source)
    if kind == "closeups":
        yield open_closeups()
    elif kind == "digits":
        yield open_digits()
    elif kind == "directory":
        yield open_folder(Path(value).expanduser())
    elif kind == "archive":
        yield open_folder(descend(_unpack(value, Path(scratch))), name=value)
    else:
        yield open_catalogue(value, data_dir=None if tfds_data_dir is None else Path(tfds_data_dir))


def _unpack(value: str, scratch: Path) -> Path:
    unpacked = scratch / "unpacked"
    if not is_url(value):
        extract(Path(value).expanduser(), unpacked)
        return unpacked
    fetched = scratch / "archive"
    download(value, fetched)
    extract(fetched, unpacked, name=value)
    fetched.unlink()
    return unpacked
