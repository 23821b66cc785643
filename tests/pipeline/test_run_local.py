"""One true run on this machine through all steps, and what happens when it is repeated, fails or is interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines import run_index, run_local, run_step
from pipelines.settings import STEPS

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "validation-fraction": 0.25,
    "test-fraction": 0.25,
    "fine-tune-blocks": 1,
    "fine-tune-epochs": 1,
    "min-accuracy": 0.3,
    "epsilons": "1/255,4/255",
    "attack-steps": 2,
    "attack-pictures": 4,
    "ideal-classes": "zebra",
    "ideal-steps": 2,
}


def command(module: str, *positional: str, **flags: object) -> list[str]:
    named = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", f"pipelines.{module}", *positional, *named]


def run(*arguments: str, **flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, **flags), cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("local")


@pytest.fixture(scope="module")
def flags(place: Path, picture_folder: Path) -> dict[str, object]:
    """A small run whose accuracy is certain to lie between the gates 0.3 and 1: one brick wall is two classes."""
    for folder in ("coffee", "rocket", "brick"):
        for file in sorted((picture_folder / folder).iterdir()):
            odd = int(file.stem) % 2
            label = f"brick_{odd}" if folder == "brick" else folder
            (place / "pictures" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / "pictures" / label)
    where = {"runs": place / "runs", "store": place / "store"}
    return {**SMALL, **where, "dataset": f"directory:{place / 'pictures'}"}


@pytest.fixture(scope="module")
def first(flags) -> subprocess.CompletedProcess[str]:
    result = run("run_local", **flags)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def latest(first, place: Path) -> run_index.Run:
    return run_index.load(place / "runs" / "latest")


def test_every_step_leaves_its_folder_and_its_figures(latest: run_index.Run) -> None:
    assert latest.status == "succeeded"
    assert set(latest.steps) == set(STEPS)
    for name, step in latest.steps.items():
        assert step.status == "done"
        assert step.seconds > 0
        # kfp puts a loop's steps into a folder an iteration.
        assert list(latest.folder.glob(name.replace("_", "-"))) or name == "extract_features"
        assert step.artifacts or name == "check_settings"
        for artifact in step.artifacts.values():
            assert Path(artifact["uri"]).exists(), (name, artifact)
        assert run_index.key_figures(name, step, latest.parameters), name
    assert not list(latest.folder.rglob("*.partial*"))


def test_figures_agree_from_step_to_step(latest: run_index.Run, place: Path) -> None:
    def read(artifact: str, name: str):
        return json.loads((Path(latest.artifact(artifact)["uri"]) / name).read_text())

    dataset, features = read("dataset", "dataset.json"), read("features", "features.json")
    counts = {split: sum(classes.values()) for split, classes in dataset["counts"].items()}
    assert sum(counts.values()) == 48
    assert features["counts"] == counts
    assert features["dataset_digest"] == dataset["digest"]
    head, model = read("head", "head.json"), read("model", "model.json")
    assert head["backbone"] == features["backbone"] == model["backbone"]
    evaluation = read("evaluation", "evaluation.json")
    assert evaluation["pictures"] == counts["test"]
    accuracy = evaluation["metrics"]["accuracy"]["value"]
    assert latest.steps["evaluate"].outputs["Output"] == pytest.approx(accuracy)
    assert accuracy >= 0.5
    for certain in ("coffee", "rocket"):
        assert evaluation["per_class"][certain]["recall"]["value"] >= 0.75
    shown = latest.artifact("test_metrics")["metadata"]
    assert shown["accuracy"] == pytest.approx(accuracy)
    assert latest.artifact("classification")["metadata"]["confusionMatrix"]
    adversarial = read("adversarial", "adversarial.json")
    worst = adversarial["worst_case"]["accuracy"]
    assert worst == sorted(worst, reverse=True)
    deployment, export = read("deployment", "deployment.json"), read("saved_model", "export.json")
    assert int(deployment["version"]) == export["version"]
    published = place / "store" / "graftflow" / str(export["version"])
    assert (published / "saved_model.pb").is_file()
    page = Path(latest.artifact("report")["uri"]).read_text()
    assert "<html" in page
    assert len(page) < 2_000_000


def test_the_run_ends_with_a_table_the_report_and_the_next_commands(first) -> None:
    table = first.stdout[first.stdout.index("key figures") :]
    lines = table.splitlines()
    for step in STEPS:
        assert any(line.startswith(step) for line in lines), step
    assert "test accuracy" in table
    assert "Report" in table
    assert "make serve" in table
    assert "make query IMAGE=" in table


def test_a_second_run_takes_everything_but_the_deployment_from_the_cache(first, flags, place) -> None:
    before = run_index.load(place / "runs" / "latest")
    result = run("run_local", **flags)
    assert result.returncode == 0, result.stdout + result.stderr
    again = run_index.load(place / "runs" / "latest")
    assert again.folder != before.folder
    status = {name: step.status for name, step in again.steps.items()}
    assert status.pop("deploy_model") == "done"
    assert set(status.values()) == {"cached"}
    assert set(again.steps) == set(STEPS)
    assert again.artifact("model") == before.artifact("model")
    deployment = Path(again.artifact("deployment")["uri"]) / "deployment.json"
    assert json.loads(deployment.read_text())["status"] == "already there"


def test_a_changed_picture_changes_the_fingerprint(tmp_path: Path) -> None:
    """KFP's key is the text of the source; the fingerprint tells that what it names has changed."""
    from graftflow import checks

    folder = tmp_path / "cat"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"one")
    source = f"directory:{tmp_path}"
    before = checks.fingerprint(source, "imagenet")
    assert before == checks.fingerprint(source, "imagenet")
    (folder / "1.png").write_bytes(b"another")
    assert checks.fingerprint(source, "imagenet") != before
    assert checks.fingerprint("closeups", "imagenet") == ""


def test_one_step_alone_runs_on_the_artifacts_of_a_run(latest, place: Path) -> None:
    result = run("run_step", "generate_adversarial", epsilons="2/255", runs=place / "runs",
                 run=latest.folder)  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    alone = run_index.load(place / "runs" / "latest")
    assert alone.parent == latest.folder.name
    written = Path(alone.artifact("adversarial")["uri"])
    assert written.is_relative_to(alone.folder)
    # The radius of the gate (1/255) is tried beside those that are asked for.
    assert json.loads((written / "adversarial.json").read_text())["epsilons"] == [1.0, 2.0]
    assert alone.artifact("model") == latest.artifact("model")
    # What depends on the step that was run again is no longer part of the run.
    assert "write_report" not in alone.steps
    refused = run("run_step", "write_report", runs=place / "runs", run=alone.folder)
    assert refused.returncode == 0
    assert Path(run_index.load(place / "runs" / "latest").artifact("report")["uri"]).is_file()


def test_a_step_without_its_input_names_the_step_that_writes_it(latest, place: Path) -> None:
    result = run("run_step", "train_head", runs=place / "empty", run=latest.folder.parent)
    assert result.returncode == 1
    assert "RUN must be the folder of a run" in result.stderr
    only_data = run_index.Run(place / "partial" / "r", latest.parameters)
    only_data.steps["download_data"] = latest.steps["download_data"]
    only_data.save()
    result = run("run_step", "train_head", runs=place / "partial")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "error: train_head: needs the artifact 'features' of extract_features" in last
    assert "make extract-features" in last
    assert sorted(p.name for p in (place / "partial").iterdir()) == [".lock", "latest", "r"]


def test_every_step_knows_what_it_depends_on() -> None:
    assert run_step.depends_on("download_data") == set()
    assert run_step.depends_on("merge_features") == {"download_data", "extract_features"}
    assert run_step.depends_on("train_head") == {"download_data", "extract_features", "merge_features"}
    assert run_step.depends_on("write_report") == set(STEPS) - {
        "check_settings",
        "write_report",
        "deploy_model",
    }


def test_a_gate_that_is_not_passed_deploys_nothing(first, flags, place: Path) -> None:
    refused = {**flags, "min-accuracy": 1.0, "store": place / "refused"}
    result = run("run_local", **refused)
    assert result.returncode == 0, result.stdout + result.stderr
    gated = run_index.load(place / "runs" / "latest")
    assert gated.steps["evaluate"].outputs["Output"] < 1.0
    assert gated.steps["deploy_model"].status == "skipped"
    assert not (place / "refused").exists()
    assert "below MIN_ACCURACY=1" in result.stdout
    assert "make serve" not in result.stdout


def test_a_failing_step_ends_the_run_with_its_own_error_last(flags, place) -> None:
    broken = {**flags, "runs": place / "failing", "fine-tune-blocks": 99}
    result = run("run_local", **broken)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: fine_tune: num_blocks must be between 0 (no fine-tuning) and 16")
    assert last.endswith("Received: 99")
    failed = run_index.load(place / "failing" / "latest")
    assert failed.status == "failed"
    assert failed.steps["fine_tune"].status == "failed"
    assert failed.steps["train_head"].status == "done"
    assert "Traceback" in (failed.folder / "run.log").read_text()
    assert not (failed.folder / "fine-tune" / "model").exists()


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_children_and_leaves_nothing_half_written(
    flags, place: Path, asked: signal.Signals
) -> None:
    runs = place / f"interrupted-{asked.name}"
    process = subprocess.Popen(
        command("run_local", **{**flags, "runs": runs}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:  # wait until the second step is at work
        if "extract_features" in line:
            break
    deadline = time.monotonic() + 60
    while not list(runs.glob("*/*/extract-features/.feature_shard.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, asked)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors.strip().splitlines()[-1]
    assert not [child for child in children if child.is_running()]
    stopped = run_index.load(runs / "latest")
    assert stopped.status == "interrupted"
    assert stopped.steps["extract_features"].status == "interrupted"
    assert not list(stopped.folder.rglob("feature_shard"))
    assert not list(stopped.folder.rglob("*.partial*"))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, flags, capsys) -> None:
    with run_local.only_run_in(tmp_path):
        given = {**flags, "runs": tmp_path}
        code = run_local.main([f"--{name}={value}" for name, value in given.items()])
    assert code == 1
    assert "Only one run at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"backbone": "vgg61"}, "backbone must be one of .*Did you mean 'vgg19'"),
        ({"dataset": "cats"}, "cats"),
        ({"dataset": "directory:/nowhere/at/all"}, "/nowhere/at/all"),
        ({"dataset": "archive:/nowhere.zip"}, "/nowhere.zip"),
        ({"weights": "/nowhere/weights.h5"}, "is no file"),
        ({"min-accuracy": 1.5}, "min_accuracy must be a fraction from 0 to 1. Received: 1.5"),
        ({"min-accuracy": -0.1}, "min_accuracy must be a fraction"),
        ({"epsilons": "-1/255"}, "-1/255"),
        ({"epsilons": "a lot"}, "a lot"),
        ({"validation-fraction": 0.6, "test-fraction": 0.5}, "sum below 1"),
        ({"fine-tune-epochs": 0}, "fine_tune_epochs must be a whole number from 1. Received: 0"),
        ({"learning-rate": 0}, "learning_rate must be a positive number"),
        ({"attack-steps": 0}, "attack_steps must be a whole number from 1"),
        ({"ideal-classes": "Siamese cet"}, "Siamese cat"),
        ({"shards": 0}, "shards must be a whole number from 1 to 1024. Received: 0"),
        ({"shards": 1025}, "shards must be a whole number from 1 to 1024. Received: 1025"),
        ({"model-name": "../up"}, "../up"),
        ({"store": "nothing://bucket"}, "nothing"),
        ({"dataset": "directory:/home/python3/x"}, "must not contain 'python3'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_at_once(tmp_path: Path, flags, change, rule, capsys) -> None:
    runs = tmp_path / "runs"
    given = {**flags, "runs": runs, **change}
    assert run_local.main([f"--{name}={value}" for name, value in given.items()]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert re.search(rule, captured.err)
    assert not runs.exists()
