"""Where the steps run: images, retries, resources and GPU placement, read from a YAML file."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

DEFAULT = Path(__file__).with_name("settings.yaml")
STEPS = (
    "check_settings",
    "download_data",
    "extract_features",
    "train_head",
    "fine_tune",
    "export_model",
    "evaluate",
    "generate_adversarial",
    "visualise_model",
    "write_report",
    "deploy_model",
)


class SettingsError(ValueError):
    """A settings file that breaks a rule; the message is one line: rule, received value, choices."""


@dataclass(frozen=True)
class Gpu:
    """Placement of the GPU steps; ``count`` 0 means CPU only."""

    count: int = 0
    accelerator: str = "nvidia.com/gpu"
    node_selector: dict[str, str] | None = None
    tolerations: list[dict[str, str]] | None = None
    shared_memory: str = ""
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Everything that differs from cluster to cluster.

    Attributes:
        cpu_image: image of the steps without a GPU.
        gpu_image: image of the steps with one.
        retry_count: how often a failed step is tried again.
        retry_backoff: first pause before that, e.g. ``"30s"``.
        resources: step (or ``"default"``) → ``{"cpu": quantity, "memory": quantity}``.
        gpu: placement of the GPU steps.
        model_store_claim: PersistentVolumeClaim mounted into deploy_model (and check_settings); empty for none.
        model_store_path: where it is mounted.
    """

    cpu_image: str
    gpu_image: str
    retry_count: int
    retry_backoff: str
    resources: dict[str, dict[str, str]]
    gpu: Gpu
    model_store_claim: str = ""
    model_store_path: str = "/mnt/models"

    def image_of(self, step: str) -> str:
        """Return the image that a step runs in."""
        return self.gpu_image if self.uses_gpu(step) else self.cpu_image

    def uses_gpu(self, step: str) -> bool:
        """Return whether a step is placed on a GPU node."""
        return self.gpu.count > 0 and step in self.gpu.steps

    def resources_of(self, step: str) -> dict[str, str]:
        """Return a step's CPU and memory."""
        return {**self.resources.get("default", {}), **self.resources.get(step, {})}

    def for_this_machine(self, image: str) -> "Settings":
        """Return the settings of a local run: one image name, no retries, no cluster resources."""
        return replace(
            self,
            cpu_image=image,
            gpu_image=image,
            retry_count=0,
            resources={},
            gpu=Gpu(),
            model_store_claim="",
        )


def load(path: str | Path | None = None) -> Settings:
    """Read settings; a file names only what differs from ``pipelines/settings.yaml``.

    Raises:
        SettingsError: for a missing file, a key that does not exist, or a value out of its range.
    """
    settings = _read(DEFAULT)
    if path is not None and Path(path) != DEFAULT:
        settings = _merge(settings, _read(Path(path)), where=str(path))
    gpu, retries = settings["gpu"], settings["retries"]
    _check(isinstance(gpu["count"], int) and gpu["count"] >= 0,
           "gpu.count must be a whole number from 0", gpu["count"])  # fmt: skip
    _check(isinstance(retries["count"], int) and retries["count"] >= 0,
           "retries.count must be a whole number from 0", retries["count"])  # fmt: skip
    for step in [*gpu["steps"], *(s for s in settings["resources"] if s != "default")]:
        _check(step in STEPS, f"a step must be one of {', '.join(STEPS)}", step)
    known = {field.name for field in fields(Gpu)}
    return Settings(
        cpu_image=str(settings["images"]["cpu"]),
        gpu_image=str(settings["images"]["gpu"]),
        retry_count=retries["count"],
        retry_backoff=str(retries["backoff"]),
        resources=settings["resources"],
        gpu=Gpu(**{k: tuple(v) if k == "steps" else v for k, v in gpu.items() if k in known}),
        model_store_claim=str(settings["model_store"]["claim"]),
        model_store_path=str(settings["model_store"]["mount_path"]),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The settings file must exist. Received: '{path}' ({error.strerror})") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"The settings file must be YAML. Received: '{path}' ({reason})") from error
    _check(isinstance(content, dict), "The settings file must hold a mapping", path)
    return dict(content)


# Mappings whose keys are the user's own, not ours.
_FREE = {"node_selector", "resources"}


def _merge(base: dict[str, Any], change: dict[str, Any], *, where: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        _check(key in base, f"a setting in {where} must be one of {', '.join(base)}", key)
        if isinstance(base[key], dict) and key not in _FREE:
            _check(isinstance(value, dict), f"{key} must hold a mapping", value)
            merged[key] = _merge(base[key], value, where=f"{where}, {key}")
        else:
            merged[key] = {**base[key], **value} if key == "resources" else value
    return merged


def _check(holds: bool, rule: str, received: Any) -> None:
    if not holds:
        raise SettingsError(f"{rule}. Received: {received!r}")
