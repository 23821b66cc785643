"""One process at a time: a lock on a path, which ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Keep other processes of graftflow from working on ``path`` while the block runs.

    Yields:
        Whether another process had to be waited for.
    """
    lock = path.with_name(f".{path.name}.lock")
    waited = False
    while True:
        file = lock.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that makes {path.name}", flush=True)
            waited = True
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: as good as it gets
        # The process before removed the file that it had locked: only the one that is there counts.
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                break
        file.close()
    try:
        yield waited
    finally:
        lock.unlink(missing_ok=True)
        file.close()
