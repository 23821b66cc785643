"""Seals: the SHA-256 of every file of an artifact, written with it and checked before a step reads it.

A sealed folder holds ``SHA256SUMS``, in the form of coreutils: ``cd artifact && sha256sum -c SHA256SUMS`` says the same
as :func:`check_seals` of every file that is listed. Single files that only graftflow reads end with their own digest
instead. Importing this module loads no TensorFlow.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from graftflow import files
from graftflow.errors import InputError
from graftflow.progress import Progress

FILE = "SHA256SUMS"
# A backslash before the digest says that one in the name stands for itself or, before n, for a line break.
_LINE = re.compile(r"(\\?)([0-9a-f]{64})  ([^\n]+)")
_TRAILER_BYTES = 32
_CHUNK = 2**20
# Folders up to this size are checked in less than a second on one slow core (500 MB/s), and without a word.
_SILENT_BYTES = 400 * 2**20
_THREADS = min(4, os.cpu_count() or 1)


@contextmanager
def sealed_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that is sealed and takes the name ``path`` when the block ends without an error.

    As :func:`graftflow.files.atomic_directory`; what is in it is on the disk before it has its name, so that a power
    cut leaves no artifact of empty files, and the name is on the disk before what follows.

    Args:
        path: where the finished folder shall be; its parents are made.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    with files.atomic_directory(path) as folder:
        yield folder
        seal(folder)
    files.sync(Path(path).parent)


@contextmanager
def sealed_work(path: str | Path) -> Iterator[tuple[Path, ExitStack]]:
    """Yield what :func:`sealed_directory` yields, and a stack that is closed once the folder has its name.

    What a killed process would take up again is removed by that stack: until all is sealed and in its place it is the
    only copy of hours of work. An error of the block, or of the sealing, is handed on to the stack.

    Args:
        path: where the finished folder shall be; its parents are made.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    with ExitStack() as finished, sealed_directory(path) as folder:
        yield folder, finished


def seal(folder: str | Path) -> None:
    """Write ``SHA256SUMS`` into a folder, over an older one, and wait until all its files are on the disk.

    Args:
        folder: an existing folder.
    """
    root = Path(folder)
    names = sorted(_names(root) - {FILE})
    lines = [_line(name, digest) for name, digest in _digests(root, names, sync=True).items()]
    with files.atomic_file(root / FILE) as aside:
        aside.write_bytes(os.fsencode("".join(lines)))
        files.sync(aside)
    for path in (*(p for p in root.rglob("*") if p.is_dir()), root):
        files.sync(path)


def check_seals(*paths: str | Path) -> None:
    """Check that artifacts are, byte by byte, what their steps wrote, as :func:`find_damage` does.

    Args:
        paths: folders that :func:`sealed_directory` made.

    Raises:
        InputError: an artifact has no seal, or a file of it is missing, not listed, cut or altered.
    """
    if found := find_damage(*paths):
        name, received = found
        raise InputError(
            f"The artifact '{name}' must be as its step wrote it. Received: {received}. Run that step again; "
            "make run does so by itself"
        )


def find_damage(*paths: str | Path) -> tuple[str, str] | None:
    """Look for the first artifact that is not, byte by byte, what its step wrote; long work tells its progress.

    Every file is read once: some 500 MB a second and core. Files whose names begin with a dot are left to file systems
    and file managers; any other that the seal does not list is refused, as a further shard would be read with the rest.

    Args:
        paths: folders that :func:`sealed_directory` made.

    Returns:
        The artifact's name and what is wrong with it; ``None`` where all are intact.
    """
    listed: dict[Path, dict[str, str]] = {}
    for root in map(Path, paths):
        names = _read_listed(root)
        if isinstance(names, str):
            return root.name, names
        listed[root] = names
    total = sum((root / name).stat().st_size for root, names in listed.items() for name in names)
    progress = Progress("check of the inputs", total=max(1, total // 10**6), unit="MB")
    read = told = 0

    def advance(size: int) -> None:
        nonlocal read, told
        read += size
        if total > _SILENT_BYTES and read // 10**6 > told:
            progress.advance(read // 10**6 - told)
            told = read // 10**6

    for root, expected in listed.items():
        try:
            found = _digests(root, sorted(expected), sync=False, advance=advance)
        except OSError as error:  # a disk that fails
            return root.name, f"'{error.filename or root}' that cannot be read ({error.strerror})"
        for name, digest in found.items():
            if digest != expected[name]:
                return (
                    root.name,
                    f"'{root / name}' with the SHA-256 {digest} where {FILE} says {expected[name]}",
                )
    return None


def end_with_digest(path: Path) -> None:
    """Append the SHA-256 of a file's bytes to it, 32 bytes; what reads ``.npy`` and ``.npz`` does not mind them."""
    digest = bytes.fromhex(files.sha256_file(path))
    with path.open("ab") as file:
        file.write(digest)


def ends_with_digest(path: Path) -> bool:
    """Return whether a file is there and is what :func:`end_with_digest` left."""
    try:
        size = path.stat().st_size - _TRAILER_BYTES
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while size > 0 and (chunk := file.read(min(size, _CHUNK))):
                digest.update(chunk)
                size -= len(chunk)
            return size == 0 and file.read() == digest.digest()
    except OSError:
        return False


def _names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def _digests(
    root: Path, names: list[str], *, sync: bool, advance: Callable[[int], None] = lambda size: None
) -> dict[str, str]:
    """Return the SHA-256 of files by name, in the order given; several are read at once."""

    def digest(name: str) -> str:
        path = root / name
        if sync:
            files.sync(path)
        return files.sha256_file(path)

    found = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="seals") as pool:
        for name, value in zip(names, pool.map(digest, names), strict=True):
            found[name] = value
            advance((root / name).stat().st_size)
    return found


def _read_listed(root: Path) -> dict[str, str] | str:
    """Return what a folder's seal says of each file, once all these are there and no others; or what is wrong."""
    if not root.is_dir():
        return f"{'a file' if root.exists() else 'nothing'} at '{root}'"
    try:
        text = os.fsdecode((root / FILE).read_bytes())
    except FileNotFoundError:
        return f"no {FILE} in '{root}', so nobody can tell whether it is whole"
    except OSError as error:
        return f"a '{root / FILE}' that cannot be read ({error})"
    *lines, rest = text.split("\n")
    parsed = [_parsed(line) for line in lines]
    if rest or not lines or not all(parsed):
        return f"a '{root / FILE}' that is cut or altered"
    expected = dict(pair for pair in parsed if pair)
    there = _names(root) - {FILE}
    if missing := sorted(expected.keys() - there):
        return f"no '{root / missing[0]}', which {FILE} lists"
    if unknown := sorted(name for name in there - expected.keys() if not _is_hidden(name)):
        return f"'{root / unknown[0]}', which {FILE} does not list"
    return expected


def _line(name: str, digest: str) -> str:
    """Return a line as coreutils write it."""
    escaped = name.replace("\\", r"\\").replace("\n", r"\n")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _parsed(line: str) -> tuple[str, str] | None:
    """Return name and digest of a line, or ``None`` where it is none."""
    match = _LINE.fullmatch(line)
    if match is None or (not match[1] and "\\" in match[3]):
        return None
    name = (
        re.sub(r"\\([\\n])", lambda found: "\n" if found[1] == "n" else "\\", match[3])
        if match[1]
        else match[3]
    )
    return (name, match[2]) if _line(name, match[2]) == f"{line}\n" else None


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
