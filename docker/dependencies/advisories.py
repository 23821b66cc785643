"""What advisories say of the locked releases, and advisories in files: OSV's records, compared without a network."""

import json
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from dependencies.lock_files import Release

# At one version: what ends with it comes before what begins with it, and what ends after it comes last.
_EVENTS = ("fixed", "introduced", "last_affected")


@dataclass(frozen=True)
class Answer:
    """What was learnt of the releases that were asked about.

    Attributes:
        answered: those of which something is known.
        vulnerable: a release and one line of it, a finding.
        reason: why one of the others is not among ``answered``; ``""`` where there is none.
        by: who answered.
    """

    answered: frozenset[Release] = frozenset()
    vulnerable: tuple[tuple[Release, str], ...] = ()
    reason: str = ""
    by: str = ""


class UndecidedError(ValueError):
    """A record does not say in versions which releases it means; the message tells what it says."""


def compare(releases: Collection[Release], place: Path) -> Answer:
    """Compare releases with records of OSV's database, ecosystem PyPI, as version 1 of its schema has them.

    Args:
        releases: what is asked about.
        place: a folder of ``*.json``, or a zip of them, such as OSV publishes for an ecosystem (``PyPI/all.zip``). Only
            what it holds is known: a release that no record names counts as answered.

    Raises:
        ValueError: where it is neither, a record cannot be read, or none is of PyPI.
    """
    asked: dict[str, list[Release]] = {}
    for release in releases:
        asked.setdefault(release.name, []).append(release)
    vulnerable: list[tuple[Release, str]] = []
    undecided: dict[Release, str] = {}
    count, newest = 0, ""
    for where, content in _files(place):
        try:
            record = json.loads(content)
            advisory = str(record["id"])
            entries = [(_name(entry), entry) for entry in record.get("affected") or ()]
            if not any(name for name, _ in entries):
                continue
            count, newest = count + 1, max(newest, str(record.get("modified", "")))
            if record.get("withdrawn"):
                continue
            pairs = [(release, entry) for name, entry in entries for release in asked.get(name, ())]
            for release, entry in pairs:
                try:
                    if is_affected(release.version, entry):
                        mended = ", ".join(_mended(entry)) or "no release yet"
                        vulnerable.append((release, f"{advisory} (mended in {mended})"))
                except UndecidedError as error:
                    undecided[release] = f"{advisory} of {release}: {error}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"an advisory must be a record of OSV in JSON. Received: {where} ({type(error).__name__}: {error})"
            ) from error
    if not count:
        raise ValueError(f"advisories must be OSV's records of PyPI. Received: none in {place}")
    return Answer(
        frozenset(releases) - undecided.keys(),
        tuple(dict.fromkeys(vulnerable)),  # a record may name a release in several entries
        next(iter(undecided.values()), ""),
        f"{count} records of OSV in {place.name}, the newest of {newest[:10] or 'no date'}",
    )


def is_affected(version: str, entry: Mapping[str, Any]) -> bool:
    """Return whether an entry of a record's ``affected`` means a version, as OSV's schema evaluates it.

    Args:
        version: as PEP 440 has it.
        entry: its package is not looked at.

    Raises:
        UndecidedError: where it lists no versions and no ranges of them, or a range's end is not as PEP 440 has it.
    """
    listed = entry.get("versions") or ()
    # Ranges of git commits cannot be compared with a version; OSV tells the versions beside them.
    ranges = [each for each in entry.get("ranges") or () if each["type"] != "GIT"]
    if not listed and not ranges:
        raise UndecidedError("it names no versions")
    return any(_same(version, each) for each in listed) or any(
        _in_range(Version(version), each["events"]) for each in ranges
    )


def _in_range(version: Version, events: Collection[Mapping[str, str]]) -> bool:
    affected = False
    ends = [(kind, event[kind]) for event in events for kind in _EVENTS if kind in event]
    for kind, end in sorted(ends, key=lambda pair: (_rank(pair[1]), _EVENTS.index(pair[0]))):
        if kind == "introduced" and _rank(end) <= (True, version):
            affected = True
        elif (kind == "fixed" and version >= Version(end)) or (
            kind == "last_affected" and version > Version(end)
        ):
            affected = False
    return affected


def _rank(end: str) -> tuple[bool, Version]:
    """What a range's end is sorted by: 0 stands before every version, before 0.dev0 too."""
    try:
        return end != "0", Version(end)
    except InvalidVersion as error:
        raise UndecidedError(f"a range ends at '{end}', which is not a version of PEP 440") from error


def _same(version: str, listed: str) -> bool:
    try:
        return Version(version) == Version(listed)
    except InvalidVersion:  # of before PEP 440, as no locked version is
        return False


def _name(entry: Mapping[str, Any]) -> str:
    """The distribution that an entry is of, in the index's normal form; ``""`` where it is not of PyPI."""
    package = entry.get("package") or {}
    return canonicalize_name(package["name"]) if package.get("ecosystem") == "PyPI" else ""


def _mended(entry: Mapping[str, Any]) -> list[str]:
    ranges = [each for each in entry.get("ranges") or () if each["type"] != "GIT"]
    return [event["fixed"] for each in ranges for event in each["events"] if "fixed" in event]


def _files(place: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every record."""
    try:
        if place.is_dir():
            for path in sorted(place.rglob("*.json")):
                yield str(path), path.read_bytes()
            return
        with zipfile.ZipFile(place) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield f"{place}:{name}", archive.read(name)
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # RuntimeError: encrypted
        raise ValueError(
            f"advisories must be a folder or a zip of OSV's records. Received: {place} ({error})"
        ) from error
