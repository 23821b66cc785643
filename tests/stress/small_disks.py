"""Disks of some size that are full or read-only, made of memory; root's, so that a test without root skips."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def become(self, options: str) -> None:
        """Change it while it is mounted: ``"size=64k"``, ``"ro"`` or ``"rw"``."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """Mount a disk of some size at a folder, which is made; skip the test where that is not allowed.

    Args:
        folder: where.
        kilobytes: its size; 4 at least.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={max(4, kilobytes)}k"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("a small disk is mounted by root, on Linux")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def kilobytes_of(folder: Path) -> int:
    """Return how much of a disk the files of a folder take, in blocks of 4 KiB."""
    return sum(4 * -(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())
