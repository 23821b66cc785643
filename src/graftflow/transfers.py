"""One try at one source: what is asked for, what its answer means, and where the bytes wait for the next try."""

import hashlib
import os
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from graftflow import header_values
from graftflow.addresses import shown
from graftflow.errors import InputError
from graftflow.files import read_json, write_json
from graftflow.progress import Progress
from graftflow.storage import UNWRITABLE

CHUNK = 2**18
MIB = 2**20
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two packets
PASSING = {408, 425, 429}  # and 5xx: answers that may change
UNREACHABLE_TRIES = 2  # more of a host that is unknown or refuses: it is seldom back within a minute


class GivenUpError(Exception):
    """This source will not give the file."""


class PassingError(Exception):
    """This source may give the file at another try.

    Attributes:
        pause: seconds to wait before it, or ``None`` for the usual.
        tries: how many more there may be, or ``None`` for the usual.
    """

    def __init__(self, reason: str, *, pause: float | None = None, tries: int | None = None) -> None:
        super().__init__(reason)
        self.pause, self.tries = pause, tries


@dataclass(frozen=True)
class Origin:
    """Where bytes came from: what a later try must find unchanged to go on with them.

    Of a whole file also what they were: ``sha256``.
    """

    url: str
    etag: str = ""
    last_modified: str = ""
    length: int | None = None
    sha256: str = ""

    @property
    def validator(self) -> str:
        """What ``If-Range`` takes: a strong ETag or else the time of change (RFC 9110, section 13.1.5)."""
        return self.etag if self.etag.startswith('"') else self.last_modified

    @classmethod
    def read(cls, path: Path) -> "Origin | None":
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def of(cls, url: str, headers: Any, length: int | None) -> "Origin":
        etag, changed = headers.get("ETag", ""), headers.get("Last-Modified", "")
        return cls(shown(url), header_values.validator(etag), header_values.validator(changed), length)


class Part:
    """The unfinished file beside the destination, ``NAME.part``, and what is known of it.

    ``NAME.part.json`` is its origin, ``NAME.part.sums`` has length and SHA-256 of each chunk in the order in which they
    came. What an earlier process left is cut to the chunks that are still so: a disk may have changed it, and without a
    checksum of the whole nobody would find out.
    """

    def __init__(self, destination: Path, name: str) -> None:
        self.path = destination.with_name(f"{destination.name}.part")
        self._json = destination.with_name(f"{destination.name}.part.json")
        self._sums = destination.with_name(f"{destination.name}.part.sums")
        self.name = name
        self._cut()

    def _cut(self) -> None:
        size, good, lines = self.size, 0, 0
        if not size:
            return
        sums = self._sums.read_bytes() if self._sums.is_file() else b""
        with self.path.open("rb") as file:
            for match in re.finditer(rb"(\d{1,7}) ([0-9a-f]{64})\n", sums):
                length = int(match[1])
                data = file.read(length) if match.start() == lines and length <= MIB else b""
                if hashlib.sha256(data).hexdigest().encode() != match[2]:
                    break
                good, lines = good + length, match.end()
        if good < size:
            print(
                f"download of {self.name}: {size - good:,} bytes of an earlier try are cut or altered",
                flush=True,
            )
            os.truncate(self.path, good)
        if lines < len(sums):  # a line too many, and those that follow it would stand for other bytes
            os.truncate(self._sums, lines)

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def origin(self) -> Origin | None:
        return Origin.read(self._json)

    def begin(self, origin: Origin) -> None:
        """Empty the file before its new origin is noted: a kill between the two loses bytes, not truth."""
        self.path.open("wb").close()
        self._sums.open("wb").close()
        write_json(self._json, asdict(origin))

    def append(self, chunks: Iterator[bytes]) -> Generator[bytes]:
        """Yield chunks of at most 1 MiB, each once it is written behind what is there.

        A chunk is handed to the system before its sum, so that a kill leaves no sum of bytes that are gone.
        """
        with self.path.open("ab") as file, self._sums.open("ab", buffering=0) as sums:
            for chunk in chunks:
                file.write(chunk)
                file.flush()
                sums.write(b"%d %s\n" % (len(chunk), hashlib.sha256(chunk).hexdigest().encode()))
                yield chunk

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self._sums.unlink(missing_ok=True)
        self._json.unlink(missing_ok=True)


def try_http(url: str, part: Part, *, sha256: str, size: int | None) -> None:
    """Ask once, for what is missing where that can be trusted, and append what comes to ``part``.

    Bytes of an earlier try are trusted where the server says that its file is the same (``If-Range``), or where
    ``sha256`` will prove the whole.

    Raises:
        GivenUpError: the source has not got the file.
        PassingError: another try may bring it, or what is missing of it.
        InputError: the disk has no room for the file.
    """
    import requests
    from urllib3.exceptions import HTTPError

    start, origin = part.size, part.origin
    headers = {"Accept-Encoding": "identity"}
    same = origin is not None and origin.url == shown(url) and origin.validator != ""
    if start and origin is not None and (same or sha256) and start <= (origin.length or start):
        headers["Range"] = f"bytes={start}-"
        if same:
            headers["If-Range"] = origin.validator
    else:
        start = 0
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
            total = _accept(response, url, part, start, origin if same else None)
            if total is not None and size is not None and total != size:
                part.drop()
                raise GivenUpError(f"its file has {total:,} bytes, not {size:,}")
            if total != part.size:
                _room(part, total)
                _copy(iter(lambda: response.raw.read1(CHUNK, decode_content=False), b""), part, total or size)
    except InputError:
        raise
    except (requests.RequestException, HTTPError, ValueError) as error:
        raise _reading(error) from error
    if total is not None and part.size < total:
        raise PassingError("the connection ended before the file did")
    if total is not None and part.size > total:
        part.drop()
        raise PassingError("it sends more bytes than it says")


def _accept(response: Any, url: str, part: Part, start: int, origin: Origin | None) -> int | None:
    """Judge an answer; return the whole file's length, where told, and leave ``part`` fit to be appended to."""
    status, headers = response.status_code, response.headers
    told = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    total = header_values.whole_number(told[2]) if told else None
    if status == 200:
        total = header_values.whole_number(headers.get("Content-Length", ""))
        part.begin(Origin.of(url, headers, total))
        return total
    if status == 416 and start and total == start:
        return total  # the earlier try had already got everything
    if status == 416 or (status == 206 and not (start and told and told[1] == str(start))):
        part.drop()
        answer = f"'{headers.get('Content-Range', '')}' where bytes from {start} were asked for"
        raise PassingError(f"status {status} with {answer}", pause=0)
    if status == 206:
        now = Origin.of(url, headers, total)
        if origin and ((now.etag or origin.etag) != origin.etag or total not in (None, origin.length)):
            part.drop()
            raise PassingError("its file has changed", pause=0)
        return total
    reason = f"status {status} {response.reason or ''}".strip()
    if status in PASSING or status >= 500:
        pause = header_values.retry_after(headers.get("Retry-After", ""), headers.get("Date", ""))
        raise PassingError(reason, pause=pause)
    raise GivenUpError(reason)


def fetch_store(url: str, part: Part) -> None:
    """Fetch a whole file of an object store through fsspec into ``part``.

    Raises:
        GivenUpError: the store has not got the file, or there is no library for it.
        InputError: the disk has no room for the file.
    """
    import fsspec

    try:
        with fsspec.open(url, "rb") as remote:
            stream = cast(IO[bytes], remote)
            length = int(getattr(stream, "size", 0) or 0) or None
            part.begin(Origin(shown(url), length=length))
            _room(part, length)
            _copy(iter(lambda: stream.read(MIB), b""), part, length)
    except InputError:
        raise
    except Exception as error:  # every object store has exceptions of its own
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        raise GivenUpError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    if length is not None and part.size != length:
        raise GivenUpError(f"it gave {part.size:,} of {length:,} bytes")


def _room(part: Part, total: int | None) -> None:
    missing = (total or 0) - part.size
    if missing > (free := shutil.disk_usage(part.path.parent).free):
        raise InputError(
            f"The disk must have room for '{part.name}': {missing:,} bytes more. "
            f"Received: {free:,} free in '{part.path.parent}'."
        )


def _copy(chunks: Iterator[bytes], part: Part, total: int | None) -> None:
    progress = Progress(f"download of {part.name}", total=total // MIB + 1, unit="MiB") if total else None
    done = part.size
    if progress and done >= MIB:
        progress.advance(done // MIB)
    with closing(part.append(chunks)) as appended:
        for chunk in appended:
            if progress and (whole := (done + len(chunk)) // MIB - done // MIB):
                progress.advance(whole)
            done += len(chunk)
            if total is not None and done > total:
                return
    if progress and done == total:
        progress.advance()


def _reading(error: Exception) -> Exception:
    """Return what an error of requests means for the source: another try or none.

    A plain ValueError is what requests makes of an address to go on to that is no text.
    """
    import requests
    from urllib3.exceptions import HTTPError

    text, told = str(error), cause(error)
    hopeless = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.TooManyRedirects)
    garbled = isinstance(error, ValueError) and not isinstance(error, requests.RequestException | HTTPError)
    if isinstance(error, hopeless) or garbled or "CERTIFICATE_VERIFY_FAILED" in text:
        return GivenUpError(told)
    unreachable = "NewConnectionError" in text or "NameResolutionError" in text or "ConnectTimeout" in text
    return PassingError(told, tries=UNREACHABLE_TRIES if unreachable else None)


def cause(error: Exception) -> str:
    """Return the few words of an error of requests or urllib3 that say what happened."""
    text = str(error)
    known = {
        "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted",
        "Name or service not known": "the host is not known",
        "Temporary failure in name resolution": "the host is not known",
        "Failed to resolve": "the host is not known",
        "Connection refused": "the connection was refused",
        "IncompleteRead": "the connection ended before the file did",
        "Connection aborted": "the server closed the connection",
        "Connection broken": "the connection broke",
        "Connection reset": "the server closed the connection",
        "ConnectTimeout": f"no connection in {TIMEOUT[0]:.0f} seconds",
        "timed out": f"no answer in {TIMEOUT[1]:.0f} seconds",
    }
    for pattern, words in known.items():
        if pattern in text:
            return words
    return text.splitlines()[0][:200] if text else type(error).__name__
