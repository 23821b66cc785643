"""Feature rows that outlive a step, found by the SHA-256 of the picture that they were computed from."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graftflow import files

# What all feature rows of a cache may take together: 800,000 pictures at 1,280 features. Beyond it the rows of the
# backbones that were not used for longest go.
LIMIT_BYTES = 4 * 2**30
_DIGEST_BYTES = 32
# A killed process loses what it has not written: at most so many bytes, and so many seconds of computing.
_FLUSH_BYTES = 16 * 2**20
_FLUSH_SECONDS = 30.0
_DAY = 24 * 3600.0


class FeatureCache:
    """Rows ``float32 (width,)`` by the digest of a picture's stored bytes, in one folder.

    The folder holds files that are never changed: n digests of 32 bytes, then n rows of little-endian float32. A
    file's name is the SHA-256 of its bytes, so one that was cut or altered is recognised, removed and never used.
    Files are written aside and renamed: any number of processes may use the folder at once.

    Args:
        folder: of one network and one way to decode; made where it is missing.
        width: features a row.
    """

    def __init__(self, folder: Path, *, width: int) -> None:
        self._folder, self._width = folder, width
        self._rows: dict[bytes, npt.NDArray[np.float32]] = {}
        self._pending: list[tuple[bytes, npt.NDArray[np.float32]]] = []
        self._flushed = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        for path in sorted(folder.glob("*.rows")):
            if path.name.startswith("."):
                _remove_leftover(path)
            else:
                self._load(path)

    def __contains__(self, digest: bytes) -> bool:
        """Return whether there is a row for the picture of this digest."""
        return digest in self._rows

    def __len__(self) -> int:
        """Return the number of pictures with a row."""
        return len(self._rows)

    def get(self, digest: bytes) -> npt.NDArray[np.float32]:
        """Return the row ``(width,)`` of a picture; the digest must be contained."""
        return self._rows[digest]

    def add(self, digests: Sequence[bytes], rows: npt.NDArray[np.float32]) -> None:
        """Take rows ``(n, width)`` in; they are on disk after :meth:`flush`, or earlier where they are many or old."""
        for digest, row in zip(digests, rows, strict=True):
            self._rows[digest] = row
            self._pending.append((digest, row))
        due = time.monotonic() - self._flushed >= _FLUSH_SECONDS
        if due or len(self._pending) * self._row_bytes >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last time; a full disk costs the next run time, not this one its result."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        digests = b"".join(digest for digest, _ in self._pending)
        data = digests + np.stack([row for _, row in self._pending]).astype("<f4").tobytes()
        self._pending.clear()
        path = self._folder / f"{hashlib.sha256(data).hexdigest()}.rows"
        try:
            with files.atomic_file(path) as aside:
                aside.write_bytes(data)
        except OSError as error:
            print(f"features: not kept for the next run ({error})", flush=True)
            return
        self._map(path)  # they lie on the disk now, and need no memory any more

    @property
    def _row_bytes(self) -> int:
        return _DIGEST_BYTES + 4 * self._width

    def _load(self, path: Path) -> None:
        """Index a file, mapped into memory; remove it where its bytes are not those it was named by."""
        try:
            intact = files.sha256_file(path) == path.stem
            if not intact or path.stat().st_size % self._row_bytes:
                print(f"features: '{path}' is cut or altered; its pictures are computed again", flush=True)
                path.unlink(missing_ok=True)
                return
        except OSError:
            # Another process has removed it, or it cannot be read: its pictures are computed again.
            return
        self._map(path)

    def _map(self, path: Path) -> None:
        """Take the rows of a file, mapped into memory, which is given back where somebody else needs it."""
        try:
            count = path.stat().st_size // self._row_bytes
            digests = np.memmap(path, np.uint8, "r", shape=(count, _DIGEST_BYTES))
            rows = np.memmap(path, "<f4", "r", offset=count * _DIGEST_BYTES, shape=(count, self._width))
        except OSError:  # removed in this moment
            return
        # Plain views: a view of a memmap that is a memmap itself takes ten times the memory.
        for digest, row in zip(np.asarray(digests), np.asarray(rows), strict=True):
            self._rows[digest.tobytes()] = row


def bound(root: Path, *, keep: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Remove the caches under ``root`` that were opened longest ago until all take at most ``limit_bytes``.

    Args:
        root: the folder of :class:`FeatureCache` folders.
        keep: the one that stays, whatever its size.
        limit_bytes: of all files together.
    """
    try:
        folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
        sizes = {f: sum(p.stat().st_size for p in f.iterdir()) for f in folders}
        for folder in folders:
            if sum(sizes.values()) <= limit_bytes:
                return
            if folder != keep:
                files.remove(folder)
                del sizes[folder]
    except OSError:
        # Another process tidies up at the same time.
        return


def _remove_leftover(path: Path) -> None:
    """Remove what a process that was killed left half-written; a young file may still be in work."""
    try:
        # Also of one from the future: the clock was set back since.
        if abs(time.time() - path.stat().st_mtime) > _DAY:
            path.unlink()
    except OSError:
        return
