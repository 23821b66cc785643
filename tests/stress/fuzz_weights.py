"""Fuzz the reader of torch weights by coverage: ``python tests/stress/fuzz_weights.py -max_total_time=300 CORPUS``.

Where the first byte is ``p``, each two of the others are a word for pickle's machine and how often it stands there.
"""

import pickletools
import sys
import tempfile
import tracemalloc
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["graftflow", "pickletools"]):
    from graftflow.errors import InputError, one_line
    from graftflow.pretrained import read_torch_weights

from tests.unit.torch_files import DICT_OF_LIST, LIST, MAGIC, PAIR, PAIR_OF_PAIRS, PROTOCOL, pickles

FILE = Path(tempfile.mkdtemp(prefix="fuzz-weights-", dir="/dev/shm")) / "weights.pth"
LONGEST = 2**14  # bytes of a program: more of them are not more ways
WORDS = [
    LIST,
    DICT_OF_LIST,
    PAIR,
    PAIR_OF_PAIRS,
    b"h\0",
    b"h\1",
    b"h\2",
    b"q\0",
    b"q\1",
    b"K\1",
    b"X\1\0\0\0a",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4NtQ",
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.arg is None),
]


def test_one_input(data: bytes) -> None:
    """Read the bytes as weights; anything but arrays, or an InputError, of bounded size is a finding."""
    if data[:1] == b"p":
        pairs = zip(data[1::2], data[2::2], strict=False)
        words = b"".join(WORDS[word % len(WORDS)] * (1 + times % 64) for word, times in pairs)
        data = pickles(MAGIC, PROTOCOL, {}) + b"\x80\2" + words[:LONGEST] + b"."
    FILE.write_bytes(data)
    tracemalloc.start()
    try:
        read = read_torch_weights(FILE)
    except InputError as error:
        if str(error) != one_line(str(error)):
            raise RuntimeError(f"more than a line: {error!r}") from error
        read = {}
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if sum(array.nbytes for array in read.values()) > 4 * len(data):
        raise RuntimeError("tensors larger than their file by far")
    if peak > 2**20 + 300 * len(data):
        raise RuntimeError(f"{peak:,} bytes of memory for {len(data):,} of the file")


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
