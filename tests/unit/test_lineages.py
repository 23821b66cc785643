"""Where a model comes from: written with it, printed from wherever it is, and checked against its bytes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graftflow import lineages, releases, stored_lineages
from graftflow.deployment import deploy
from graftflow.errors import InputError
from graftflow.files import read_json, sha256_directory, write_json
from graftflow.lineage_commands import main
from tests.unit.labelled_stores import KINDS, Store, open_store
from tests.unit.lineage_files import BACKBONE, ORIGIN, write_artifacts, write_example

METRICS = {
    "accuracy": {"value": 0.9375, "low": 0.875, "high": 1.0},
    "log_loss": {"value": 0.25, "low": 0.125, "high": 0.5},
}


def write_export(folder: Path, version: int = 3) -> Path:
    """A ``saved_model`` artifact: a graph that nobody loads, and a lineage."""
    version_folder = folder / str(version)
    version_folder.mkdir(parents=True)
    (version_folder / "saved_model.pb").write_bytes(b"graph")
    write_example(version_folder, version=version)
    digest = sha256_directory(version_folder)
    write_json(folder / "export.json", {"version": version, "sha256": digest, "backbone": BACKBONE})
    return folder


def put_in_store(store: str, export: Path, label: str = "stable") -> None:
    """Publish an export as ``push`` does."""
    deploy(export, store=store, model_name="pets")
    written = read_json(export / "export.json")
    facts = {"accuracy": 0.9375, "metrics": METRICS, "sha256": written["sha256"]}
    releases.release(
        store=store, model_name="pets", version=int(written["version"]), label=label, facts=facts
    )


@pytest.fixture
def export(tmp_path) -> Path:
    return write_export(tmp_path / "saved_model")


@pytest.fixture(params=KINDS)
def store(request, tmp_path, export):
    with open_store(request.param, tmp_path) as opened:
        put_in_store(opened.uri, export)
        yield opened


def test_the_file_says_run_code_data_weights_settings_and_figures(tmp_path, monkeypatch):
    for name, value in (("RUN_ID", "run-7"), ("COMMIT", "c0ffee-dirty"), ("IMAGE", "graftflow:1")):
        monkeypatch.setenv(f"GRAFTFLOW_{name}", value)
    assert lineages.read_origin() == ORIGIN
    paths = write_artifacts(tmp_path, source="archive:https://me:secret@example.org/pets.zip?token=hidden")
    lineages.write_lineage(tmp_path, origin=lineages.read_origin(), version=3, **paths)
    lineage = read_json(tmp_path / "assets.extra" / "lineage.json")
    assert lineages.read_lineage(tmp_path) == lineage
    packages = lineage.pop("packages")
    assert lineage == {
        "format": 1,
        "run_id": "run-7",
        "commit": "c0ffee-dirty",
        "image": "graftflow:1",
        "version": 3,
        "dataset": {
            "source": "archive:https://example.org/pets.zip?…",
            "digest": "d" * 64,
            "seed": 5,
            "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2},
            "counts": {"train": {"blue": 6, "red": 6}, "validation": {"blue": 2, "red": 2}},
        },
        "backbone": BACKBONE,
        "parameters": {
            "chosen": "fine-tuned",
            "unfrozen_blocks": 2,
            "recipe": {"epochs": 3, "learning_rate": 1e-4, "mixup": 0.0},
            "temperature": 1.5,
        },
        "validation": {
            "head_accuracy": 0.75,
            "head_log_loss": 0.5,
            "fine_tuned_accuracy": 0.875,
            "fine_tuned_log_loss": 0.25,
            "calibrated_accuracy": 0.875,
            "calibrated_log_loss": 0.125,
        },
    }
    assert packages["tensorflow"].startswith("2.")
    assert all(packages.values())


def test_without_a_run_the_origin_is_empty_and_the_model_is_still_traced(tmp_path, monkeypatch):
    for name in ("RUN_ID", "COMMIT", "IMAGE"):
        monkeypatch.delenv(f"GRAFTFLOW_{name}", raising=False)
    assert lineages.read_origin() == lineages.Origin("", "", "")
    lineages.write_lineage(tmp_path, origin=lineages.Origin(), version=3, **write_artifacts(tmp_path))
    assert lineages.metadata_of(lineages.read_lineage(tmp_path))["dataset_digest"] == "d" * 64


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_example(tmp_path / name)
    assert sha256_directory(tmp_path / "one") == sha256_directory(tmp_path / "two")


def test_a_model_in_a_store_is_found_by_address_and_by_name(store):
    found = stored_lineages.find(f"{store.uri}/pets/3")
    assert stored_lineages.find(f"{store.uri}/pets") == found
    assert stored_lineages.find("pets", store=store.uri) == found
    assert stored_lineages.find("pets", store=store.uri, version=3) == found
    assert found.uri == f"{store.uri}/pets/3"
    assert (found.model_name, found.version, found.label) == ("pets", 3, "stable")
    assert found.metrics == METRICS
    assert found.released.endswith("Z")
    assert (found.verified, found.recorded_in, found.warnings) == (True, "releases.json", [])
    assert found.lineage is not None
    assert found.lineage["run_id"] == "run-7"
    assert stored_lineages.as_json(found)["lineage"]["test"] == METRICS


def test_the_stable_version_is_meant_unless_another_is_named(store, tmp_path):
    put_in_store(store.uri, write_export(tmp_path / "newer", 4), "canary")
    assert stored_lineages.find("pets", store=store.uri).version == 3
    newer = stored_lineages.find("pets", store=store.uri, version=4)
    assert (newer.version, newer.label, newer.verified) == (4, "canary", True)
    releases.promote(store=store.uri, model_name="pets")
    promoted = stored_lineages.find("pets", store=store.uri)
    # What was noted when it was the canary holds on.
    assert (promoted.version, promoted.label, promoted.metrics) == (4, "stable", METRICS)


def test_changed_bytes_in_a_store_are_told_and_exit_with_1(store, capsys):
    store.filesystem.pipe_file(f"{store.base}/pets/3/saved_model.pb", b"grapf")
    found = stored_lineages.find("pets", store=store.uri)
    assert found.verified is False
    assert main(["show", "pets", "--store", store.uri]) == 1
    shown = capsys.readouterr().out
    assert "the files were changed" in shown
    assert f"warning: the version's files have the sha256 {found.sha256}, not {found.recorded}" in shown


def test_a_forged_lineage_is_told_too(export, capsys):
    """The lineage is covered by the sha256 of the version."""
    file = export / "3" / "assets.extra" / "lineage.json"
    file.write_text(file.read_text().replace("c0ffee-dirty", "c0ffee"))
    assert main(["show", str(export)]) == 1
    assert "they were changed or damaged" in capsys.readouterr().out


def test_an_artifact_is_checked_against_its_export(export):
    for address in (export, export / "3", f"file://{export}"):
        found = stored_lineages.find(str(address))
        assert (found.version, found.model_name, found.label) == (3, "", "")
        assert (found.verified, found.recorded_in) == (True, "export.json")


def test_a_lineage_of_another_version_or_backbone_is_told(export):
    write_json(
        export / "export.json",
        {
            **read_json(export / "export.json"),
            "backbone": {**BACKBONE, "weights_sha256": "0" * 64},
        },
    )
    (warning,) = stored_lineages.find(str(export)).warnings
    assert "backbone weights" in warning
    shutil.move(export / "3", export / "5")
    (warning,) = stored_lineages.find(str(export / "5")).warnings
    assert warning == "the lineage is of version 3, the folder of version 5"


def test_a_version_without_lineage_or_history_says_so(tmp_path, capsys):
    store = Store(str(tmp_path / "store"))
    store.add(1)
    assert main(["show", "pets", "--store", store.uri]) == 0
    shown = capsys.readouterr().out
    assert "The version has no lineage" in shown
    assert "no sha256 was noted" in shown
    store.deploy(2, facts={"accuracy": 0.5})
    found = stored_lineages.find("pets", store=store.uri)
    assert (found.version, found.metrics, found.verified) == (2, {"accuracy": {"value": 0.5}}, None)


def test_to_read_a_lineage_loads_no_tensorflow():
    code = "import sys, graftflow.lineage_commands, graftflow.model_registry; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_table_for_people_and_json_for_programs(tmp_path, export):
    store = str(tmp_path / "store")
    put_in_store(store, export)
    command = [sys.executable, "-m", "graftflow.lineages", "show", f"{store}/pets/3"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for expected in (
        "run-7",
        "c0ffee-dirty",
        "d" * 64,
        "b" * 64,
        "12 pictures: 6 blue, 6 red",
        "test accuracy 0.9375 (0.875 to 1)",
        "validation head_accuracy 0.75",
        "recipe.learning_rate 0.0001",
        "the files are as releases.json notes them",
    ):
        assert expected in " ".join(shown.stdout.split()), expected
    answer = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(answer.stdout) == stored_lineages.as_json(stored_lineages.find(f"{store}/pets"))


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("nothing", {}, "model must be a version's folder.*Received: 'nothing'"),
        ("", {}, "Received: ''"),
        ("pets", {"version": 9}, "version must be one of 3. Received: 9"),
        ("STORE/pets/3", {"version": 4}, "version must be that of the folder. Received: 4"),
        ("nonsense://x/pets", {}, "Nothing was read"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, export, capsys, model, options, expected):
    store = str(tmp_path / "store")
    put_in_store(store, export)
    model = model.replace("STORE", store)
    with pytest.raises(InputError, match=expected):
        stored_lineages.find(model, store=store, **options)
    assert main(["show", model, "--store", store, *(f"--{n}={v}" for n, v in options.items())]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 2}', "7", "[" * 100_000])
def test_a_broken_lineage_is_one_line(export, text):
    (export / "3" / "assets.extra" / "lineage.json").write_text(text)
    with pytest.raises(InputError, match=r"lineage.json must be a lineage, in JSON"):
        stored_lineages.find(str(export))


def test_a_lineage_of_the_future_asks_for_a_newer_graftflow(export):
    file = export / "3" / "assets.extra" / "lineage.json"
    write_json(file, {**read_json(file), "format": 2})
    with pytest.raises(InputError, match="at most 1. Received: 2: use a newer graftflow"):
        stored_lineages.find(str(export))
