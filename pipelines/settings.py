"""Where the steps run: images, retries, resources, GPUs and pods, read from a YAML file."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipelines import pod_settings
from pipelines import setting_rules as rules
from pipelines.pod_settings import Pod
from pipelines.setting_rules import SettingsError, check

__all__ = ["DEFAULT", "STEPS", "Gpu", "Pod", "Settings", "SettingsError", "load"]

DEFAULT = Path(__file__).with_name("settings.yaml")
STEPS = (
    "check_settings",
    "download_data",
    "extract_features",
    "merge_features",
    "train_head",
    "fine_tune",
    "export_model",
    "evaluate",
    "generate_adversarial",
    "visualise_model",
    "write_report",
    "deploy_model",
)
# What a settings file may also hold, of what hands it to a cluster: other modules read it.
_OF_OTHERS = ("cluster", "parameters")
SHARED_MEMORY_PATH = "/dev/shm"  # noqa: S108  # nosec B108 # in the pod, not on this machine


@dataclass(frozen=True)
class Gpu:
    """Placement of the GPU steps; ``count`` 0 means CPU only.

    Attributes:
        count: accelerators a step.
        accelerator: name of the resource that a node offers, such as ``"nvidia.com/gpu"``.
        node_selector: labels that a node must have.
        tolerations: taints that are no hindrance, as ``kfp.kubernetes.add_toleration`` takes them.
        shared_memory: size of /dev/shm, or empty for what the node gives.
        steps: the steps that are given accelerators.
        per_step: step → what differs there from the above.
    """

    count: int = 0
    accelerator: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    shared_memory: str = ""
    steps: tuple[str, ...] = ()
    per_step: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, step: str) -> "Gpu":
        """Return the placement of one step; its count is 0 where the step gets no accelerator."""
        own = self.per_step.get(step, {})
        return replace(self, **{"count": self.count if step in self.steps else 0, **own})


@dataclass(frozen=True)
class Settings:
    """Everything that differs from cluster to cluster.

    Attributes:
        cpu_image: image of the steps without a GPU.
        gpu_image: image of the steps with one.
        retry_count: how often a failed step is tried again.
        retry_backoff: first pause before that, e.g. ``"30s"``.
        resources: step (or ``"default"``) → ``{"cpu": quantity, "memory": quantity}`` and limits.
        gpu: placement of the GPU steps.
        model_store_claim: PersistentVolumeClaim of the steps that take the parameter ``store``; empty for none.
        model_store_path: where it is mounted.
        cache_claim: PersistentVolumeClaim of the steps that take the parameter ``cache``; empty for none.
        cache_path: where it is mounted.
        pods: step (or ``"default"``) → what its pod is given.
        on_cluster: whether the steps are pods of a cluster, rather than processes of this machine.
    """

    cpu_image: str
    gpu_image: str
    retry_count: int
    retry_backoff: str
    resources: dict[str, dict[str, str]]
    gpu: Gpu
    model_store_claim: str = ""
    model_store_path: str = "/mnt/models"
    cache_claim: str = ""
    cache_path: str = "/mnt/cache"
    pods: dict[str, Pod] = field(default_factory=dict)
    on_cluster: bool = True

    def image_of(self, step: str) -> str:
        """Return the image that a step runs in."""
        return self.gpu_image if self.uses_gpu(step) else self.cpu_image

    def uses_gpu(self, step: str) -> bool:
        """Return whether a step is placed on a GPU node."""
        return self.gpu.of(step).count > 0

    def resources_of(self, step: str) -> dict[str, str]:
        """Return a step's CPU and memory."""
        return {**self.resources.get("default", {}), **self.resources.get(step, {})}

    def pod_of(self, step: str, parameters: Collection[str] = ()) -> Pod:
        """Return what the pod of a step is given: the default's settings, then the GPU's, then its own on top.

        Args:
            step: the step.
            parameters: that the step takes; the volumes for ``store`` and ``cache`` go with them.

        Raises:
            SettingsError: two of its mounts or variables stand in each other's way.
        """
        pod, gpu = self.pods.get("default", Pod()), self.gpu.of(step)
        if gpu.count:
            pod = pod.with_more(Pod(node_selector=gpu.node_selector, tolerations=tuple(gpu.tolerations)))
        pod = pod.with_more(self.pods.get(step, Pod()))
        if "store" in parameters:
            pod = pod.with_volume(self.model_store_claim, self.model_store_path)
        if "cache" in parameters:
            pod = pod.with_volume(self.cache_claim, self.cache_path)
        taken = {SHARED_MEMORY_PATH: "gpu.shared_memory"} if gpu.count and gpu.shared_memory else {}
        pod_settings.check_mounts(pod, step, taken)
        return pod

    def for_this_machine(self, image: str) -> "Settings":
        """Return the settings of a local run: one image name, no retries, nothing of a cluster."""
        return replace(
            self,
            cpu_image=image,
            gpu_image=image,
            retry_count=0,
            resources={},
            gpu=Gpu(),
            model_store_claim="",
            cache_claim="",
            pods={},
            on_cluster=False,
        )


def load(path: str | Path | None = None) -> Settings:
    """Read settings; a file names only what differs from ``pipelines/settings.yaml``.

    Raises:
        SettingsError: for a missing file, a key that does not exist, or a value out of its range.
    """
    given = rules.read_yaml(DEFAULT)
    if path is not None and Path(path) != DEFAULT:
        change = {key: value for key, value in rules.read_yaml(path).items() if key not in _OF_OTHERS}
        given = _merge(given, change, where=str(path))
    settings = Settings(
        cpu_image=rules.image(given["images"]["cpu"], "images.cpu"),
        gpu_image=rules.image(given["images"]["gpu"], "images.gpu"),
        retry_count=rules.whole(given["retries"]["count"], "retries.count"),
        retry_backoff=rules.duration(given["retries"]["backoff"], "retries.backoff"),
        resources={
            _step(step, default=True): rules.resources(amounts, f"resources.{step}")
            for step, amounts in given["resources"].items()
        },
        gpu=_gpu(given["gpu"]),
        pods={
            _step(step, default=True): pod_settings.read(pod, f"pods.{step}")
            for step, pod in rules.mapping(given["pods"], "pods").items()
        },
        **_claim(given["model_store"], "model_store"),
        **_claim(given["cache_volume"], "cache_volume", field="cache"),
    )
    for step in STEPS:
        settings.pod_of(step)
        _check_limits(settings.resources_of(step), step)
    return settings


# Mappings whose keys are the user's own, not ours.
_FREE = {"node_selector", "per_step", "pods", "resources"}


def _merge(base: dict[str, Any], change: dict[str, Any], *, where: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        check(key in base, f"a setting in {where} must be one of {', '.join(base)}", key)
        if isinstance(base[key], dict):
            check(isinstance(value, dict), f"{key} must hold a mapping", value)
        if isinstance(base[key], dict) and key not in _FREE:
            merged[key] = _merge(base[key], value, where=f"{where}, {key}")
        else:
            merged[key] = _merge_steps(base[key], value) if key == "resources" else value
    return merged


def _merge_steps(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping step by step, where a change names only what differs in a step."""
    both = {step: (base.get(step, {}), own) for step, own in change.items()}
    merged = {step: {**old, **own} if isinstance(own, dict) else own for step, (old, own) in both.items()}
    return {**base, **merged}


def _step(name: Any, *, default: bool = False) -> str:
    check(name in STEPS or (default and name == "default"), f"a step must be one of {', '.join(STEPS)}", name)
    return str(name)


def _claim(given: dict[str, Any], where: str, *, field: str = "") -> dict[str, str]:
    """Return the two fields of Settings that a claim and its mount path are."""
    claim = "" if given["claim"] == "" else rules.dns_label(given["claim"], f"{where}.claim")
    path = rules.mount_path(given["mount_path"], f"{where}.mount_path")
    return {f"{field or where}_claim": claim, f"{field or where}_path": path}


def _gpu(given: dict[str, Any]) -> Gpu:
    steps = tuple(_step(step) for step in rules.sequence(given["steps"], "gpu.steps"))
    per_step = rules.mapping(given["per_step"], "gpu.per_step")
    return Gpu(
        **_accelerators({k: v for k, v in given.items() if k not in ("steps", "per_step")}, "gpu"),
        steps=steps,
        per_step={_step(step): _accelerators(own, f"gpu.per_step.{step}") for step, own in per_step.items()},
    )


def _accelerators(given: Any, where: str) -> dict[str, Any]:
    """Return what is said of accelerators, of all GPU steps or of one."""
    keys = tuple(name for name in (f.name for f in fields(Gpu)) if name not in ("steps", "per_step"))
    read = rules.mapping(given, where, keys)
    if "count" in read:
        rules.whole(read["count"], f"{where}.count")
    if "accelerator" in read:
        name = rules.label_key(read["accelerator"], f"{where}.accelerator")
        rule = f"{where}.accelerator must be a resource of the nodes such as nvidia.com/gpu or amd.com/gpu"
        check("/" in name, rule, name)
    if "node_selector" in read:
        read["node_selector"] = rules.labels(read["node_selector"], f"{where}.node_selector")
    if "tolerations" in read:
        given = rules.sequence(read["tolerations"], f"{where}.tolerations")
        read["tolerations"] = [
            rules.toleration(value, f"{where}.tolerations[{i}]") for i, value in enumerate(given)
        ]
    if read.get("shared_memory"):
        read["shared_memory"] = rules.memory(read["shared_memory"], f"{where}.shared_memory")
    return read


def _check_limits(resources: dict[str, str], step: str) -> None:
    """Check that a step is not promised more than it may use: Kubernetes refuses such a pod."""
    if "cpu" in resources and "cpu_limit" in resources:
        least, most = resources["cpu"], resources["cpu_limit"]
        check(
            rules.cores(least) <= rules.cores(most),
            f"cpu_limit of {step} must be at least its cpu {least}",
            most,
        )
    if "memory" in resources and "memory_limit" in resources:
        least, most = resources["memory"], resources["memory_limit"]
        rule = f"memory_limit of {step} must be at least its memory {least}"
        check(rules.octets(least) <= rules.octets(most), rule, most)
