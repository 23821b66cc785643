"""Puts a task where the settings want it: its image, its retries, its resources, its node."""

from kfp import dsl, kubernetes

from pipelines.settings import Settings


def place(task: dsl.PipelineTask, settings: Settings, *, like: str | None = None) -> None:
    """Give a task its image, retries, resources and, where it is a GPU step, its node.

    Args:
        task: the task.
        settings: where the steps run.
        like: the step of the settings that it is placed like; by default the step of its own name.
    """
    step = like or task.component_spec.name.replace("-", "_")
    task.set_container_image(settings.image_of(step))
    if settings.retry_count:
        task.set_retry(settings.retry_count, backoff_duration=settings.retry_backoff)
    resources = settings.resources_of(step)
    if "cpu" in resources:
        task.set_cpu_request(resources["cpu"])
    if "memory" in resources:
        task.set_memory_request(resources["memory"]).set_memory_limit(resources["memory"])
    if not settings.uses_gpu(step):
        return
    gpu = settings.gpu
    task.set_accelerator_type(gpu.accelerator).set_accelerator_limit(gpu.count)
    for key, value in (gpu.node_selector or {}).items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in gpu.tolerations or []:
        kubernetes.add_toleration(task, **toleration)
    if gpu.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            volume_name="shared-memory",
            mount_path="/dev/shm",
            medium="Memory",
            size_limit=gpu.shared_memory,
        )
