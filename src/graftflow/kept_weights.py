"""Weight files that stay on this machine: known again by the SHA-256 that was noted when they came."""

from pathlib import Path

from graftflow import files


def note(path: Path) -> None:
    """Note a file's SHA-256 in ``NAME.sha256`` beside it, as coreutils do, unless it is noted already."""
    if not _beside(path).exists():
        with files.atomic_file(_beside(path)) as aside:
            aside.write_bytes(_text(path))


def drop_changed(path: Path) -> None:
    """Remove a file that is not what was noted of it, and the note, so that it is fetched again; says so in a line.

    Args:
        path: of the file; nothing happens where it, or its note, is missing.
    """
    if not path.is_file() or not _beside(path).is_file():
        return
    if _beside(path).read_bytes() != _text(path):
        print(f"the kept weights '{path}' are cut or altered, and are fetched again", flush=True)
        path.unlink()
        _beside(path).unlink()


def _text(path: Path) -> bytes:
    return f"{files.sha256_file(path)}  {path.name}\n".encode()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
