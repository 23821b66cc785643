"""Puts a task where the settings want it: its image, its retries, its resources, its node, and what its pod sees."""

from typing import Any

from kfp import dsl, kubernetes

from pipelines.settings import SHARED_MEMORY_PATH, Gpu, Pod, Settings

# Where KFP's API server writes the identifier of the run on every pod of it.
_RUN_ID = "metadata.labels['pipeline/runid']"


def place(task: dsl.PipelineTask, settings: Settings, *, like: str | None = None) -> None:
    """Give a task its image, retries and resources and, on a cluster, its node and what its pod sees.

    On a cluster every step also learns, from two environment variables that do not change the key of KFP's cache from
    run to run, where it runs: GRAFTFLOW_IMAGE, and GRAFTFLOW_RUN_ID, which is the run's identifier.

    Args:
        task: the task.
        settings: where the steps run.
        like: the step of the settings that it is placed like; by default the step of its own name.

    Raises:
        SettingsError: two of the step's mounts or variables stand in each other's way.
    """
    step = like or task.component_spec.name.replace("-", "_")
    image = settings.image_of(step)
    task.set_container_image(image)
    if settings.retry_count:
        task.set_retry(settings.retry_count, backoff_duration=settings.retry_backoff)
    _give_resources(task, settings.resources_of(step))
    if not settings.on_cluster:
        return
    task.set_env_variable("GRAFTFLOW_IMAGE", image)
    kubernetes.use_field_path_as_env(task, "GRAFTFLOW_RUN_ID", _RUN_ID)
    _give_accelerators(task, settings.gpu.of(step))
    _give_pod(task, settings.pod_of(step, task.component_spec.inputs or {}))


def _give_resources(task: dsl.PipelineTask, resources: dict[str, str]) -> None:
    if "cpu" in resources:
        task.set_cpu_request(resources["cpu"])
    if "cpu_limit" in resources:
        task.set_cpu_limit(resources["cpu_limit"])
    if "memory" in resources:
        task.set_memory_request(resources["memory"])
    # Without a limit of its own, memory is limited to what was asked for: more may not be there.
    limit = resources.get("memory_limit") or resources.get("memory")
    if limit:
        task.set_memory_limit(limit)


def _give_accelerators(task: dsl.PipelineTask, gpu: Gpu) -> None:
    """Give a task its accelerators: constants, since some of KFP's servers ignore what a parameter says here."""
    if not gpu.count:
        return
    task.set_accelerator_type(gpu.accelerator).set_accelerator_limit(gpu.count)
    if gpu.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            volume_name="shared-memory",
            mount_path=SHARED_MEMORY_PATH,
            medium="Memory",
            size_limit=gpu.shared_memory,
        )


def _give_pod(task: dsl.PipelineTask, pod: Pod) -> None:
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, **toleration)
    for term in pod.node_affinity:
        kubernetes.add_node_affinity(task, match_expressions=term["expressions"], weight=term["weight"])
    if pod.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(pod.image_pull_secrets))
    if pod.image_pull_policy:
        kubernetes.set_image_pull_policy(task, pod.image_pull_policy)
    for volume in pod.volumes:
        kubernetes.mount_pvc(task, volume.claim, volume.mount_path, sub_path=volume.sub_path)
    _give_sources(task, pod)
    for key, value in pod.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in pod.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    for name, value in pod.env.items():
        task.set_env_variable(name, value)
    if pod.timeout:
        kubernetes.set_timeout(task, pod.timeout)
    if pod.security:
        kubernetes.set_security_context(task, **pod.security)


def _give_sources(task: dsl.PipelineTask, pod: Pod) -> None:
    """Give a task its secrets and config maps, as variables or as files."""
    given: tuple[tuple[Any, Any, Any], ...] = (
        (pod.secrets, kubernetes.use_secret_as_env, kubernetes.use_secret_as_volume),
        (pod.config_maps, kubernetes.use_config_map_as_env, kubernetes.use_config_map_as_volume),
    )
    for sources, as_env, as_volume in given:
        for source in sources:
            if source.env:
                as_env(task, source.name, source.env, optional=source.optional)
            else:
                as_volume(task, source.name, source.mount_path, optional=source.optional)
