"""No step works on an artifact that was cut or altered: each refuses each of its inputs, before any work."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp import dsl
from kfp.dsl.types import type_utils

from graftflow import feature_shards, files, seals
from graftflow.errors import InputError
from pipelines.settings import STEPS
from tests.unit.damages import DAMAGES, damage

# Beside the pipeline's steps, those of `make compare` and `make challenge`.
COMPONENTS = (*STEPS, "challenge_model", "measure_backbone", "compare_backbones")
KINDS = ("dataset", "features", "head", "model", "saved_model", "evaluation")
# What steps look at before they touch an artifact.
GIVEN = {"epsilons": "1/255", "robust_epsilon": "", "source": "digits", "mirrors": ""}
PLAIN = {"String": "none", "Integer": 1, "Float": 0.5}


def component(name: str) -> Any:
    return getattr(importlib.import_module(f"components.{name}"), name)


def inputs_of(name: str) -> dict[str, Any]:
    """The artifacts that a component reads, by name."""
    specs = component(name).component_spec.inputs or {}
    return {key: spec for key, spec in specs.items() if not type_utils.is_parameter_type(spec.type)}


READ = [(name, key) for name in COMPONENTS for key in inputs_of(name)]


def test_every_artifact_but_those_for_people_is_read_by_a_step_of_this_list() -> None:
    read = {key for _, key in READ}
    assert read >= {*KINDS, "feature_shards", "adversarial", "visuals", "measurements"}
    assert len(READ) > 25


def sealed(folder: Path) -> Path:
    """Write a sealed folder with two files, which the step never comes to look into."""
    with seals.sealed_directory(folder) as aside:
        (aside / "data.json").write_text('{"pictures": 48}\n')
        (aside / "inside").mkdir()
        (aside / "inside" / "data.npz").write_bytes(np.random.default_rng(0).bytes(300))
    return folder


def call(name: str, root: Path) -> None:
    """Call a component with sealed inputs under ``root``, where they are, and plain settings."""
    arguments: dict[str, Any] = {}
    for key, spec in (component(name).component_spec.inputs or {}).items():
        if type_utils.is_parameter_type(spec.type):
            arguments[key] = GIVEN.get(key, PLAIN[spec.type] if spec.default is None else spec.default)
        elif spec.is_artifact_list:
            arguments[key] = [dsl.Artifact(uri=str(root / key))]
        else:
            arguments[key] = dsl.Artifact(uri=str(root / key))
    for key, spec in (component(name).component_spec.outputs or {}).items():
        if not type_utils.is_parameter_type(spec.type):
            arguments[key] = dsl.Artifact(name=key, uri=str(root / "out" / key))
    component(name).python_func(**arguments)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(("name", "key"), READ, ids=lambda value: str(value))
def test_a_step_refuses_a_damaged_input_and_writes_nothing(
    tmp_path: Path, name: str, key: str, kind: str
) -> None:
    for other in inputs_of(name):
        sealed(tmp_path / other)
    damaged = tmp_path / key / "inside" / "data.npz"
    damage(damaged, kind, seed=len(name))
    with pytest.raises(InputError, match=f"The artifact '{key}' must be as its step wrote it") as told:
        call(name, tmp_path)
    assert str(damaged) in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def copies(artifacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Copies of the artifacts of a real run."""
    root = tmp_path_factory.mktemp("damaged")
    yield {kind: Path(shutil.copytree(getattr(artifacts, kind), root / kind)) for kind in KINDS}
    shutil.rmtree(root)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_a_real_artifact_is_watched(copies: dict[str, Path], kind: str) -> None:
    folder = copies[kind]
    seals.check_seals(folder)
    there = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(there) >= 3
    for number, path in enumerate(there):
        intact = path.read_bytes()
        for way in DAMAGES:
            if way != "delete" and not intact:
                continue
            damage(path, way, seed=number)
            with pytest.raises(InputError) as told:
                seals.check_seals(folder)
            assert str(path) in str(told.value) or path.name == seals.FILE
            path.write_bytes(intact)
    seals.check_seals(folder)


def test_a_damaged_shard_of_features_does_not_get_into_the_table(artifacts, tmp_path: Path) -> None:
    """One bit of one feature: numpy reads it, no rule is broken, and the head would be another one."""
    table = dict(np.load(artifacts.features / "train.npz"))
    shard = tmp_path / "feature_shards"
    with seals.sealed_directory(shard) as folder:
        summary = files.read_json(artifacts.features / "features.json")
        files.write_json(folder / feature_shards.FILE, {"shard": 0, "num_shards": 1, **summary})
        for split in ("train", "validation", "test"):
            with np.load(artifacts.features / f"{split}.npz") as rows:
                np.savez(folder / f"{split}.npz", places=np.arange(len(rows["labels"])), **rows)
    call("merge_features", tmp_path)
    with np.load(tmp_path / "out" / "features" / "train.npz") as merged:
        np.testing.assert_array_equal(merged["features"], table["features"])
    shutil.rmtree(tmp_path / "out")
    table["features"][0, 0] = np.nextafter(table["features"][0, 0], np.float32(9))
    np.savez(shard / "train.npz", places=np.arange(len(table["labels"])), **table)
    with pytest.raises(InputError, match=r"train.npz' with the SHA-256"):
        call("merge_features", tmp_path)
