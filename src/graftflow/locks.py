"""One process at a time: a lock on a path, which ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Keep other processes of graftflow from working on ``path`` while the block runs.

    Yields:
        Whether another process had to be waited for.
    """
    file = _take(path)
    waited = file is None
    if file is None:
        print(f"waiting for another process that makes {path.name}", flush=True)
        file = _take(path, wait=True)
    try:
        yield waited
    finally:
        if file is not None:
            _give_back(path, file)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Keep other processes of graftflow from working on ``path``, unless one does so already.

    Yields:
        Whether the path is this process's own while the block runs.
    """
    file = _take(path)
    try:
        yield file is not None
    finally:
        if file is not None:
            _give_back(path, file)


def _take(path: Path, *, wait: bool = False) -> IO[Any] | None:
    """Return the open lock file of a path, or None where another process holds it; with ``wait`` never None."""
    lock = _beside(path)
    while True:
        file = lock.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            pass  # a file system without locks: as good as it gets
        # The process before removed the file that it had locked: only the one that is there counts.
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                return file
        file.close()


def _give_back(path: Path, file: IO[Any]) -> None:
    _beside(path).unlink(missing_ok=True)
    file.close()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
