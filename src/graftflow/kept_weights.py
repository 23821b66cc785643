"""Weight files that stay on this machine: known again by the SHA-256 that was noted when they came."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graftflow import files
from graftflow.locks import locked


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes from dropping, fetching and noting a file while the block does; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(_beside(path)):  # a download locks the file itself
        yield


def as_noted(path: Path) -> bool:
    """Return whether a file is there and has the SHA-256 in ``NAME.sha256`` beside it, as coreutils write it."""
    try:
        return _beside(path).read_bytes() == _text(path, files.sha256_file(path))
    except FileNotFoundError:
        return False


def note(path: Path, sha256: str) -> None:
    """Note the SHA-256 that a file came with; one that was noted before is replaced."""
    with files.atomic_file(_beside(path)) as aside:
        aside.write_bytes(_text(path, sha256))


def drop_changed(path: Path) -> None:
    """Remove a file that is not what was noted of it, and the note, so that it is fetched again; says so in a line.

    Args:
        path: of the file, which is held; nothing happens where it, or its note, is missing.
    """
    if path.is_file() and _beside(path).is_file() and not as_noted(path):
        print(f"the kept weights '{path}' are cut or altered, and are fetched again", flush=True)
        path.unlink(missing_ok=True)
        _beside(path).unlink(missing_ok=True)


def _text(path: Path, sha256: str) -> bytes:
    return f"{sha256}  {path.name}\n".encode()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
