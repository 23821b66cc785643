"""The restricted reader of torch weight files: reads tensors, runs nothing."""

import os
import pickle
import struct
import sys
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftflow.efficientnet_lite import package_weights
from graftflow.errors import InputError
from graftflow.pretrained import read_torch_weights
from tests.unit.torch_files import (
    DICT_OF_LIST,
    LIST,
    MAGIC,
    PAIR,
    PAIR_OF_PAIRS,
    PROTOCOL,
    OrderedByPython2,
    Storage,
    Tensor,
    pickles,
    write,
)


def test_reads_shapes_strides_and_offsets(tmp_path: Path) -> None:
    storage, values = Storage("0", 12), np.arange(12, dtype=np.float32)
    state = OrderedDict(
        whole=Tensor(storage, 0, (3, 4), (4, 1)),
        transposed=Tensor(storage, 0, (4, 3), (1, 4)),
        tail=Tensor(storage, 8, (4,), (1,)),
    )
    read = read_torch_weights(write(tmp_path / "w.pth", state, {"0": values}))
    np.testing.assert_array_equal(read["whole"], values.reshape(3, 4))
    np.testing.assert_array_equal(read["transposed"], values.reshape(3, 4).T)
    np.testing.assert_array_equal(read["tail"], values[8:])
    assert list(read) == ["whole", "transposed", "tail"]


def test_reads_the_weights_of_the_package() -> None:
    read = read_torch_weights(package_weights())
    assert len(read) == 296
    assert read["_fc.weight"].shape == (1000, 1280)
    assert all(np.isfinite(array).all() for array in read.values())


def test_reads_what_python_2_wrote(tmp_path: Path) -> None:
    """It gave each OrderedDict a list of its items; with a thousand names and the shortest of pickles."""
    tensor = Tensor(Storage("0", 4), 0, (2, 2), (2, 1))
    tensor.state = (*tensor.state[:-1], OrderedByPython2())
    names = [f"{number:x}" for number in range(1000)]
    state = OrderedByPython2(**dict.fromkeys(names, tensor))
    read = read_torch_weights(write(tmp_path / "w.pth", state, {"0": np.arange(4.0)}))
    assert list(read) == names
    np.testing.assert_array_equal(read["0"], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(Storage("0", 4), 2, (4,), (1,)),
        Tensor(Storage("0", 4), 0, (2, 4), (4, 1)),
        Tensor(Storage("0", 4), 0, (1000000,), (0,)),
        Tensor(Storage("0", 4), -1, (2,), (1,)),
        Tensor(Storage("0", 4), 0, (2,), (-1,)),
        Tensor(Storage("0", 4), 0, (2,), (1, 1)),
    ],
    ids=["offset", "size", "expanded", "negative offset", "negative stride", "ranks"],
)
def test_refuses_a_tensor_beyond_its_storage(tmp_path: Path, tensor: Tensor) -> None:
    path = write(tmp_path / "w.pth", OrderedDict(t=tensor), {"0": np.zeros(4)})
    with pytest.raises(InputError, match="tensors only"):
        read_torch_weights(path)


def test_refuses_two_descriptions_of_one_storage(tmp_path: Path) -> None:
    """Each tensor is checked against its own description: a second, smaller one must not be what is read."""
    state = OrderedDict(
        large=Tensor(Storage("0", 10**10), 0, (10**9,), (10,)), small=Tensor(Storage("0", 4), 0, (4,), (1,))
    )
    with pytest.raises(InputError, match="two descriptions of storage 0"):
        read_torch_weights(write(tmp_path / "w.pth", state, {"0": np.zeros(4)}))


def storage(length: int) -> bytes:
    """A storage in pickle's own words, left on the stack and, as number 1, in the memo."""
    return b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuJ%sNtQq\1" % struct.pack(
        "<i", length
    )


@pytest.mark.parametrize("changed", ["storage", "dtype"])
def test_nothing_changes_what_was_checked(tmp_path: Path, changed: str) -> None:
    """BUILD writes into an object past all its rules: into a storage, or into our own table of dtypes."""
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(h\1K\0J%s\x85K\1\x85\x89Nt" % struct.pack("<i", 10**9) + b"R"
    )
    shorter = b"h\1}X\6\0\0\0lengthK\4sb0"
    poison = b"ctorch\nFloatStorage\n}X\5\0\0\0dtypeX\3\0\0\0<f8sb0"
    start = {"storage": storage(10**9) + b"0", "dtype": poison + storage(10**9) + b"0"}[changed]
    state = (
        b"\x80\2" + start + b"}X\1\0\0\0t" + tensor + b"s" + (shorter if changed == "storage" else b"") + b"."
    )
    path = tmp_path / "w.pth"
    path.write_bytes(pickles(MAGIC, PROTOCOL, {}) + state + pickles(["0"]) + struct.pack("<q", 4) + bytes(16))
    with pytest.raises(InputError, match="POP|as if it were"):
        read_torch_weights(path)
    read = read_torch_weights(
        write(tmp_path / "good.pth", OrderedDict(t=Tensor(Storage("0", 4), 0, (4,), (1,))), {"0": np.ones(4)})
    )
    np.testing.assert_array_equal(read["t"], np.ones(4, np.float32))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\2Nr\0\0\0\x20.",  # a memo of half a billion places
        b"\x80\2X\xff\xff\xff\x7f",  # a text of 2 GiB
        b"\x80\4\x8e" + struct.pack("<Q", 2**40),
        b"\x80\2\x8b\xff\xff\xff\x7f",
        b"\x80\2" + b"}" * 2**16,
        b"\x80\2" + b"(" * 2**16,
        b"I" + b"9" * 2**23,
        LIST + DICT_OF_LIST * 500,
        PAIR + PAIR_OF_PAIRS * 20 + b"X\1\0\0\0ah\2\x93",
        PAIR + PAIR_OF_PAIRS * 20 + b"K\1R",
    ],
    ids=["memo", "text", "bytes", "number", "dicts", "marks", "digits", "one list", "a name", "a function"],
)
def test_a_few_bytes_take_no_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bomb.pth"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="legacy torch state dict"):
            read_torch_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_a_storage_that_many_tensors_share_is_not_multiplied(tmp_path: Path) -> None:
    shared, values = Storage("0", 4096), np.arange(4096.0)
    tied = OrderedDict((f"t{i}", Tensor(shared, 0, (4096,), (1,))) for i in range(3))
    assert len(read_torch_weights(write(tmp_path / "tied.pth", tied, {"0": values}))) == 3
    many = OrderedDict((f"t{i}", Tensor(shared, 0, (4096,), (1,))) for i in range(200))
    with pytest.raises(InputError, match="larger than the file by far"):
        read_torch_weights(write(tmp_path / "many.pth", many, {"0": values}))


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pickles(MAGIC, PROTOCOL) + b"\x80\2}N\x85" + b"q\0h\0\x86" * 60 + b"Ns.")
    with pytest.raises(InputError, match="no text"):
        read_torch_weights(path)


class Malicious:
    """What an attacker would put into a weights file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["state", "value", "system"])
def test_refuses_a_malicious_pickle_and_runs_nothing(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "was-here"
    bad = Malicious(marker)
    path = tmp_path / "bad.pth"
    parts: list[Any] = [MAGIC, PROTOCOL, {}, OrderedDict(), []]
    parts[{"system": 2, "state": 3, "value": 3}[place]] = {"x": bad} if place == "value" else bad
    with open(path, "wb") as file:
        for part in parts:
            pickle.dump(part, file, protocol=2)
    with pytest.raises(InputError, match=f"names {os.system.__module__}.system"):
        read_torch_weights(path)
    assert not marker.exists()
    with open(path, "rb") as file:  # the same file does harm where it is unpickled without care
        pickle.load(file), pickle.load(file)
        pickle.load(file), pickle.load(file)
    assert marker.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.load", "sys.exit"])
def test_refuses_every_other_name(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    path = tmp_path / "bad.pth"
    path.write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(InputError, match=name):
        read_torch_weights(path)


@pytest.mark.parametrize("cut", [1, 16, 40])
def test_refuses_a_file_that_is_cut_short(tmp_path: Path, cut: int) -> None:
    state = OrderedDict(t=Tensor(Storage("0", 4), 0, (4,), (1,)))
    with pytest.raises(InputError):
        read_torch_weights(write(tmp_path / "w.pth", state, {"0": np.zeros(4)}, cut=cut))


def test_refuses_what_is_no_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content in (b"", b"PK\x03\x04zip", b"\x80\x02]q\x00.", os.urandom(1000)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="legacy torch state dict"):
            read_torch_weights(path)
    with pytest.raises(InputError, match="no file"):
        read_torch_weights(tmp_path / "missing.pth")
    assert "torch" not in sys.modules
