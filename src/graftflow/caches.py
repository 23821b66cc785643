"""The cache: a folder that outlives a step, where downloads, features and checkpoints wait for the next run."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from graftflow.errors import InputError
from graftflow.locks import locked_if_free
from graftflow.storage import writing


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


@contextmanager
def unfinished_work(cache: str | Path, kind: str, key: str) -> Iterator[Path | None]:
    """Yield a folder of the cache for work that a later try takes up: it stays where the block fails, or is killed.

    Where the block ends well the folder is removed; a process that is killed while it removes leaves part of it.

    Args:
        cache: as for :func:`open_cache`.
        kind: the name of the folder above.
        key: what the work depends on, see :func:`key_of`.

    Yields:
        The folder, no other process's while the block runs; ``None`` where another one does the same work.

    Raises:
        InputError: the cache cannot be written.
    """
    folder = open_cache(cache) / kind / key
    with ExitStack() as stack:
        with writing(folder.parent):
            folder.parent.mkdir(exist_ok=True)
            free = stack.enter_context(locked_if_free(folder))
            if free:
                folder.mkdir(exist_ok=True)
        yield folder if free else None
        if free:
            shutil.rmtree(folder, ignore_errors=True)


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
