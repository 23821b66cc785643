"""Keras' model files, written so that the same model gives the same bytes."""

import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from graftflow import files

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip file can tell
_SHARED = re.compile(rb'("shared_object_id": )(\d+)')
_CHUNK = 2**20


def save_model(model: Any, path: str | Path) -> None:
    """Save a model as a ``.keras`` file whose bytes depend on the model alone.

    Keras notes the time, in two places, and addresses in memory, as the names of objects that layers share. Here the
    times are 1980's and the names 1, 2, … in the order of their appearance; weights and architecture are untouched, and
    Keras loads the file as any other.

    Args:
        model: a ``keras.Model``.
        path: the file, which ends with ``.keras``; it appears when it is complete.
    """
    target = Path(path)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.", suffix=".partial", dir=target.parent
    ) as folder:
        saved = Path(folder) / target.name
        model.save(saved)
        with (
            files.atomic_file(target) as aside,
            zipfile.ZipFile(saved) as source,
            zipfile.ZipFile(aside, "w") as copy,
        ):
            for entry in source.infolist():
                _copy(source, entry, copy)


def _copy(source: zipfile.ZipFile, entry: zipfile.ZipInfo, copy: zipfile.ZipFile) -> None:
    fixed = zipfile.ZipInfo(entry.filename, _EPOCH)
    fixed.compress_type, fixed.external_attr = entry.compress_type, entry.external_attr
    if entry.filename == "metadata.json":
        metadata = json.loads(source.read(entry))
        copy.writestr(fixed, json.dumps({**metadata, "date_saved": "1980-01-01@00:00:00"}))
    elif entry.filename == "config.json":
        copy.writestr(fixed, _renamed(source.read(entry)))
    else:
        with (
            source.open(entry) as content,
            copy.open(fixed, "w", force_zip64=entry.file_size >= 2**31) as written,
        ):
            while chunk := content.read(_CHUNK):
                written.write(chunk)


def _renamed(config: bytes) -> bytes:
    numbers: dict[bytes, int] = {}
    return _SHARED.sub(
        lambda found: found[1] + str(numbers.setdefault(found[2], len(numbers) + 1)).encode(), config
    )
