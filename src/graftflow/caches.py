"""The cache: a folder that outlives a step, where downloads, features and checkpoints wait for the next run."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from graftflow.errors import InputError


def open_cache(cache: str | Path | None = None) -> Path:
    """Return the folder of the cache, made where it is missing.

    What lies in it may be removed at any time: it is made again, slower.

    Args:
        cache: the folder; ``None`` or ``""`` takes ``.cache/graftflow`` in the user's home or, where that cannot be
            written (a container with a read-only root), in the folder for temporary files, unless it is another user's
            there.

    Raises:
        InputError: the named folder cannot be made or written.
    """
    if cache:
        folder = Path(cache).expanduser()
        if not _writable(folder):
            raise InputError(f"cache must be a folder that can be written. Received: '{cache}'.")
        return folder
    folder = Path.home() / ".cache" / "graftflow"
    if _writable(folder):
        return folder
    folder = Path(tempfile.gettempdir()) / "graftflow"
    # Anybody may make a folder of this name there, and would then choose our features and checkpoints.
    if _writable(folder) and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
        return folder
    raise InputError(
        "cache must be a folder that can be written. Received: '' (home and temporary folder are not)."
    )


def check_cache(cache: str | Path) -> None:
    """Check, making nothing, that a folder of this name can be made and written.

    Args:
        cache: as for :func:`open_cache`.

    Raises:
        InputError: it cannot.
    """
    folder = Path(cache).expanduser().resolve()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if cache and not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise InputError(f"cache must be a folder that can be written. Received: '{cache}'.")


def key_of(facts: Any) -> str:
    """Return a name for what depends on ``facts`` alone: 32 hexadecimal digits of the SHA-256 of its JSON.

    Args:
        facts: anything that JSON can hold; the order of keys does not matter.
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
