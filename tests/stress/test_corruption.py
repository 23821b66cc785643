"""Hundreds of random damages an artifact, cache entry and published version: refused, or made anew with the same bytes.

``GRAFTFLOW_SEED`` repeats a campaign, which prints its seed.
"""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from graftflow import feature_shards, files, releases, seals
from graftflow.datasets import write_dataset
from graftflow.errors import InputError
from graftflow.feature_cache import FeatureCache
from tests.component.test_damaged_artifacts import call
from tests.unit.damages import DAMAGES, damage
from tests.unit.serving_model import save_model
from tests.unit.test_published_bytes import serve

SEED = int(os.environ.get("GRAFTFLOW_SEED", random.SystemRandom().randrange(10**6)))
# Each kind of artifact, and a step that reads it.
READERS = {
    "dataset": "extract_features",
    "feature_shards": "merge_features",
    "features": "train_head",
    "head": "fine_tune",
    "model": "export_model",
    "saved_model": "evaluate",
    "evaluation": "generate_adversarial",
}


def damages(folder: Path, count: int) -> Iterator[tuple[Path, str]]:
    """Yield ``count`` random damages, each of one file that is intact again when the next one comes."""
    print(f"GRAFTFLOW_SEED={SEED} repeats these damages")
    generator = np.random.default_rng(SEED)
    there = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size > 1]
    for number in range(count):
        path = there[int(generator.integers(len(there)))]
        # Most are single bits: the rest is found by size.
        kind = "flip" if number % 5 else DAMAGES[int(generator.integers(len(DAMAGES)))]
        intact = path.read_bytes()
        damage(path, kind, seed=int(generator.integers(2**31)))
        yield path, kind
        path.write_bytes(intact)


@pytest.fixture(scope="module")
def inputs(artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of every artifact under the name that steps call it by."""
    root = tmp_path_factory.mktemp("inputs")
    for kind in READERS:
        if kind != "feature_shards":
            shutil.copytree(getattr(artifacts, kind), root / kind)
    with seals.sealed_directory(root / "feature_shards") as folder:
        summary = files.read_json(artifacts.features / "features.json")
        files.write_json(folder / feature_shards.FILE, {"shard": 0, "num_shards": 1, **summary})
        for split in ("train", "validation", "test"):
            with np.load(artifacts.features / f"{split}.npz") as rows:
                np.savez(folder / f"{split}.npz", places=np.arange(len(rows["labels"])), **rows)
    return root


@pytest.mark.parametrize("kind", READERS)
def test_no_step_takes_a_damaged_artifact(inputs: Path, kind: str) -> None:
    for path, way in damages(inputs / kind, 200):
        with pytest.raises(InputError, match=f"The artifact '{kind}' must be") as told:
            call(READERS[kind], inputs)
        assert str(path) in str(told.value) or path.name == seals.FILE, (path, way)
        assert not (inputs / "out").exists()
    seals.check_seals(inputs / kind)


def test_rows_of_a_damaged_feature_cache_are_right_or_gone(tmp_path: Path) -> None:
    digests = [bytes([i]) * 32 for i in range(40)]
    rows = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    kept = FeatureCache(tmp_path / "kept", width=16)
    for start in (0, 20):
        kept.add(digests[start : start + 20], rows[start : start + 20])
        kept.flush()
    lost = 0
    for number, (_, _) in enumerate(damages(tmp_path / "kept", 300)):
        copy = Path(shutil.copytree(tmp_path / "kept", tmp_path / str(number)))
        found = FeatureCache(copy, width=16)
        for digest, row in zip(digests, rows, strict=True):
            if digest in found:
                np.testing.assert_array_equal(found.get(digest), row)
        assert len(found) == 20
        lost += 40 - len(found)
        del found
        shutil.rmtree(copy)
    assert lost == 300 * 20


def test_a_damaged_conversion_gives_the_same_dataset(
    picture_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    def convert(name: str, cache: Path | None) -> dict[str, bytes]:
        folder = tmp_path / name
        folder.mkdir()
        source = f"directory:{picture_folder}"
        write_dataset(
            folder, source=source, seed=0, validation_fraction=0.25, test_fraction=0.25, cache=cache
        )
        content = {path.name: path.read_bytes() for path in folder.iterdir()}
        shutil.rmtree(folder)
        return content

    expected = convert("unbroken", None)
    with monkeypatch.context() as patch:  # as if killed at the very end
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)
        write_left = tmp_path / "left"
        write_left.mkdir()
        write_dataset(
            write_left,
            source=f"directory:{picture_folder}",
            seed=0,
            validation_fraction=0.25,
            test_fraction=0.25,
            cache=tmp_path / "cache",
        )
    for number, (path, way) in enumerate(damages(tmp_path / "cache" / "conversions", 60)):
        copy = Path(shutil.copytree(tmp_path / "cache", tmp_path / f"cache-{number}"))
        assert convert(f"again-{number}", copy) == expected, (path, way)
        shutil.rmtree(copy)


def test_no_damaged_version_is_served_or_promoted(tmp_path: Path) -> None:
    where = {"store": str(tmp_path / "store"), "model_name": "pets"}
    for version in (1, 2):
        save_model(tmp_path / "store" / "pets" / str(version), scale=float(version))
        sha256 = files.sha256_directory(tmp_path / "store" / "pets" / str(version))
        releases.release(**where, version=version, facts={"sha256": sha256})
    for path, way in damages(tmp_path / "store" / "pets" / "2", 100):
        models, available = serve(tmp_path / "store")
        models.close()
        assert available == {1}, (path, way)
    releases.rollback(**where)
    for path, way in damages(tmp_path / "store" / "pets" / "2", 100):
        with pytest.raises(InputError, match="A version must"):
            releases.promote(**where, version=2)
        assert path.exists() == (way != "delete")
    assert releases.promote(**where, version=2).changed
