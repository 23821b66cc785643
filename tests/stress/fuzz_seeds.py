"""Write what the fuzzers begin with, good inputs of each kind: ``python tests/stress/fuzz_seeds.py build/fuzz/corpus``.

Coverage finds the way from a good archive to a bad one in minutes, and from nothing to a good one in days.
"""

import io
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from graftflow.serving.messages import TensorProto
from pipelines.settings import DEFAULT
from tests.unit import torch_files

_NAMES = ("cat/1.jpg", "dog/\N{LATIN SMALL LETTER A WITH DIAERESIS}.png", "readme")


def archives() -> list[bytes]:
    """Zips, stored and deflated, and tars of each format, with and without gzip; with long names."""
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name in _NAMES:
                archive.writestr(name, b"pixels" * 20)
        found.append(buffer.getvalue())
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for mode in ("w", "w:gz"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode=mode, format=kind) as archive:
                for name in (*_NAMES, "b" * 99 if kind == tarfile.USTAR_FORMAT else "b" * 150):
                    entry = tarfile.TarInfo(name)
                    entry.size = 6
                    archive.addfile(entry, io.BytesIO(b"pixels"))
            found.append(buffer.getvalue())
    return found


def weights() -> list[bytes]:
    """A file of two tensors, and of two that share a storage."""
    files, tensor = torch_files, torch_files.Tensor
    storages = [{"0": np.arange(6.0), "1": np.ones(4)}, {"0": np.arange(6.0)}]
    states = [
        {
            "a": tensor(files.Storage("0", 6), 0, (2, 3), (3, 1)),
            "b": tensor(files.Storage("1", 4), 0, (4,), (1,)),
        },
        {
            "a": tensor(files.Storage("0", 6), 0, (6,), (1,)),
            "b": tensor(files.Storage("0", 6), 2, (2, 2), (2, 1)),
        },
    ]
    with tempfile.TemporaryDirectory() as folder:
        pairs = zip(states, storages, strict=True)
        return [files.write(Path(folder) / "weights", *pair).read_bytes() for pair in pairs]


def answers() -> list[bytes]:
    """Each of the four that the first byte chooses: rows, tensors, ``Retry-After``, requests."""
    tensor = TensorProto(dtype=1, float_val=[0.5, 0.25])
    tensor.tensor_shape.dim.add(size=2)
    packed = TensorProto(dtype=1, tensor_content=b"\0\0\0\x3f" * 2)
    packed.tensor_shape.CopyFrom(tensor.tensor_shape)
    return [
        b'j{"classes": ["cat", "dog"], "scores": [0.75, 0.25]}',
        b'j{"probabilities": [0.75, 0.25], "label": "cat", "class_index": 0}',
        b"t" + tensor.SerializeToString(),
        b"t" + packed.SerializeToString(),
        b"r7",
        b"rWed, 21 Oct 2015 07:28:00 GMT",
        b'f{"instances": [[1.0, 2], [3, 4e2]]}',
        b'x{"signature_name": "serving_default", "instances": [{"x": {"b64": "aGk="}, "y": 3}]}',
        b'x{"inputs": {"x": ["a", {"b64": "aGk="}], "y": [1, 2]}}',
    ]


def settings() -> list[bytes]:
    """Each of the six that the first byte chooses: radii, schedules, sources, mirrors, labels, settings files."""
    texts = ("e1/255,4/255,0.5", "c30 4 * * 1-5", "sdirectory:photos", "sarchive:pets.zip")
    table = "lpath,label\n1.jpg,cat\n2.jpg,dog\n"
    return [*(text.encode() for text in (*texts, "mhttps://a.b/c", table)), b"y" + DEFAULT.read_bytes()]


def main(corpus: Path) -> None:
    """Write a folder a fuzzer below ``corpus``."""
    for make in (archives, weights, answers, settings):
        folder = corpus / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(make()):
            (folder / f"seed-{number}").write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
