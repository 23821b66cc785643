"""Pictures that were looked at, on disk: a killed conversion goes on where it stopped.

``spool`` holds the pictures' bytes, each followed by its thumbnail; ``journal`` a line a picture. Both only grow, and
a line is written when its bytes are. What a kill or a crash has torn is cut off by checksums before anything is used.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from graftflow.audit import Audited, Facts, LeftOut
from graftflow.caches import key_of, unfinished_work
from graftflow.near_duplicates import THUMBNAIL_BYTES
from graftflow.pictures import Picture
from graftflow.records import Span, Spool
from graftflow.storage import writing

# Part of the key: a change of the audit or of the lines makes earlier journals unknown, not wrong.
LAYOUT = 2


@dataclass(frozen=True, slots=True)
class Stored:
    """A usable picture whose bytes lie in the spool."""

    path: str
    label: str
    split: str
    group: str
    facts: Facts
    span: Span


@dataclass(frozen=True, slots=True)
class Entry:
    """What an earlier run found: facts and a place in the spool, or the reason why a picture is left out."""

    stamp: str
    sha256: str
    facts: Facts | None
    reason: str
    span: Span


class Conversion:
    """The pictures found so far.

    Args:
        folder: an existing folder for the spool and, where ``resume``, the journal.
        resume: take over what an earlier run left in the folder, and keep a journal for a later one.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self._folder, self._resume = folder, resume
        self._entries: dict[str, Entry] = {}
        end = self._take_over() if resume else 0
        self._spool = Spool(folder / "spool", end=end)
        self._journal: IO[bytes] | None = (folder / "journal").open("ab", buffering=0) if resume else None

    def __enter__(self) -> "Conversion":
        return self

    def __exit__(self, *error: object) -> None:
        self._spool.__exit__(*error)
        if self._journal is not None:
            self._journal.close()

    @property
    def spool(self) -> Spool:
        """The spool, for reading."""
        return self._spool

    @property
    def known(self) -> int:
        """How many pictures an earlier run has looked at."""
        return len(self._entries)

    def recall(self, picture: Picture, sha256: str) -> Entry | None:
        """Return what an earlier run found, if the picture is still the same: by its stamp or, if given, its bytes."""
        entry = self._entries.get(picture.path)
        if entry is None:
            return None
        return entry if entry.sha256 == sha256 or (not sha256 and entry.stamp == picture.stamp) else None

    def keep(self, picture: Picture, result: Audited | LeftOut | Entry) -> Stored | LeftOut:
        """Write a result down, unless an earlier run did, and return it without its bytes."""
        if isinstance(result, Entry):
            entry = result
        elif self._resume:
            with writing(self._folder):
                entry = self._write(picture, result)
        else:
            entry = self._write(picture, result)
        if entry.facts is None:
            return LeftOut(picture.path, picture.label, entry.reason, entry.sha256)
        return Stored(picture.path, picture.label, picture.split, picture.group, entry.facts, entry.span)

    def thumbnail(self, stored: Stored) -> bytes:
        """Return the 1,024 grey bytes of a picture whose ``facts.hash`` is not -1."""
        return self._spool.get(Span(stored.span.offset + stored.span.length, THUMBNAIL_BYTES))

    def _write(self, picture: Picture, result: Audited | LeftOut) -> Entry:
        if isinstance(result, LeftOut):
            # What could not be read may be readable next time.
            if result.sha256:
                self._note(picture, {"sha256": result.sha256, "reason": result.reason})
            return Entry(picture.stamp, result.sha256, None, result.reason, Span(0, 0))
        data = result.data + result.thumbnail
        span = Span(self._spool.add(data).offset, len(result.data))
        facts = dataclasses.asdict(result.facts)
        self._note(
            picture, {"facts": facts, "offset": span.offset, "length": span.length, "crc": zlib.crc32(data)}
        )
        return Entry(picture.stamp, result.facts.sha256, result.facts, "", span)

    def _note(self, picture: Picture, about: dict[str, Any]) -> None:
        if self._journal is not None:
            text = json.dumps({"path": picture.path, "stamp": picture.stamp, **about}).encode()
            self._journal.write(b"%08x %s\n" % (zlib.crc32(text), text))

    def _take_over(self) -> int:
        """Read the journal up to the first line that is torn or whose bytes are not there; return the spool's end."""
        journal, spool = self._folder / "journal", self._folder / "spool"
        journal.touch()
        spool.touch()
        good = end = 0
        with journal.open("rb") as lines, spool.open("rb") as pictures:
            for line in lines:
                checksum, _, text = line.removesuffix(b"\n").partition(b" ")
                if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                    break
                about = json.loads(text)
                span = Span(about.get("offset", 0), about.get("length", 0))
                facts = Facts(**about["facts"]) if "facts" in about else None
                if facts is not None:
                    pictures.seek(span.offset)
                    data = pictures.read(span.length + (THUMBNAIL_BYTES if facts.hash >= 0 else 0))
                    if zlib.crc32(data) != about["crc"]:
                        break
                    end = span.offset + len(data)
                sha256 = facts.sha256 if facts else about["sha256"]
                entry = Entry(about["stamp"], sha256, facts, about.get("reason", ""), span)
                self._entries[about["path"]] = entry
                good += len(line)
        os.truncate(journal, good)
        return end


@contextmanager
def open_conversion(
    scratch: Path, *, cache: str | Path | None, source: str, finished: ExitStack | None = None
) -> Iterator[Conversion]:
    """Open the conversion of a source.

    Args:
        scratch: an existing folder for a conversion that no later run takes over; the caller removes it.
        cache: the folder of :func:`graftflow.caches.open_cache` that keeps the conversion of a killed run; ``None``:
            none is kept. Where another run holds the same conversion, or the folder cannot be locked, this one works
            in ``scratch``.
        source: what is converted; together with the versions of the decoders it names the conversion.
        finished: a kept conversion is removed when this is closed without an error; ``None``: when the block ends
            well.

    Raises:
        InputError: the cache cannot be written.
    """
    with ExitStack() as own:
        folder = None
        if cache is not None:
            stack = own if finished is None else finished
            folder = stack.enter_context(unfinished_work(cache, "conversions", _key(source)))
            if folder is None:
                print("Another run converts the same pictures: this one starts from nothing.", flush=True)
        place = scratch if folder is None else folder
        with writing(place):
            conversion = Conversion(place, resume=folder is not None)
        with conversion:
            if conversion.known:
                print(f"{conversion.known:,} pictures were looked at by an earlier run", flush=True)
            yield conversion


def _key(source: str) -> str:
    from importlib.metadata import version

    return key_of([LAYOUT, source, version("pillow"), version("tensorflow")])
