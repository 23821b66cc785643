"""Publish an exported model in a model store, so that a server sees a whole version or none."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from graftflow.errors import InputError
from graftflow.files import read_json, remove, remove_asides, sha256_directory, sync
from graftflow.locks import locked

MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]+")
VERSION = re.compile(r"0|[1-9][0-9]{0,17}")
ENTRY = "saved_model.pb"  # what a server looks for: it is written last

# What to install for a store whose driver is missing.
_EXTRAS = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "s3a": "s3fs",
    "abfs": "adlfs",
    "az": "adlfs",
}
_READ_ONLY = ("http", "https", "data", "git", "github", "zip", "tar")


@dataclass(frozen=True)
class Deployment:
    """A version in a model store.

    Attributes:
        uri: the version's folder, ``<store>/<model name>/<version>``.
        version: its number.
        status: ``"published"``, or ``"already there"`` with the same content.
    """

    uri: str
    version: str
    status: Literal["published", "already there"]


def deploy(saved_model: str | Path, *, store: str, model_name: str) -> Deployment:
    """Copy a version into a model store; a version that is there is never changed.

    In a folder the finished copy is renamed, so that a server sees all of it or nothing. An object
    store cannot rename: there ``saved_model.pb``, without which no server loads it, goes last.

    Args:
        saved_model: the artifact, a folder of ``export.json`` and the version's folder.
        store: a local folder or mounted volume, or an fsspec URI (``gs://…``, ``s3://…``).
        model_name: the model's folder in the store: letters, digits, ``.``, ``_`` and ``-``.

    Returns:
        Where the version is, and whether this call put it there.

    Raises:
        InputError: where the artifact is incomplete or does not match its sha256, where another
            content has the same version, or where the store cannot be written.
    """
    check_model_name(model_name)
    check_store(store)
    version, folder, digest = verified_export(saved_model)
    if (local := local_store(store)) is not None:
        return _deploy_local(folder, local.absolute() / model_name, version, digest)
    return _deploy_remote(folder, store, model_name, version, digest)


def check_model_name(model_name: str) -> None:
    """Check that a model's name is safe as a folder and in a URL.

    Raises:
        InputError: where it is not.
    """
    if not MODEL_NAME.fullmatch(model_name) or set(model_name) <= {"."} or model_name.isdigit():
        raise InputError(
            "model_name must be letters, digits, '.', '_' or '-', and not only digits or dots. "
            f"Received: '{model_name}'"
        )


def check_store(uri: str) -> None:
    """Check, without contacting anything, that a model store can be used from here.

    Args:
        uri: a local folder, which may not exist yet, or an fsspec URI.

    Raises:
        InputError: where it is empty, a file, not writable, read-only by nature, or where its
            driver is not installed; the message names the package.
    """
    if not uri.strip():
        raise InputError("store must be a folder or a URI such as gs://bucket/models. Received: ''")
    local = local_store(uri)
    if local is None:
        _filesystem_class(uri)
        return
    existing = local.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"store must be a folder. Received: '{uri}', where {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"store must be writable. Received: '{uri}', where {existing} is not")


def local_store(store: str) -> Path | None:
    """Return the folder that ``store`` means, or ``None`` for a URI of another kind."""
    if store.startswith("file://"):
        return Path(store.removeprefix("file://"))
    if "://" in store or "::" in store:
        return None
    return Path(store).expanduser()


def _filesystem_class(uri: str) -> Any:
    import fsspec

    scheme = uri.partition("://")[0]
    if "::" in uri or scheme in _READ_ONLY:
        raise InputError(f"store must be a folder, gs://… or s3://…, which can be written. Received: '{uri}'")
    try:
        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = _EXTRAS.get(scheme, f"the fsspec driver of {scheme}")
        raise InputError(
            f"store '{uri}' needs the package {package}, which is not installed: "
            f"pip install {_EXTRAS.get(scheme, scheme + 'fs')}"
        ) from error
    except ValueError as error:
        raise InputError(f"store must be a folder, gs://… or s3://…. Received: '{uri}'") from error


def verified_export(saved_model: str | Path) -> tuple[str, Path, str]:
    """Return an artifact's version, the version's folder and the folder's sha256, checked.

    Args:
        saved_model: the artifact, a folder of ``export.json`` and the version's folder.

    Raises:
        InputError: where the artifact is incomplete or does not match its sha256.
    """
    artifact = Path(saved_model)
    described = artifact / "export.json"
    try:
        export = read_json(described)
        version, expected = str(export["version"]), str(export["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"saved_model must hold an export.json with version and sha256. Received: {artifact} "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    if not VERSION.fullmatch(version):
        raise InputError(f"version must be a whole number. Received: '{version}' in {described}")
    folder = artifact / version
    if not (folder / ENTRY).is_file():
        raise InputError(f"saved_model must hold {version}/{ENTRY}. Received: {artifact}")
    links = [p for p in folder.rglob("*") if p.is_symlink()]
    if links:
        raise InputError(f"saved_model must hold no links. Received: {links[0]}")
    digest = sha256_directory(folder)
    if digest != expected:
        raise InputError(
            f"saved_model must have the sha256 that its export.json says, {expected}. "
            f"Received: {digest} in {folder}: it is corrupt or was changed. Export it again."
        )
    return version, folder, digest


def _differs(uri: str, version: str) -> InputError:
    return InputError(
        f"A published version is never overwritten. Received: version {version}, which is at {uri} "
        "with another content (without VERSION it is the second of the export, which two runs may share). Export the "
        f"model under a higher version, as VERSION={int(version) + 1}, or remove that folder."
    )


def _deploy_local(folder: Path, model: Path, version: str, digest: str) -> Deployment:
    final = model / version
    with store_errors(model):
        missing = [p for p in (model, *model.parents) if not p.exists()]
        model.mkdir(parents=True, exist_ok=True)
        try:
            with locked(model):
                remove_asides(model)  # nobody else deploys: they are of processes that were killed
                if final.exists():
                    return _already(final, version, digest)
                return _publish(folder, final, version, digest)
        finally:
            if not final.exists():
                for path in missing:
                    if path.is_dir() and not any(path.iterdir()):
                        path.rmdir()


def _publish(folder: Path, final: Path, version: str, digest: str) -> Deployment:
    """Copy a version aside, and give it its name."""
    aside = Path(tempfile.mkdtemp(prefix=f".{version}.", suffix=".partial", dir=final.parent))
    try:
        aside.chmod(0o755)
        _copy(folder, aside)
        if sha256_directory(aside) != digest:
            raise OSError(errno.EIO, "what was written reads back differently")
        try:
            aside.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return _already(final, version, digest)  # another deployment was faster
        sync(final.parent)
    finally:
        remove(aside)
    return Deployment(str(final), version, "published")


def _already(final: Path, version: str, digest: str) -> Deployment:
    if sha256_directory(final) != digest:
        raise _differs(str(final), version)
    return Deployment(str(final), version, "already there")


def _copy(source: Path, target: Path) -> None:
    """Copy what a folder holds, readable by every user, and wait until it is on disk."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
            copy.chmod(0o755)
            continue
        with path.open("rb") as reader, copy.open("xb") as writer:
            shutil.copyfileobj(reader, writer, 2**20)
            writer.flush()
            os.fsync(writer.fileno())
        copy.chmod(0o644)
    for path in (*(p for p in target.rglob("*") if p.is_dir()), target):
        sync(path)


def _deploy_remote(folder: Path, store: str, model_name: str, version: str, digest: str) -> Deployment:
    uri = f"{store.rstrip('/')}/{model_name}/{version}"
    with store_errors(uri):
        import fsspec

        filesystem, base = fsspec.core.url_to_fs(uri)
        filesystem.invalidate_cache()
        present = stored_files(filesystem, base)
        if ENTRY in present:
            if stored_digest(filesystem, present) != digest:
                raise _differs(uri, version)
            return Deployment(uri, version, "already there")
        # Without its entry a version was cut off on its way up: no server has loaded it.
        for path in present.values():
            filesystem.rm_file(path)
        uploaded: list[str] = []
        try:
            files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
            for name in sorted(files, key=lambda n: (n == ENTRY, n)):
                target = f"{base}/{name}"
                uploaded.append(target)
                _upload(filesystem, folder / name, target)
        except BaseException:
            for target in reversed(uploaded):
                _discard(filesystem, target)
            raise
    return Deployment(uri, version, "published")


def _upload(filesystem: Any, source: Path, target: str) -> None:
    filesystem.put_file(str(source), target)
    filesystem.invalidate_cache()
    wanted, found = source.stat().st_size, filesystem.info(target)["size"]
    if found != wanted:
        raise OSError(errno.EIO, f"{target} must have {wanted} bytes and has {found}")


def _discard(filesystem: Any, target: str) -> None:
    try:
        filesystem.rm_file(target)
    except Exception:  # the error that led here is the one to report
        return


def stored_files(filesystem: Any, base: str) -> dict[str, str]:
    """Return the files below ``base`` of an fsspec file system: relative name → path."""
    try:
        found = filesystem.find(base)
    except FileNotFoundError:
        return {}
    prefix = base.rstrip("/") + "/"
    return {p[len(prefix) :]: p for p in found if p.startswith(prefix) and not p.endswith("/")}


def stored_digest(filesystem: Any, files: dict[str, str]) -> str:
    """Return what ``files.sha256_directory`` says of the same files on disk."""
    digest = hashlib.sha256()
    for name in sorted(files, key=PurePosixPath):
        content = hashlib.sha256()
        with filesystem.open(files[name], "rb") as reader:
            while block := reader.read(2**20):
                content.update(block)
        digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


@contextmanager
def store_errors(place: object, consequence: str = "Nothing was published.") -> Iterator[None]:
    """Turn what a store raises inside the block, whatever its driver, into one line.

    Args:
        place: what is being used, for the message.
        consequence: the sentence that ends it.

    Raises:
        InputError: in place of any other error.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"The model store is full: no space left at {place}. {consequence}") from error
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(f"The model store cannot be used at {place}: {reason}. {consequence}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"The model store cannot be used at {place}: {type(error).__name__}: {reason}. {consequence}"
        ) from error
