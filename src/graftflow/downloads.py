"""Download a file over a bad network: resumed, tried again, from one source after the other, and checked."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from graftflow import header_values
from graftflow.addresses import shown
from graftflow.errors import InputError
from graftflow.files import sha256_file, sync, write_json
from graftflow.locks import locked
from graftflow.storage import writing
from graftflow.transfers import (
    TIMEOUT,
    GivenUpError,
    Origin,
    Part,
    PassingError,
    cause,
    fetch_store,
    try_http,
)

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before the tries that follow one that brought nothing new
LONGEST_PAUSE = 120.0  # seconds: what a server may ask for with Retry-After
MOST_TRIES = 500  # of one source, however little each of them brings


class DownloadError(InputError):
    """No source has the file; the message says of each what went wrong."""


def download(
    urls: str | Sequence[str],
    destination: str | Path,
    *,
    sha256: str = "",
    size: int | None = None,
    revalidate: bool = False,
    name: str = "",
) -> str:
    """Fetch a file from the first of its sources that has it; it takes its name when it is complete and right.

    A source is asked again, with growing pauses, after a lost connection or an answer that may change (408, 425,
    429, 5xx; ``Retry-After`` is kept, up to two minutes), as long as tries bring new bytes and five times beyond;
    other answers (404, …) lead to the next source. What came stays in ``NAME.part`` beside the destination, also
    after a kill, and the next call goes on behind it, as far as it is as it came, where the server's file is the same
    (``Range``, ``If-Range``: RFC 9110, sections 13.1.5 and 14.2) or ``sha256`` will prove it. A second process waits
    for the first one. Object stores start anew: their own libraries try again.

    Args:
        urls: sources of the same file, tried in order: ``http(s)://``, or what fsspec knows, e.g. ``gs://``.
        destination: the file to write; its folder is made.
        sha256: 64 hexadecimal digits, or ``""`` where it is not known. A file that is there and has it is taken.
        size: bytes, where known.
        revalidate: keep the file's origin and SHA-256 in ``NAME.origin.json``, and take a file that is there, and
            has this SHA-256, unless its server has another one now. A server that cannot be asked does not matter.
        name: what messages call the file; by default its name at the destination.

    Returns:
        The file's SHA-256, in hexadecimal.

    Raises:
        DownloadError: no source has the file (or it is not the one expected).
        InputError: the disk is full or cannot be written.
    """
    path, sources = Path(destination), [urls] if isinstance(urls, str) else list(urls)
    origin_json = path.with_name(f"{path.name}.origin.json")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _stamp(path)
        with locked(path) as waited:
            if path.is_file():
                digest = sha256_file(path)
                just_made = waited and _stamp(path) != before
                known = Origin.read(origin_json) if revalidate and not sha256 else None
                if sha256 == digest or (just_made and not sha256):
                    return digest
                if known and known.sha256 != digest:
                    print(f"the kept {path.name} is cut or altered, and is fetched again", flush=True)
                elif known and _unchanged(known, path, sources):
                    return digest
                if sha256:
                    path.unlink()  # it is not what it should be, whatever comes now
            part = Part(path, name or path.name)
            try:
                digest, origin = _from_any(sources, part, sha256, size)
                # Else a power cut may keep the name and lose the bytes.
                sync(part.path)
                os.replace(part.path, path)
            finally:
                if not part.size:
                    part.drop()
            if revalidate:  # last: a file beside the origin of the one before it is only fetched again
                write_json(origin_json, asdict(replace(origin, sha256=digest)))
            return digest


def _stamp(path: Path) -> tuple[int, int, int] | None:
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _from_any(sources: Sequence[str], part: Part, sha256: str, size: int | None) -> tuple[str, Origin]:
    problems = []
    for url in sources:
        try:
            return _from_one(url, part, sha256, size)
        except GivenUpError as error:
            problems.append((shown(url), str(error)))
    if len(problems) == 1:
        raise DownloadError(f"Cannot download '{problems[0][0]}': {problems[0][1]}.")
    told = "; ".join(f"'{url}': {problem}" for url, problem in problems)
    raise DownloadError(f"Cannot download '{part.name}' from any of {len(sources)} sources: {told}.")


def _from_one(url: str, part: Part, sha256: str, size: int | None) -> tuple[str, Origin]:
    once_more = False
    while True:
        in_pieces = part.size > 0
        if re.match(r"https?://", url, re.I):
            in_pieces |= _fetch_http(url, part, sha256, size) > 1
        else:
            fetch_store(url, part)
        digest = sha256_file(part.path)
        problem = ""
        if size is not None and part.size != size:
            problem = f"its file has {part.size:,} bytes, not {size:,}"
        elif sha256 and digest != sha256:
            problem = f"its file has the SHA-256 {digest}, not {sha256}"
        if not problem:
            return digest, part.origin or Origin(shown(url))
        part.drop()
        if not in_pieces or once_more:
            raise GivenUpError(problem)
        once_more = (
            True  # pieces of two files may be to blame: from the start, without those of earlier tries
        )


def _fetch_http(url: str, part: Part, sha256: str, size: int | None) -> int:
    """Try one server until it has given everything or is given up; return how many tries it took."""
    best, fruitless, tries = part.size, 0, 0
    while True:
        tries += 1
        try:
            try_http(url, part, sha256=sha256, size=size)
            return tries
        except PassingError as error:
            if part.size > best:
                best, fruitless = part.size, 0
            usual = len(PAUSES) if error.tries is None else min(error.tries, len(PAUSES))
            if fruitless >= usual or tries == MOST_TRIES:
                often = f" ({tries} tries)" if tries > 1 else ""
                raise GivenUpError(f"{error}{often}") from error
            pause = PAUSES[fruitless] if error.pause is None else min(error.pause, LONGEST_PAUSE)
            fruitless += 1
            print(f"download of {part.name}: {error}; next try in {pause:g} s", flush=True)
            time.sleep(pause)


def _unchanged(origin: Origin, path: Path, sources: Sequence[str]) -> bool:
    """Return whether a server still has what was once fetched from it; one that cannot be asked has."""
    import requests

    url = next((url for url in sources if shown(url) == origin.url), None)
    if url is None or origin.length not in (None, path.stat().st_size):
        return False
    if not re.match(r"https?://", url, re.I):
        return _store_size(url) in (None, path.stat().st_size)
    headers = {"Accept-Encoding": "identity"}
    if origin.etag:
        headers["If-None-Match"] = origin.etag
    elif origin.last_modified:
        headers["If-Modified-Since"] = origin.last_modified
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
            if response.status_code == 200:
                length = header_values.whole_number(response.headers.get("Content-Length", ""))
                now = Origin.of(url, response.headers, length)
                return now == replace(origin, sha256="") and bool(now.etag or now.last_modified or now.length)
            if response.status_code == 304:
                return True
            problem = f"status {response.status_code}"
    except (requests.RequestException, ValueError) as error:
        problem = cause(error)
    print(f"'{shown(url)}' cannot be asked ({problem}): the kept {path.name} is taken", flush=True)
    return True


def _store_size(url: str) -> int | None:
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(url)
        return cast("int | None", filesystem.size(inner))
    except Exception:  # every object store has exceptions of its own
        return None
