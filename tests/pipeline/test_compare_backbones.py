"""The comparison's graph: compiled for a cluster, and one true run of it on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from pipelines import compile as compile_module
from pipelines import run_compare, run_index
from pipelines import settings as settings_file

ROOT = Path(__file__).resolve().parents[2]
REVIEWED = ROOT / "pipelines" / "compare_backbones.yaml"
AWAY = "vgg16=http://127.0.0.1:9/vgg16.h5"


def compiled(tmp_path: Path, settings: Path | None = None) -> tuple[PipelineSpec, dict]:
    output = tmp_path / "pipeline.yaml"
    compile_module.compile_pipeline(output, settings_file.load(settings), name="compare_backbones")
    pipeline, *platform = yaml.safe_load_all(output.read_text(encoding="utf-8"))
    return json_format.ParseDict(pipeline, PipelineSpec()), platform[0] if platform else {}


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> PipelineSpec:
    return compiled(tmp_path_factory.mktemp("compiled"))[0]


def test_the_loop_is_over_the_checked_backbones(spec: PipelineSpec) -> None:
    loop = spec.root.dag.tasks["for-loop-1"]
    items = loop.inputs.parameters[loop.parameter_iterator.items.input_parameter].task_output_parameter
    assert (items.producer_task, items.output_parameter_key) == ("check-comparison", "Output")
    # A cluster measures as many at once as it has room for.
    assert not loop.HasField("iterator_policy")
    body = spec.components[loop.component_ref.name].dag
    assert set(body.tasks) == {"measure-backbone"}
    given = body.tasks["measure-backbone"].inputs
    assert given.parameters["backbone"].component_input_parameter == loop.parameter_iterator.item_input
    assert given.artifacts["dataset"].component_input_artifact == "pipelinechannel--download-data-dataset"


def test_the_comparison_collects_every_measurement(spec: PipelineSpec) -> None:
    tasks = spec.root.dag.tasks
    assert set(tasks) == {"check-comparison", "download-data", "for-loop-1", "compare-backbones"}
    assert list(tasks["download-data"].dependent_tasks) == ["check-comparison"]
    given = tasks["compare-backbones"].inputs.artifacts["measurements"].task_output_artifact
    assert given.producer_task == "for-loop-1"
    collected = spec.components["comp-compare-backbones"].input_definitions.artifacts["measurements"]
    assert collected.is_artifact_list
    page = spec.components["comp-compare-backbones"].output_definitions.artifacts["comparison_page"]
    assert page.artifact_type.schema_title == "system.HTML"
    best = spec.components["comp-compare-backbones"].output_definitions.parameters
    assert set(best) == {"Output"}


def test_measuring_is_tried_again_and_never_taken_from_kfps_cache(spec: PipelineSpec) -> None:
    measure = spec.components["comp-for-loop-1"].dag.tasks["measure-backbone"]
    assert measure.retry_policy.max_retry_count == 2
    assert not measure.caching_options.enable_cache
    assert spec.root.dag.tasks["download-data"].caching_options.enable_cache


def test_every_parameter_is_documented_and_reaches_a_step(spec: PipelineSpec) -> None:
    used = {
        given.component_input_parameter
        for task in spec.root.dag.tasks.values()
        for given in task.inputs.parameters.values()
    }
    for name, parameter in spec.root.input_definitions.parameters.items():
        assert parameter.description, name
        assert name in used


def test_measuring_is_placed_like_the_extraction_of_features(tmp_path: Path) -> None:
    spec, platform = compiled(tmp_path, ROOT / "pipelines" / "settings.gpu.yaml")
    executors = json_format.MessageToDict(spec.deployment_spec)["executors"]
    containers = {name.removeprefix("exec-"): content["container"] for name, content in executors.items()}
    assert "gpu" in containers["measure-backbone"]["image"]
    assert containers["measure-backbone"]["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert containers["measure-backbone"]["resources"]["resourceMemoryLimit"] == "8Gi"
    for name in ("check-comparison", "download-data", "compare-backbones"):
        assert "cpu" in containers[name]["image"]
        assert "accelerator" not in containers[name]["resources"]
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name for name, config in placed.items() if "tolerations" in config} == {"exec-measure-backbone"}


def test_the_reviewed_yaml_is_up_to_date_and_the_same_for_every_hash_seed(tmp_path: Path) -> None:
    for seed in ("1", "77"):
        output = tmp_path / f"{seed}.yaml"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pipelines.compile",
                "--pipeline",
                "compare_backbones",
                "--output",
                output,
            ],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
        )
        assert output.read_bytes() == REVIEWED.read_bytes(), "run: make compile"


def command(runs: Path, **flags: object) -> list[str]:
    given = {
        "runs": runs,
        "cache": runs / "cache",
        "validation-fraction": 0.25,
        "test-fraction": 0.25,
        **flags,
    }
    named = [f"--{name}={value}" for name, value in given.items()]
    return [sys.executable, "-m", "pipelines.run_compare", *named]


def run(runs: Path, **flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(runs, **flags), cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def local(picture_folder: Path, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    runs = tmp_path_factory.mktemp("comparison") / "runs"
    backbones = f"efficientnet_lite0, mobilenetv3small=none, {AWAY}"
    result = run(runs, dataset=f"directory:{picture_folder}", backbones=backbones)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = runs.glob("compare-backbones-*")
    return folder, result


def test_a_run_measures_what_it_can_and_says_why_it_cannot(local) -> None:
    folder, _ = local
    content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in content["rows"]}
    assert set(rows) == {"efficientnet_lite0", "mobilenetv3small=none", AWAY}
    assert content["rows"][-1]["name"] == AWAY
    assert "127.0.0.1:9" in rows[AWAY]["error"]
    measured = [row for row in content["rows"] if not row["error"]]
    assert content["best"] == measured[0]["name"]
    assert measured[0]["accuracy"]["value"] >= measured[1]["accuracy"]["value"]
    for row in measured:
        assert row["pictures"] == 12
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
        assert min(row["milliseconds"].values()) > 0
        assert min(row["seconds"].values()) > 0
    sizes = {row["name"]: row["megabytes"] for row in measured}
    assert sizes["mobilenetv3small=none"] < sizes["efficientnet_lite0"] < 25
    compared = measured[1]["to_best"]
    assert compared["pictures"] == 12
    apart = measured[1]["accuracy"]["value"] - measured[0]["accuracy"]["value"]
    assert compared["accuracy"]["difference"] == pytest.approx(apart)
    assert not list(folder.rglob("*.partial*"))


def test_a_run_ends_with_a_table_and_a_picture(local) -> None:
    folder, result = local
    table = result.stdout[result.stdout.index("points to") :]
    assert "mobilenetv3small (random)" in table
    assert f"not measured  {AWAY}" in table
    assert "has the highest accuracy on 12" in table
    assert f"Picture  {folder / 'comparison.html'}" in table
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert "Accuracy against time" in page
    assert len(page) < 100_000


def test_a_comparison_is_no_run_that_other_steps_go_on_from(local) -> None:
    folder, _ = local
    assert not (folder.parent / "latest").exists()
    saved = run_index.load(folder)
    assert saved.status == "succeeded"
    # Every time round the loop is a step of its own.
    assert [name for name in saved.steps if name.startswith("measure_backbone")] == [
        "measure_backbone",
        "measure_backbone 2",
        "measure_backbone 3",
    ]
    places = {step.artifacts["measurement"]["uri"] for name, step in saved.steps.items() if "measure" in name}
    assert len(places) == 3


def test_nothing_measured_is_an_error_that_says_why(local, picture_folder: Path) -> None:
    folder, _ = local
    result = run(folder.parent, dataset=f"directory:{picture_folder}", backbones=AWAY)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: compare_backbones: At least one backbone must be measured. Received: vgg16="
    )


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_backbone_at_work_and_starts_no_other(
    picture_folder: Path, tmp_path: Path, asked: signal.Signals
) -> None:
    runs = tmp_path / "runs"
    flags = {
        "dataset": f"directory:{picture_folder}",
        "backbones": "efficientnet_lite0, mobilenetv3small=none",
    }
    process = subprocess.Popen(
        command(runs, **flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    partial = "compare-backbones-*/*-iteration-0/measure-backbone/.measurement.*"
    deadline = time.monotonic() + 60
    while not list(runs.glob(partial)) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, asked)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, printed + errors
    assert "interrupted" in errors.strip().splitlines()[-1]
    assert not [child for child in children if child.is_running()]
    assert printed.count("▸ measure_backbone") == 1
    (folder,) = runs.glob("compare-backbones-*")
    stopped = run_index.load(folder)
    assert stopped.status == "interrupted"
    assert {name: step.status for name, step in stopped.steps.items()} == {
        "check_comparison": "done",
        "download_data": "done",
        "measure_backbone": "interrupted",
    }
    assert not list(folder.rglob("*.partial*"))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"backbones": "efficientnet_lite0, vgg61"}, "Did you mean 'vgg19'"),
        ({"backbones": "vgg16=/nowhere/vgg16.h5"}, "'/nowhere/vgg16.h5', which is no file"),
        ({"backbones": ","}, "at least one of"),
        ({"dataset": "directory:/nowhere/at/all"}, "/nowhere/at/all"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"validation-fraction": 0.7, "test-fraction": 0.7}, "sum below 1"),
        ({"dataset": "directory:/home/python3/x"}, "must not contain 'python3'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_before_any_work(tmp_path: Path, change, rule, capsys) -> None:
    runs = tmp_path / "runs"
    assert run_compare.main(command(runs, **change)[3:]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert rule in captured.err
    assert not runs.exists()
