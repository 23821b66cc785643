"""The pictures of a challenge: any source, and folders that could be no data set; sampled, then audited."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from graftflow.audit import Audited, LeftOut, audit
from graftflow.errors import InputError
from graftflow.folders import MAXIMUM_FILE_BYTES, SYSTEM_FILES, check_folder
from graftflow.pictures import Picture, Source, Unusable
from graftflow.progress import track
from graftflow.records import Span, Spool
from graftflow.sources import open_source, parse_source


@dataclass(frozen=True)
class Challenger:
    """One usable picture of a challenge.

    Attributes:
        path: its name in the source.
        label: name of its class, ``""`` where the source has no classes.
        sha256: of the source's bytes.
        span: where its bytes, a JPEG or PNG that TensorFlow decodes, stand in the spool.
    """

    path: str
    label: str
    sha256: str
    span: Span


@dataclass(frozen=True)
class Challengers:
    """What was read of a source.

    Attributes:
        pictures: the usable ones of the sample, in the source's order, at least one.
        left_out: the unusable ones of the sample, path and reason.
        available: how many pictures the source has.
        note: what a reader of the figures should know, or ``""``.
    """

    pictures: tuple[Challenger, ...]
    left_out: tuple[tuple[str, str], ...]
    available: int
    note: str


def read_challengers(
    source: str,
    *,
    num_pictures: int,
    seed: int,
    scratch: Path,
    spool: Spool,
    cache: str | Path | None = None,
    mirrors: Sequence[str] = (),
) -> Challengers:
    """Take a sample of a source, audit it and keep the bytes of what can be decoded.

    Args:
        source: as for :func:`graftflow.sources.parse_source`; a ``directory:PATH`` may also hold pictures without
            class folders, a single class, or fewer than three pictures a class.
        num_pictures: how many pictures to take at most, ≥ 1; each class gives its share.
        seed: fixes which.
        scratch: an existing folder for what is downloaded and unpacked.
        spool: receives the bytes.
        cache: the folder that outlives a step.
        mirrors: addresses that are asked before the source's own.

    Raises:
        InputError: an unknown or missing source, or one without a usable picture.
    """
    opening = partial(_open, source, scratch=scratch, cache=cache, mirrors=mirrors)
    # Pictures of TensorFlow Datasets carry their bytes: first only their names are kept, then they are read again.
    carries_bytes = parse_source(source)[0] == "tfds"
    with opening() as opened, warnings.catch_warnings():
        # The audit says what is wrong with a picture; Pillow's remarks would only repeat it.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        listed = [Picture(p.path, p.label, _gone) if carries_bytes else p for p in opened.pictures]
        chosen = stratified([picture.label for picture in listed], num_pictures, seed=seed)
        second: AbstractContextManager[Source | None] = opening() if carries_bytes else nullcontext()
        with second as again:
            wanted = (
                (listed[i] for i in sorted(chosen))
                if again is None
                else (picture for i, picture in enumerate(again.pictures) if i in chosen)
            )
            kept, left_out = [], []
            for result in track(audit(wanted), "audit of the challenge", total=len(chosen), unit="pictures"):
                if isinstance(result, LeftOut):
                    left_out.append((result.path, result.reason))
                else:
                    kept.append(_spooled(result, spool))
        note = opened.note.replace(" and split anew", "")
    if not kept:
        first = f" First: '{left_out[0][0]}' {left_out[0][1]}." if left_out else ""
        raise InputError(
            f"A challenge needs at least one picture that can be decoded. '{source}' has none among "
            f"{len(listed)}.{first}"
        )
    return Challengers(tuple(kept), tuple(left_out), len(listed), note)


def stratified(labels: Sequence[str], count: int, *, seed: int, every_class: bool = False) -> set[int]:
    """Choose items so that each class gives its share, up to rounding.

    Args:
        labels: the class of every item.
        count: how many to choose; all where there are no more.
        seed: fixes the choice.
        every_class: add one item of each class that would get none, so that there may be more than ``count``.

    Returns:
        The indices chosen.
    """
    total = len(labels)
    if count >= total:
        return set(range(total))
    generator = np.random.PCG64(seed)
    names = np.unique(np.asarray(labels), return_inverse=True)[1]
    keys: npt.NDArray[Any] = generator.random_raw(total)
    order = np.lexsort((keys, names))
    # At even distances in an order by class: every class gets its share, from a start that favours none.
    start = int(generator.random_raw()) % total
    chosen = {int(order[(start + i * total) // count % total]) for i in range(count)}
    if every_class:
        present = set(names[list(chosen)].tolist())
        first = order[np.unique(names[order], return_index=True)[1]]
        chosen |= {int(i) for name, i in enumerate(first) if name not in present}
    return chosen


@contextmanager
def _open(
    source: str, *, scratch: Path, cache: str | Path | None, mirrors: Sequence[str]
) -> Iterator[Source]:
    kind, value = parse_source(source)
    root = Path(value).expanduser()
    if kind == "directory" and root.is_dir() and not _is_dataset(root):
        yield _open_loose(root)
        return
    with open_source(source, scratch=scratch, cache=cache, mirrors=mirrors) as opened:
        yield opened


def _is_dataset(root: Path) -> bool:
    try:
        check_folder(root)
    except InputError:
        return False
    return True


def _open_loose(root: Path) -> Source:
    """Open a folder that is no data set: files beside each other, or in class folders of any size."""
    files = sorted(
        file
        for file in root.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(root).parts)
        and file.name.lower() not in SYSTEM_FILES
    )
    if not files:
        raise InputError(
            f"A challenge needs at least one picture. Received: '{root}', a folder without files."
        )
    pictures = []
    for file in files:
        parts = [part.encode("utf-8", "backslashreplace").decode() for part in file.relative_to(root).parts]
        pictures.append(Picture("/".join(parts), parts[0] if len(parts) > 1 else "", partial(_read, file)))
    return Source(iter(pictures), len(pictures))


def _read(file: Path) -> bytes:
    size = file.stat().st_size
    if size > MAXIMUM_FILE_BYTES:
        raise Unusable(f"has {size:,} bytes, more than {MAXIMUM_FILE_BYTES:,}")
    return file.read_bytes()


def _gone() -> bytes:
    raise Unusable("was not kept")


def _spooled(picture: Audited, spool: Spool) -> Challenger:
    return Challenger(picture.path, picture.label, picture.facts.sha256, spool.add(picture.data))
