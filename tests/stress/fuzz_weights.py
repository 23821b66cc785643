"""Fuzz the reader of torch weights by coverage: ``python tests/stress/fuzz_weights.py -max_total_time=300 CORPUS``."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["graftflow", "pickletools"]):
    from graftflow.errors import InputError, one_line
    from graftflow.pretrained import read_torch_weights

FILE = Path(tempfile.mkdtemp(prefix="fuzz-weights-", dir="/dev/shm")) / "weights.pth"


def test_one_input(data: bytes) -> None:
    """Read the bytes as weights; anything but arrays of bounded size or an InputError is a finding."""
    FILE.write_bytes(data)
    try:
        read = read_torch_weights(FILE)
    except InputError as error:
        if str(error) != one_line(str(error)):
            raise RuntimeError(f"more than a line: {error!r}") from error
        return
    if sum(array.nbytes for array in read.values()) > 4 * len(data):
        raise RuntimeError("tensors larger than their file by far")


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
