"""Two whole runs with one seed: what is the same, bit for bit, and the short list of what is not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePath
from typing import Any

import pytest

from pipelines.settings import STEPS

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "validation-fraction": 0.25,
    "test-fraction": 0.25,
    "fine-tune-blocks": 1,
    "fine-tune-epochs": 2,
    "min-accuracy": 0.3,
    "epsilons": "1/255,4/255",
    "attack-steps": 2,
    "attack-pictures": 4,
    "ideal-classes": "zebra",
    "ideal-steps": 4,
    "version": 7,
}
STEPS_WITH_ARTIFACTS = {step.replace("_", "-") for step in STEPS} - {"check-settings", "extract-features"}
# All that may differ, by file and field: where a run and its pictures were, and how long it took.
SOURCE = ("dataset", "source")
MAY_DIFFER = {
    "dataset.json": {("source",)},
    "features.json": {("seconds",)},
    "lineage.json": {("run_id",), SOURCE},
    "export.json": {("sha256",)},  # of the folder that holds lineage.json
    "deployment.json": {
        ("uri",),
        ("lineage", "run_id"),
        ("lineage", *SOURCE),
        ("validation", "seconds"),
    },
}
# Of what KFP records of each step, with its metrics: places, the run, and digests of files that hold these. KFP orders
# a step's artifacts by the hashes of their names.
OF_THE_RECORDS = {"uri", "source", "run_id", "sha256"}
NOT_COMPARED = {"run.json", "run.log"}  # all times and places
# When the page was written; it also shows where the pictures are, and the digest of the model, which knows that, too.
MINUTE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")


def start(place: Path, source: Path, *, shards: int, **surroundings: str) -> subprocess.Popen:
    flags = {**SMALL, "dataset": f"directory:{source}", "shards": shards}
    flags |= {name: place / name for name in ("runs", "store", "cache")}
    command = [
        sys.executable,
        "-m",
        "pipelines.run_local",
        *(f"--{name}={value}" for name, value in flags.items()),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}", "GRAFTFLOW_COMMIT": "0" * 40}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, picture_folder: Path) -> list[Path]:
    """Two runs at the same time, of the same pictures: the second one's lie elsewhere, were written in another order at
    another time, are extracted in two shards, and strings have other hashes and clocks another time zone."""
    root = tmp_path_factory.mktemp("determinism")
    pictures = sorted(picture_folder.rglob("*.png"))
    places = [root / "first", root / "second, elsewhere"]
    for place, order in zip(places, (1, -1), strict=True):
        for picture in pictures[::order]:
            copy = place / "pictures" / picture.relative_to(picture_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(picture.read_bytes())
            os.utime(copy, (1_500_000_000 + order,) * 2)
    started = [
        start(places[0], places[0] / "pictures", shards=1, PYTHONHASHSEED="1", TZ="UTC"),
        start(places[1], places[1] / "pictures", shards=2, PYTHONHASHSEED="3", TZ="Asia/Tokyo"),
    ]
    try:
        for process in started:
            said, _ = process.communicate(timeout=1800)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in started:
            process.terminate()  # not kill: the run ends its steps first
            process.communicate()
    return [(place / "runs" / "latest").resolve() for place in places]


def files_of(run: Path) -> dict[str, Path]:
    """Files by name, without the shards of features and their list: their number is what was changed."""
    found = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    return {name: path for name, path in found.items() if not name.startswith(("for-loop", "check-settings"))}


def fields_of(value: Any, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, list):
        value = {str(number): inner for number, inner in enumerate(value)}
    if not isinstance(value, dict):
        return {place: value}
    inner = (fields_of(field, (*place, key)) for key, field in value.items())
    return {name: field for fields in inner for name, field in fields.items()}


def content(path: Path, run: Path) -> Any:
    """What must be the same of a file: its bytes, but for the places, times and durations named above."""
    if path.name in MAY_DIFFER:
        fields = fields_of(json.loads(path.read_text(encoding="utf-8")))
        assert fields.keys() >= MAY_DIFFER[path.name]
        return [(name, value) for name, value in fields.items() if name not in MAY_DIFFER[path.name]]
    if path.name == "executor_output.json":
        fields = fields_of(json.loads(path.read_text(encoding="utf-8")))
        return {name: value for name, value in fields.items() if name[-1] not in OF_THE_RECORDS}
    if path.name == "SHA256SUMS":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if PurePath(line.split(maxsplit=1)[1]).name not in MAY_DIFFER]
    if path.read_bytes()[:9].lower() == b"<!doctype":
        page = MINUTE.sub("MINUTE", path.read_text(encoding="utf-8"))
        export = json.loads((run / "export-model/saved_model/export.json").read_text(encoding="utf-8"))
        named = {str(run.parents[1] / "pictures"): "PICTURES", export["sha256"]: "MODEL"}
        for of_the_run, word in named.items():
            assert of_the_run in page
            page = page.replace(of_the_run, word)
        return page
    return path.read_bytes()


def test_a_repeated_run_has_the_same_files_bit_for_bit_but_for_the_named_ones(runs: list[Path]) -> None:
    first, second = (files_of(run) for run in runs)
    assert first.keys() == second.keys()
    compared = [name for name, path in first.items() if path.name not in NOT_COMPARED]
    assert {name.split("/")[0] for name in compared} >= STEPS_WITH_ARTIFACTS | {"report.html"}
    different = [name for name in compared if content(first[name], runs[0]) != content(second[name], runs[1])]
    assert not different
