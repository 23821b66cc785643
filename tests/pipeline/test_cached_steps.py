"""What kfp.local has cached answers only while every byte of it is as it was written; else its step runs again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from kfp import dsl, local
from kfp.local import cache

from graftflow import seals
from graftflow.files import sha256_file
from pipelines.cached_steps import CheckedCache, checked_cache
from tests.unit.damages import DAMAGES, damage

KEY = "0123456789abcdef"


class Kept:
    """An entry of the cache with a sealed folder, a page and a number, and what was said of it."""

    def __init__(self, root: Path) -> None:
        self.said: list[str] = []
        self.cache = CheckedCache(str(root / "cache"), self.said.append)
        self.model, self.report = root / "run" / "model", root / "run" / "report"
        with seals.sealed_directory(self.model) as folder:
            (folder / "model.json").write_text('{"chosen": "head"}\n')
            (folder / "model.keras").write_bytes(np.random.default_rng(0).bytes(500))
        self.report.write_text("<!DOCTYPE html><p>a page</p>")
        self.entry = root / "cache" / f"{KEY}.json"
        self.outputs = {
            "model": dsl.Model(name="model", uri=str(self.model), metadata={"chosen": "head"}),
            "report": dsl.HTML("report", str(self.report), {"sha256": sha256_file(self.report)}),
            "Output": 0.9285714285714286,
        }
        self.cache.put(KEY, self.outputs)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_what_is_intact_is_answered_as_it_was_kept(kept: Kept) -> None:
    found = kept.cache.get(KEY)
    assert set(found) == {"model", "report", "Output"}
    assert found["Output"] == kept.outputs["Output"]
    assert (found["model"].uri, found["model"].metadata) == (str(kept.model), {"chosen": "head"})
    assert isinstance(found["report"], dsl.HTML)
    assert not kept.said
    assert kept.cache.get("another key") is None


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["model/model.json", "model/model.keras", "model/SHA256SUMS", "report"])
def test_a_damaged_artifact_is_no_hit_and_its_entry_goes(kept: Kept, name: str, kind: str) -> None:
    damage(kept.model.parent / name, kind, seed=3)
    assert kept.cache.get(KEY) is None
    (line,) = kept.said
    assert line.startswith("A step that was cached runs again: ")
    assert str(kept.model.parent / name) in line or name.endswith("SUMS")
    assert "\n" not in line
    assert not kept.entry.exists()
    assert kept.cache.get(KEY) is None
    assert len(kept.said) == 1


def test_a_folder_that_is_gone_is_no_hit(kept: Kept) -> None:
    shutil.rmtree(kept.model)
    assert kept.cache.get(KEY) is None
    assert kept.said == [f"A step that was cached runs again: its 'model' is gone from '{kept.model}'"]


def test_every_byte_of_an_entry_counts(kept: Kept) -> None:
    intact = kept.entry.read_bytes()
    for place in range(len(intact)):
        changed = bytearray(intact)
        changed[place] ^= 1 << place % 8
        kept.entry.write_bytes(changed)
        assert kept.cache.get(KEY) is None, (place, bytes(changed))
    for length in range(0, len(intact), 5):
        kept.entry.write_bytes(intact[:length])
        assert kept.cache.get(KEY) is None, length
    kept.entry.write_bytes(intact)
    assert kept.cache.get(KEY)["Output"] == kept.outputs["Output"]


def test_an_entry_of_an_earlier_kind_is_made_anew(kept: Kept) -> None:
    content = json.loads(kept.entry.read_text())
    del content["__sha256__"]
    kept.entry.write_text(json.dumps(content))
    assert kept.cache.get(KEY) is None


@dsl.component(
    base_image="python-for-the-subprocess-runner", packages_to_install=[], install_kfp_package=False
)
def write_number(folder: dsl.Output[dsl.Artifact], number: int, log: str) -> int:
    """Write a number into a sealed folder, and a line into a log."""
    from pathlib import Path

    from graftflow.seals import sealed_directory

    with sealed_directory(folder.path) as aside:
        (aside / "number.txt").write_text(str(number))
    with Path(log).open("a") as file:
        file.write("ran\n")
    return number


def test_kfp_runs_a_step_again_whose_artifact_was_damaged(tmp_path: Path) -> None:
    said: list[str] = []
    root, log = str(tmp_path / "cache"), tmp_path / "log"

    @dsl.pipeline
    def one_step(number: int, log: str):
        write_number(number=number, log=log)

    def run() -> Path:
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(tmp_path / "runs"),
            enable_caching=True,
            cache_root=root,
        )
        with checked_cache(root, said.append):
            one_step(number=7, log=str(log))
        (entry,) = Path(root).glob("*.json")
        return Path(json.loads(entry.read_text())["folder"]["uri"])

    first = run()
    assert run() == first
    assert log.read_text() == "ran\n"
    assert not said
    (first / "number.txt").write_text("8")
    second = run()
    assert second != first
    assert (second / "number.txt").read_text() == "7"
    assert log.read_text() == "ran\nran\n"
    assert len(said) == 1
    assert run() == second
    assert log.read_text() == "ran\nran\n"
    assert cache._cache_singleton is None
