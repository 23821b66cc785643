"""The reader of torch weights, of any bytes: tensors or one line of refusal; nothing runs, memory stays bounded."""

import pickletools
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftflow.errors import InputError
from graftflow.pretrained import read_torch_weights
from tests.unit.properties import changed, examples, refusal_or
from tests.unit.torch_files import (
    DICT_OF_LIST,
    LIST,
    MAGIC,
    PAIR,
    PAIR_OF_PAIRS,
    PROTOCOL,
    Storage,
    Tensor,
    pickles,
    write,
)

ran: list[object] = []


def run(*given: object) -> None:
    """What a weights file must not be able to call."""
    ran.append(given)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "weights.pth"


@pytest.fixture(scope="module")
def good(path: Path) -> bytes:
    first, second = Storage("0", 24), Storage("1", 6)
    state = OrderedDict(
        whole=Tensor(first, 0, (2, 3, 4), (12, 4, 1)),
        turned=Tensor(first, 0, (4, 3), (1, 4)),
        scalar=Tensor(second, 5, (), ()),
    )
    return write(path, state, {"0": np.arange(24.0), "1": np.arange(6.0)}).read_bytes()


def assert_tensors_or_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    tracemalloc.start()
    try:
        found = refusal_or(lambda: read_torch_weights(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if not isinstance(found, InputError):
        assert all(isinstance(name, str) for name in found)
        assert sum(array.nbytes for array in found.values()) <= 4 * len(data)
    assert not ran
    assert peak < 2**20 + 300 * len(data)


@given(data=st.data())
@examples(1.5)
def test_a_changed_file_is_read_or_refused(path: Path, good: bytes, data: st.DataObject) -> None:
    assert_tensors_or_refused(path, data.draw(changed(good)))


_NAMES = st.sampled_from(
    [
        "tests.unit.test_pretrained_properties\nrun\n",
        "builtins\nexec\n",
        "torch._utils\n_rebuild_tensor_v2\n",
        "torch\nFloatStorage\n",
        "torch\nLongStorage\n",
        "collections\nOrderedDict\n",
    ]
).map(lambda name: b"c" + name.encode())
_OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
_PIECES = st.one_of(
    st.sampled_from(_OPCODES),
    _NAMES,
    st.integers(0, 255).map(lambda n: b"K" + bytes([n])),
    st.integers(0, 3).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 3).map(lambda n: b"h" + bytes([n])),
    st.integers(0, 2**32 - 1).map(lambda n: b"r" + struct.pack("<I", n)),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: b"J" + struct.pack("<i", n)),
    st.text(max_size=6).map(lambda text: text.encode()).map(lambda t: b"X" + struct.pack("<I", len(t)) + t),
    st.just(b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4NtQ"),
    st.integers(1, 200).map(lambda times: LIST + DICT_OF_LIST * times),
    st.tuples(st.integers(1, 16), st.sampled_from([b"", b"X\1\0\0\0ah\2\x93", b"K\1R"])).map(
        lambda drawn: PAIR + PAIR_OF_PAIRS * drawn[0] + drawn[1]
    ),
    st.binary(max_size=8),
)


@given(pieces=st.lists(_PIECES, max_size=40), behind=st.binary(max_size=40), state=st.booleans())
@examples(1.5)
def test_any_program_for_pickles_machine_is_read_or_refused(
    path: Path, pieces: list[bytes], behind: bytes, state: bool
) -> None:
    start = pickles(MAGIC, PROTOCOL, {}) if state else b""
    assert_tensors_or_refused(path, start + b"\x80\2" + b"".join(pieces) + b"." + behind)


@given(
    shape=st.lists(st.integers(0, 4), max_size=5),
    order=st.randoms(use_true_random=False),
    offset=st.integers(0, 7),
)
def test_what_is_written_is_read_back(path: Path, shape: list[int], order: object, offset: int) -> None:
    """Any order of the axes in memory, any offset: the same tensor as numpy makes of it."""
    axes = list(range(len(shape)))
    order.shuffle(axes)  # type: ignore[attr-defined]
    count = int(np.prod(shape)) if shape else 1
    values = np.arange(offset + count, dtype=np.float32)
    expected = values[offset:].reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
    strides = tuple(stride // 4 for stride in expected.strides)
    state = OrderedDict(t=Tensor(Storage("0", len(values)), offset, tuple(shape), strides))
    # The file is not empty where the tensor is.
    padding = Tensor(Storage("1", 99), 0, (99,), (1,))
    read = read_torch_weights(write(path, OrderedDict(state, p=padding), {"0": values, "1": np.zeros(99)}))
    np.testing.assert_array_equal(read["t"], expected)
