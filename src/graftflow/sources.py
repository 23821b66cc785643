"""Where pictures come from: packages, a folder, an archive or TensorFlow Datasets."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from graftflow.addresses import file_name, mirrored, shown, split_address, split_checksum
from graftflow.archives import check_archive, extract, is_url
from graftflow.caches import key_of, open_cache
from graftflow.catalogues import check_catalogue, open_catalogue
from graftflow.downloads import download
from graftflow.embedded import open_closeups, open_digits
from graftflow.errors import InputError, unknown_name
from graftflow.files import remove_asides, sha256_file
from graftflow.folders import check_folder, descend, open_folder
from graftflow.locks import locked
from graftflow.pictures import Source
from graftflow.seals import FILE as SEAL
from graftflow.seals import find_damage, sealed_directory
from graftflow.storage import writing

EMBEDDED = ("closeups", "digits")
NEEDS = {"directory": "PATH", "archive": "PATH-or-URL", "tfds": "NAME[@FEATURE]"}
FORMS = (*EMBEDDED, *(f"{kind}:{needed}" for kind, needed in NEEDS.items()))


def parse_source(source: str) -> tuple[str, str]:
    """Split a source into its kind and its value, e.g. ``("directory", "/data/cats")``.

    Args:
        source: one of ``closeups``, ``digits``, ``directory:PATH``, ``archive:PATH-or-URL``,
            ``tfds:NAME`` or ``tfds:NAME@FEATURE``. An archive's ``#sha256=HEX`` is no part of the value.

    Raises:
        InputError: the kind is unknown, the value is missing, or a checksum is not one.
    """
    kind, colon, value = source.strip().partition(":")
    if kind in EMBEDDED and not colon:
        return kind, ""
    if kind not in NEEDS:
        error = unknown_name("source", source, FORMS)
        with suppress(InputError):
            if source and _local(source).is_dir():
                error = InputError(f"{error} Did you mean 'directory:{source}'?")
        raise error
    if not value:
        raise InputError(f"source '{kind}:' must name its {NEEDS[kind]}. Received: '{source}'.")
    if kind == "archive":
        value = split_checksum(value)[0]
        if is_url(value):
            split_address(value)
    return kind, value


def _local(value: str) -> Path:
    """Return the path of this machine that a value names, whether something is there or not."""
    try:
        path = Path(value).expanduser()
        path.exists()
        return path
    except (OSError, RuntimeError) as error:  # too long a name, or the home of nobody
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(
            f"A source must name a path that can be there. Received: '{value[:200]}' ({reason})."
        ) from error


def check_mirrors(mirrors: str) -> tuple[str, ...]:
    """Parse a setting of mirrors: addresses of folders, separated by commas or spaces.

    Args:
        mirrors: e.g. ``"https://mirror.example/data, gs://bucket/data"``; ``""`` for none.

    Returns:
        The addresses in order, each once.

    Raises:
        InputError: one of them is no address, names no host, carries a ``#``, or is of a kind that is not known.
    """
    import fsspec

    found = dict.fromkeys(part for part in re.split(r"[,\s]+", mirrors) if part)
    known = set(fsspec.available_protocols())
    for mirror in found:
        scheme, parts = mirror.partition("://")[0].lower(), split_address(mirror)
        problem = ""
        if not is_url(mirror):
            problem = (
                " (a folder of this machine is file:///PATH)" if mirror.startswith(("/", "~", ".")) else ""
            )
            problem = f"which is no address{problem}"
        elif scheme not in known:
            problem = f"of which '{scheme}' is no kind that is known"
        elif not (parts.netloc or (scheme in ("file", "local") and parts.path.strip("/"))):
            problem = "which names no host or bucket"
        elif parts.fragment:
            problem = "which has a '#'"
        if problem:
            raise InputError(
                f"mirrors must be addresses of folders, https://…, gs://… or s3://…, separated by commas or "
                f"spaces. Received: '{shown(mirror)}', {problem}."
            )
    return tuple(found)


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
        check_folder(_local(value))
    elif kind == "archive" and is_url(value):
        if not (urlsplit(value).netloc or urlsplit(value).path.strip("/")):
            raise InputError(f"source 'archive:' must name a file. Received: '{source}'.")
    elif kind == "archive":
        check_archive(_local(value))
    elif kind == "tfds":
        check_catalogue(value)


@contextmanager
def open_source(
    source: str,
    *,
    scratch: str | Path,
    tfds_data_dir: str | Path | None = None,
    cache: str | Path | None = None,
    mirrors: Sequence[str] = (),
) -> Iterator[Source]:
    """Open a source; its pictures are read one by one while the block runs.

    With a cache an archive is fetched into ``downloads/<key>/<name>`` and unpacked into ``unpacked/<key of its
    SHA-256>``, data sets of TensorFlow Datasets go to ``tfds``, and the next call finds them there. A kept archive
    with a checksum is taken as it is; without one its server is asked whether it is still the same
    (``revalidate`` of :func:`graftflow.downloads.download`). What is unpacked is sealed, and unpacked again where the
    seal does not hold.

    Args:
        source: as for :func:`parse_source`; ``#sha256=HEX`` behind an archive checks it.
        scratch: an existing folder for what is downloaded and unpacked; the caller removes it.
        tfds_data_dir: where prepared data sets of TensorFlow Datasets are, or ``None``.
        cache: a folder that outlives the step, as for :func:`graftflow.caches.open_cache`; ``None`` for none.
        mirrors: addresses of folders, as :func:`check_mirrors` gives them. Where a source does not have its file,
            they are tried in order, with the last part of the file's own address behind them.

    Raises:
        InputError: as :func:`check_source`, and where an archive cannot be fetched or is refused.
    """
    kind, value = parse_source(source)
    kept = None if cache is None else open_cache(cache)
    if kind == "closeups":
        yield open_closeups()
    elif kind == "digits":
        yield open_digits()
    elif kind == "directory":
        yield open_folder(_local(value))
    elif kind == "archive":
        sha256 = split_checksum(source.strip())[1]
        yield open_folder(descend(_unpack(value, sha256, Path(scratch), kept, mirrors)), name=shown(value))
    else:
        own = kept is not None and not tfds_data_dir
        folder = kept / "tfds" if kept is not None and own else tfds_data_dir
        yield open_catalogue(value, data_dir=Path(folder) if folder else None, mirrors=mirrors, own=own)


def _unpack(value: str, sha256: str, scratch: Path, cache: Path | None, mirrors: Sequence[str]) -> Path:
    if is_url(value):
        archive, digest = _fetch(value, sha256, scratch if cache is None else cache, mirrors)
    else:
        archive = _local(value)
        check_archive(archive)
        digest = sha256_file(archive) if sha256 or cache else ""
        if sha256 and digest != sha256:
            raise InputError(f"Archive '{value}' must have the SHA-256 {sha256}. Received: {digest}.")
    if cache is None:
        extract(archive, scratch / "unpacked", name=shown(value))
        if is_url(value):
            archive.unlink()
        return scratch / "unpacked"
    unpacked = cache / "unpacked" / key_of({"archive": digest})
    unpacked.parent.mkdir(parents=True, exist_ok=True)
    with locked(unpacked):
        damage = find_damage(unpacked) if (unpacked / SEAL).is_file() else None
        if damage:
            print(f"the unpacked {archive.name} has {damage[1]}: it is unpacked again", flush=True)
        if damage or not (unpacked / SEAL).is_file():
            remove_asides(unpacked.parent, unpacked.name)
            with writing(unpacked.parent), sealed_directory(unpacked) as folder:
                extract(archive, folder / "contents", name=shown(value))
    # The seal is no file of the archive.
    return unpacked / "contents"


def _fetch(url: str, sha256: str, root: Path, mirrors: Sequence[str]) -> tuple[Path, str]:
    """Fetch an archive under ``root``; return the file and its SHA-256."""
    name = file_name(url)
    archive = (
        root / "downloads" / key_of({"sha256": sha256} if sha256 else {"url": url}) / (name or "archive")
    )
    addresses = [url, *(mirrored(mirror, name) for mirror in mirrors if name)]
    return archive, download(addresses, archive, sha256=sha256, revalidate=not sha256)
