"""Fuzz the extraction of archives by coverage: ``python tests/stress/fuzz_archives.py -max_total_time=300 CORPUS``."""

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["graftflow", "tarfile", "zipfile", "gzip"]):
    from graftflow.archives import Limits, extract
    from graftflow.errors import InputError, one_line

LIMITS = Limits(entries=50, total_bytes=10**6, ratio=100, free_bytes=10**5)
ROOM = Path(tempfile.mkdtemp(prefix="fuzz-archives-", dir="/dev/shm"))
(ROOM / "beside").write_bytes(b"must stay")


def test_one_input(data: bytes) -> None:
    """Unpack the bytes as an archive; anything but files inside the folder or an InputError is a finding."""
    archive, unpacked = ROOM / "archive", ROOM / "unpacked"
    archive.write_bytes(data)
    try:
        extract(archive, unpacked, limits=LIMITS)
    except InputError as error:
        if unpacked.exists() or str(error) != one_line(str(error)):
            raise RuntimeError(f"a rest, or more than a line: {error!r}") from error
    if (ROOM / "beside").read_bytes() != b"must stay":
        raise RuntimeError("a file beside the folder was written")
    if extra := set(os.listdir(ROOM)) - {"archive", "unpacked", "beside"}:
        raise RuntimeError(f"left behind: {extra}")
    size = 0
    for folder, folders, files in os.walk(unpacked, topdown=False):
        for name in files:
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file() or path.stat().st_nlink != 1:
                raise RuntimeError(f"{path} is no plain file")
            size += path.stat().st_size
            path.unlink()
        for name in folders:
            Path(folder, name).rmdir()
    if unpacked.exists():
        unpacked.rmdir()
    if size > LIMITS.total_bytes:
        raise RuntimeError(f"{size} bytes")


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
