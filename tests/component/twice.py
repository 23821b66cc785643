"""What two processes make of the same pictures, compared file by file but for the fields that may differ.

The two differ in what may not matter: hashes of strings, time zone, output folder, and of the pictures the folder, the
order in which they were copied and their times.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("one", "the other")
# These two numbers put sets of the class names, and of the splits, in different orders. The time of
# the day differs between the time zones, however close to each other two processes write.
SURROUNDINGS = (
    {"PYTHONHASHSEED": "1", "TZ": "UTC"},
    {"PYTHONHASHSEED": "3", "TZ": "Asia/Tokyo"},
)
# By file and field.
Fields = Mapping[str, Mapping[tuple[str, ...], str]]


def copies(pictures: Path, root: Path) -> list[Path]:
    """Copy eight tiles of each of two classes into two folders, in two orders and with two times."""
    chosen = sorted(path for name in ("brick", "rocket") for path in (pictures / name).glob("0[0-7].*"))
    folders = [root / f"pictures of {name}" for name in NAMES]
    for folder, order in zip(folders, (1, -1), strict=True):
        for picture in chosen[::order]:
            copy = folder / picture.parent.name / picture.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(picture.read_bytes())
            os.utime(copy, (1_500_000_000 * (2 + order) // 3,) * 2)
    return folders


def run_both(one: Sequence[str], other: Sequence[str]) -> None:
    """Run two commands at the same time, each in its surroundings; both must end well."""
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **surroundings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, surroundings in zip((one, other), SURROUNDINGS, strict=True)
    ]
    try:
        for process in started:
            said, _ = process.communicate(timeout=900)
            assert process.returncode == 0, said[-2000:]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def files_of(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def different(one: Path, other: Path, may_differ: Fields) -> list[str]:
    """Return the files of two folders that are not the same; those of only one of them are, too.

    Args:
        one: a folder.
        other: a folder.
        may_differ: all fields that may differ, by file, and why; each must be there.
    """
    first, second = files_of(one), files_of(other)
    both = [name for name in first if name in second]
    unequal = [
        name
        for name in both
        if _content(name, first[name], may_differ) != _content(name, second[name], may_differ)
    ]
    return unequal + sorted(first.keys() ^ second.keys())


def _content(name: str, path: Path, may_differ: Fields) -> Any:
    """What must be the same of a file: its bytes, or all fields but the named ones; of a seal, other files' lines."""
    if name in may_differ:
        value = json.loads(path.read_text(encoding="utf-8"))
        for *parents, last in may_differ[name]:
            place = value
            for parent in parents:
                place = place[int(parent) if isinstance(place, list) else parent]
            del place[last]
        return json.dumps(value)  # with the order of its fields
    if path.name == "SHA256SUMS":
        below = name.removesuffix(path.name)
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if f"{below}{line.split(maxsplit=1)[1]}" not in may_differ]
    return path.read_bytes()
