"""The lock files: what is pinned, for which environment, by which hashes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packaging.markers import InvalidMarker, Marker
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[2]
RUN, DEVELOPMENT, GPU = "requirements.lock", "requirements-dev.lock", "requirements-gpu.lock"
LOCKS = (RUN, DEVELOPMENT, GPU)
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.+))?")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


class Release(NamedTuple):
    """A version of a distribution, whatever environment it is locked for."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Pin:
    """One locked distribution.

    Attributes:
        name: in the package index's normal form, such as ``importlib-resources``.
        version: the only one that may be installed.
        marker: of the environments it is for, such as ``sys_platform == 'linux'``; ``""`` for all.
        hashes: SHA-256 of its files, in hexadecimal; a wheel a platform, so there may be many.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def release(self) -> Release:
        """The release that it pins."""
        return Release(self.name, self.version)

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Return whether it is installed in an environment (names as in PEP 508, those left out are this Python's)."""
        return not self.marker or Marker(self.marker).evaluate(dict(environment))


def read_lock(path: Path) -> tuple[list[Pin], list[str]]:
    """Read a lock file as ``uv pip compile --generate-hashes`` writes it.

    Returns:
        The pins, in the file's order, and what breaks the rules of a lock, one line each: every requirement must be
        ``name==version`` with SHA-256 hashes, and no option or address may lead pip to another place.
    """
    pins, problems = [], []
    for number, line in _logical_lines(path.read_text(encoding="utf-8")):
        requirement, *options = re.split(r"\s+(?=--)", line)
        found = _PIN.fullmatch(requirement.strip())
        where = f"{path.name}:{number}"
        if line.startswith("-") or found is None:
            problems.append(f"{where}: a requirement must be name==version. Received: '{line[:80]}'")
            continue
        marker = (found["marker"] or "").strip()
        try:
            Version(found["version"])
            if marker:
                Marker(marker)
        except InvalidVersion:
            problems.append(f"{where}: a version must be as PEP 440 has it. Received: '{found['version']}'")
            continue
        except InvalidMarker:
            problems.append(f"{where}: a marker must be as PEP 508 has it. Received: '{marker}'")
            continue
        hashes = [_HASH.fullmatch(option.removeprefix("--hash=")) for option in options]
        if not hashes or None in hashes:
            problems.append(f"{where}: {found['name']} must have SHA-256 hashes, and no other option")
        digests = tuple(sorted(match[1] for match in hashes if match))
        pins.append(Pin(canonicalize_name(found["name"]), found["version"], marker, digests))
    if not pins:
        problems.append(f"{path.name}: a lock must pin something. Received: nothing")
    return pins, problems


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line's number and the text of each requirement, its continued lines joined, comments gone."""
    start, joined = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.split("#")[0].strip() if line.lstrip().startswith("#") or " #" in line else line.strip()
        start = start if joined else number
        joined = f"{joined} {bare.removesuffix(chr(92)).strip()}".strip()
        if not bare.endswith("\\") and joined:
            yield start, joined
            joined = ""
    if joined:
        yield start, joined


def disagreements(locks: Mapping[str, Sequence[Pin]]) -> list[str]:
    """Return where two locks pin one distribution differently: together they could not be installed.

    Args:
        locks: the pins by lock file; :data:`RUN` is what the others must follow.
    """
    versions: dict[str, set[str]] = {}
    for pin in locks[RUN]:
        versions.setdefault(pin.name, set()).add(pin.version)
    return [
        f"{lock}: {pin.name} must be pinned as in {RUN} ({', '.join(sorted(versions[pin.name]))}). "
        f"Received: {pin.version}"
        for lock, pins in locks.items()
        for pin in pins
        if pin.name in versions and pin.version not in versions[pin.name]
    ]
