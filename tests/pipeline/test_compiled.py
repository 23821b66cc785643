"""The compiled pipeline: its edges, images, gate, caching and GPU placement, read back through KFP's own protobufs."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig, PipelineSpec

from components.image import IMAGE
from graftflow.recipes import Recipe
from pipelines import compile as compile_module
from pipelines import parameters
from pipelines import settings as settings_file
from pipelines.settings import STEPS, SettingsError

ROOT = Path(__file__).resolve().parents[2]
GPU_SETTINGS = ROOT / "pipelines" / "settings.gpu.yaml"
TASKS = {step.replace("_", "-") for step in STEPS}
NOT_REPORTED = {"check-settings", "extract-features", "write-report", "deploy-model"}


def compiled(tmp_path: Path, settings: Path | None = None) -> tuple[PipelineSpec, dict]:
    output = tmp_path / "pipeline.yaml"
    compile_module.compile_pipeline(output, settings_file.load(settings))
    pipeline, *platform = yaml.safe_load_all(output.read_text(encoding="utf-8"))
    spec = json_format.ParseDict(pipeline, PipelineSpec())
    return spec, platform[0] if platform else {}


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> PipelineSpec:
    return compiled(tmp_path_factory.mktemp("compiled"))[0]


@pytest.fixture(scope="module")
def gpu(tmp_path_factory) -> tuple[PipelineSpec, dict]:
    return compiled(tmp_path_factory.mktemp("compiled"), GPU_SETTINGS)


def executors(spec: PipelineSpec) -> dict[str, PipelineDeploymentConfig.ExecutorSpec]:
    found = spec.deployment_spec["executors"]
    return {
        name.removeprefix("exec-"): json_format.ParseDict(
            json_format.MessageToDict(found[name]), PipelineDeploymentConfig.ExecutorSpec()
        )
        for name in found
    }


def configs_of(platform: dict) -> dict[str, KubernetesExecutorConfig]:
    """Every step's Kubernetes settings, through KFP's own message."""
    found = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): json_format.ParseDict(content, KubernetesExecutorConfig())
        for name, content in found.items()
    }


def edges(dag) -> set[tuple[str, str]]:
    return {
        (given.task_output_artifact.producer_task, name)
        for name, task in dag.tasks.items()
        for given in task.inputs.artifacts.values()
        if given.HasField("task_output_artifact")
    }


def tasks_of(spec: PipelineSpec) -> dict:
    """Every step's task, whichever loop or gate it stands in."""
    dags = [spec.root.dag, *(c.dag for c in spec.components.values() if c.HasField("dag"))]
    return {name: task for dag in dags for name, task in dag.tasks.items() if name in TASKS}


def test_every_step_is_in_the_graph(spec: PipelineSpec) -> None:
    assert set(executors(spec)) == TASKS


def test_edges_are_those_of_the_design(spec: PipelineSpec) -> None:
    assert edges(spec.root.dag) == {
        ("download-data", "for-loop-1"),
        ("for-loop-1", "merge-features"),
        ("merge-features", "train-head"),
        ("download-data", "fine-tune"),
        ("train-head", "fine-tune"),
        ("download-data", "export-model"),
        ("fine-tune", "export-model"),
        ("download-data", "evaluate"),
        ("export-model", "evaluate"),
        ("download-data", "generate-adversarial"),
        ("fine-tune", "generate-adversarial"),
        ("train-head", "generate-adversarial"),
        ("evaluate", "generate-adversarial"),
        ("download-data", "visualise-model"),
        ("fine-tune", "visualise-model"),
        ("merge-features", "visualise-model"),
        ("evaluate", "visualise-model"),
        *((step, "write-report") for step in TASKS - NOT_REPORTED),
        ("download-data", "condition-2"),
        ("export-model", "condition-2"),
        ("evaluate", "condition-2"),
    }
    gated = spec.components["comp-condition-3"].dag.tasks["deploy-model"]
    assert set(gated.inputs.artifacts) == {"dataset", "saved_model", "evaluation"}


def test_settings_are_checked_before_anything_is_downloaded(spec: PipelineSpec) -> None:
    assert list(spec.root.dag.tasks["download-data"].dependent_tasks) == ["check-settings"]
    checked = set(spec.root.dag.tasks["check-settings"].inputs.parameters)
    every = set(spec.root.input_definitions.parameters)
    # attack_target is one of the data's own classes, which are not known yet; the fingerprint is any text.
    assert every - checked == {"attack_target", "fingerprint"}


@pytest.mark.parametrize(
    ("outer", "gate", "step", "threshold"),
    [
        ("", "condition-2", "evaluate", "min_accuracy"),
        ("condition-2", "condition-3", "generate-adversarial", "min_robust_accuracy"),
    ],
)
def test_deployment_waits_behind_gates_on_the_returned_accuracies(
    spec: PipelineSpec, outer: str, gate: str, step: str, threshold: str
) -> None:
    dag = spec.components[f"comp-{outer}"].dag if outer else spec.root.dag
    condition = dag.tasks[gate].trigger_policy.condition
    assert condition == (
        f"inputs.parameter_values['pipelinechannel--{step}-Output'] >= "
        f"inputs.parameter_values['pipelinechannel--{threshold}']"
    )
    given = spec.root.dag.tasks["condition-2"].inputs.parameters[f"pipelinechannel--{step}-Output"]
    source = given.task_output_parameter
    assert (source.producer_task, source.output_parameter_key) == (step, "Output")
    inside = {"condition-2": "condition-3", "condition-3": "deploy-model"}
    assert set(spec.components[f"comp-{gate}"].dag.tasks) == {inside[gate]}


def test_shards_are_extracted_in_a_loop_and_gathered(spec: PipelineSpec) -> None:
    """Each shard is a task with retries and a GPU of its own: a failed one alone is tried again."""
    loop = spec.root.dag.tasks["for-loop-1"]
    items = loop.parameter_iterator.items.input_parameter
    source = loop.inputs.parameters[items].task_output_parameter
    assert (source.producer_task, source.output_parameter_key) == ("check-settings", "Output")
    assert not loop.iterator_policy.parallelism_limit
    inside = spec.components["comp-for-loop-1"].dag.tasks
    assert set(inside) == {"extract-features"}
    assert inside["extract-features"].retry_policy.max_retry_count == 2
    given = inside["extract-features"].inputs.parameters
    assert given["shard"].component_input_parameter.endswith("Output-loop-item")
    assert given["num_shards"].component_input_parameter == "pipelinechannel--shards"
    merged = spec.root.dag.tasks["merge-features"].inputs.artifacts["feature_shards"]
    assert merged.task_output_artifact.producer_task == "for-loop-1"
    assert (
        spec.components["comp-merge-features"].input_definitions.artifacts["feature_shards"].is_artifact_list
    )


def test_images_resources_and_retries_come_from_the_settings(spec: PipelineSpec) -> None:
    for executor in executors(spec).values():
        assert executor.container.image == IMAGE
        assert not executor.container.resources.HasField("accelerator")
        assert "pip install" not in " ".join(executor.container.command)
    fine_tune = executors(spec)["fine-tune"].container.resources
    assert fine_tune.resource_memory_limit == "8Gi"
    tasks = tasks_of(spec)
    assert set(tasks) == TASKS
    for task in tasks.values():
        assert task.retry_policy.max_retry_count == 2
        assert task.retry_policy.backoff_duration.seconds == 30


def test_every_step_but_the_deployment_is_cached_and_has_a_name_for_people(spec) -> None:
    tasks = tasks_of(spec)
    assert {n for n, t in tasks.items() if not t.caching_options.enable_cache} == {"deploy-model"}
    names = {name: task.task_info.name for name, task in tasks.items()}
    assert names["generate-adversarial"] == "Generate adversarial samples"
    assert len(set(names.values())) == len(TASKS)


def test_every_parameter_is_documented(spec: PipelineSpec) -> None:
    for name, parameter in spec.root.input_definitions.parameters.items():
        assert parameter.description, name


def test_the_defaults_of_fine_tuning_are_those_of_its_recipe() -> None:
    values = parameters.defaults(parameters.local_pipeline("python"))
    names = {"epochs": "fine_tune_epochs", "num_views": "fine_tune_views"}
    shared = {name: value for name, value in asdict(Recipe()).items() if names.get(name, name) in values}
    assert len(shared) == 13
    assert shared == {name: values[names.get(name, name)] for name in shared}


def test_every_step_learns_its_image_and_its_run_and_nothing_else_of_a_cluster(tmp_path, spec) -> None:
    _, platform = compiled(tmp_path)
    configs = configs_of(platform)
    assert set(configs) == TASKS
    for name, config in configs.items():
        assert [field.name for field, _ in config.ListFields()] == ["field_path_as_env"]
        (run,) = config.field_path_as_env
        assert (run.name, run.field_path) == ("GRAFTFLOW_RUN_ID", "metadata.labels['pipeline/runid']")
        container = executors(spec)[name].container
        assert {v.name: v.value for v in container.env} == {"GRAFTFLOW_IMAGE": container.image}


def test_gpu_steps_are_placed_by_settings_alone(gpu) -> None:
    spec, platform = gpu
    steps = {"extract-features", "fine-tune", "generate-adversarial", "visualise-model"}
    for name, executor in executors(spec).items():
        accelerator = executor.container.resources.accelerator
        if name in steps:
            assert accelerator.resource_type == "nvidia.com/gpu"
            assert accelerator.resource_count == "1"
            assert "gpu" in executor.container.image
        else:
            assert not executor.container.resources.HasField("accelerator")
    configs = configs_of(platform)
    assert {name for name, config in configs.items() if config.tolerations} == steps
    for config in (configs[name] for name in steps):
        assert dict(config.node_selector.labels) == {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}
        (toleration,) = config.tolerations
        assert (toleration.key, toleration.effect) == ("nvidia.com/gpu", "NoSchedule")
        (shared,) = config.empty_dir_mounts
        assert (shared.mount_path, shared.medium, shared.size_limit) == (
            "/dev/shm",
            "Memory",
            "2Gi",
        )


def test_own_settings_change_placement(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "gpu: {count: 2, node_selector: {pool: a100}, tolerations: [], steps: [fine_tune]}\n"
        "retries: {count: 0}\nmodel_store: {claim: models}\n"
    )
    spec, platform = compiled(tmp_path, own)
    assert executors(spec)["fine-tune"].container.resources.accelerator.resource_count == "2"
    configs = configs_of(platform)
    assert {name for name, config in configs.items() if config.HasField("node_selector")} == {"fine-tune"}
    assert dict(configs["fine-tune"].node_selector.labels) == {"pool": "a100"}
    stores = {name: [m.mount_path for m in config.pvc_mount] for name, config in configs.items()}
    assert {name: paths for name, paths in stores.items() if paths} == {
        "check-settings": ["/mnt/models"],
        "deploy-model": ["/mnt/models"],
    }
    assert not spec.root.dag.tasks["fine-tune"].HasField("retry_policy")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("gpu: {cuont: 1}", "must be one of count"),
        ("gpu: {count: -1}", "gpu.count must be a whole number from 0. Received: -1"),
        ("gpu: {count: many}", "gpu.count must be a whole number from 0"),
        ("gpu: {steps: [train]}", "a step must be one of .*train_head.*Received: 'train'"),
        ("resources: {train: {cpu: 1}}", "a step must be one of"),
        ("retries: 3", "retries must hold a mapping"),
        ("- a list", "must hold a mapping"),
        ("gpu: {", "must be YAML"),
        (None, "must exist"),
    ],
)
def test_bad_settings_are_refused_in_one_line(tmp_path: Path, text, rule, capsys) -> None:
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=rule):
        settings_file.load(path)
    output = tmp_path / "out.yaml"
    assert compile_module.main(["--settings", str(path), "--output", str(output)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not output.exists()


def test_the_reviewed_yaml_is_up_to_date_and_the_same_for_every_hash_seed(tmp_path: Path) -> None:
    reviewed = compile_module.OUTPUT.read_bytes()
    for seed in ("1", "77"):
        output = tmp_path / f"{seed}.yaml"
        subprocess.run(
            [sys.executable, "-m", "pipelines.compile", "--output", str(output)],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
        )
        assert output.read_bytes() == reviewed, "run: make compile"
