"""What the settings give the pod of a step beside images, resources and GPUs: where it may run, what it sees."""

from dataclasses import dataclass, field, fields
from typing import Any

from pipelines import setting_rules as rules
from pipelines.setting_rules import check

# What a pod may have in Kubernetes and kfp-kubernetes cannot write, and what to do instead.
_BEYOND_KFP = {
    "service_account": "the service account is the run's, not a step's: name it when the run is submitted",
    "priority_class": "KFP has no field for it: let an admission policy of the cluster set it, by the pod's labels",
    "pod_affinity": "KFP has none: take node_affinity or node_selector",
    "pod_anti_affinity": "KFP has none: take node_affinity or node_selector",
    "topology_spread": "KFP has no field for it: take node_affinity or node_selector",
    "runtime_class": "KFP has no field for it: let an admission policy of the cluster set it, by the pod's labels",
    "resources": "name it outside of pods: resources is a setting of its own, step by step",
    "gpu": "name it outside of pods: gpu.per_step says it step by step",
    "accelerator": "name it outside of pods: gpu.per_step says it step by step",
}
_KFP_LABELS = ("pipeline/", "pipelines.kubeflow.org/", "workflows.argoproj.io/")


@dataclass(frozen=True)
class Source:
    """A secret or a config map: as environment variables, or as files in a folder.

    Attributes:
        name: of the secret or the config map.
        env: its keys → environment variables.
        mount_path: the folder; empty where ``env`` is given.
        optional: whether the pod starts without it.
    """

    name: str
    env: dict[str, str] = field(default_factory=dict)
    mount_path: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim, mounted."""

    claim: str
    mount_path: str
    sub_path: str = ""


@dataclass(frozen=True)
class Pod:
    """What the pod of a step is given.

    Attributes:
        node_selector: labels that a node must have.
        tolerations: taints that are no hindrance, as ``kfp.kubernetes.add_toleration`` takes them.
        node_affinity: terms ``{"expressions", "weight"}``; of those without a weight, one must hold.
        image_pull_secrets: secrets with the registry's password.
        image_pull_policy: Always, IfNotPresent, Never or empty.
        secrets: that the step sees.
        config_maps: that the step sees.
        volumes: that the step sees.
        labels: of the pod.
        annotations: of the pod.
        env: environment variables.
        timeout: seconds after which the step fails; 0 for none.
        security: ``run_as_user``, ``run_as_group`` and ``run_as_non_root``, where given.
    """

    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    node_affinity: tuple[dict[str, Any], ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    image_pull_policy: str = ""
    secrets: tuple[Source, ...] = ()
    config_maps: tuple[Source, ...] = ()
    volumes: tuple[Volume, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    timeout: int = 0
    security: dict[str, Any] = field(default_factory=dict)

    def with_more(self, other: "Pod") -> "Pod":
        """Return this pod with another's settings on top: mappings and lists grow, single values are replaced."""
        merged: dict[str, Any] = {}
        for name in (known.name for known in fields(self)):
            mine, more = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                merged[name] = {**mine, **more}
            elif isinstance(mine, tuple):
                merged[name] = (*mine, *(element for element in more if element not in mine))
            else:
                merged[name] = more or mine
        return Pod(**merged)

    def with_volume(self, claim: str, mount_path: str) -> "Pod":
        """Return this pod with one more volume, unless it has that one; of no claim, this pod."""
        return self.with_more(Pod(volumes=(Volume(claim, mount_path),))) if claim else self


def read(value: Any, where: str) -> Pod:
    """Return the pod that a mapping of a settings file describes.

    Args:
        value: the mapping.
        where: what it is called in messages, such as ``pods.fine_tune``.

    Raises:
        SettingsError: for a setting that does not exist or that KFP cannot write, or a value out of its range.
    """
    for name, advice in _BEYOND_KFP.items():
        if isinstance(value, dict) and name in value:
            check(False, f"{where}.{name} cannot be set here: {advice}", value[name])
    given = rules.mapping(value, where, tuple(known.name for known in fields(Pod)))
    pod = {name: _READERS[name](content, f"{where}.{name}") for name, content in given.items()}
    for key in pod.get("labels", {}):
        theirs = key.startswith(_KFP_LABELS)
        check(not theirs, f"a key in {where}.labels must not be one of KFP's ({', '.join(_KFP_LABELS)})", key)
    return Pod(**pod)


def check_mounts(pod: Pod, step: str, taken: dict[str, str] | None = None) -> None:
    """Check that a step's mounts and variables do not stand in each other's way.

    Args:
        pod: of the step, everything that it is given merged.
        step: the step's name, for messages.
        taken: paths that are mounted by others → who mounts them.

    Raises:
        SettingsError: for a path mounted twice, a claim, secret or config map mounted twice (KFP names the volume
            after it, and a pod's volumes must have names of their own), or a variable set twice.
    """
    paths = dict(taken or {})
    names = set(rules.KFP_MOUNTS)
    variables = set(pod.env)
    mounts = [(volume.claim, volume.mount_path) for volume in pod.volumes]
    for source in (*pod.secrets, *pod.config_maps):
        if source.mount_path:
            mounts.append((source.name, source.mount_path))
        for variable in source.env.values():
            check(variable not in variables, f"an environment variable of {step} must be set once", variable)
            variables.add(variable)
    for name, path in mounts:
        by = f", and {paths[path]} is there" if path in paths else ""
        check(path not in paths, f"a mount path of {step} must be used once{by}", path)
        check(name not in names, f"a claim, secret or config map must be mounted once in {step}", name)
        paths[path] = f"'{name}'"
        names.add(name)


def _tolerations(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    return tuple(rules.toleration(v, f"{where}[{i}]") for i, v in enumerate(rules.sequence(value, where)))


def _node_affinity(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    return tuple(rules.node_affinity(v, f"{where}[{i}]") for i, v in enumerate(rules.sequence(value, where)))


def _names(value: Any, where: str) -> tuple[str, ...]:
    return tuple(rules.object_name(v, f"{where}[{i}]") for i, v in enumerate(rules.sequence(value, where)))


def _secrets(value: Any, where: str) -> tuple[Source, ...]:
    return tuple(_source(v, f"{where}[{i}]", "secret") for i, v in enumerate(rules.sequence(value, where)))


def _config_maps(value: Any, where: str) -> tuple[Source, ...]:
    return tuple(
        _source(v, f"{where}[{i}]", "config_map") for i, v in enumerate(rules.sequence(value, where))
    )


def _source(value: Any, where: str, kind: str) -> Source:
    given = rules.mapping(value, where, (kind, "env", "mount_path", "optional"))
    rule = f"{where} must have {kind} and either env (its keys: variables) or mount_path (a folder for its files)"
    check(kind in given and ("env" in given) != ("mount_path" in given), rule, given)
    name = rules.object_name(given[kind], f"{where}.{kind}")
    optional = rules.flag(given.get("optional", False), f"{where}.optional")
    if "env" in given:
        return Source(name, env=rules.keys_to_env(given["env"], f"{where}.env"), optional=optional)
    rules.dns_label(name, f"{where}.{kind}, which names the volume,")
    return Source(
        name, mount_path=rules.mount_path(given["mount_path"], f"{where}.mount_path"), optional=optional
    )


def _volumes(value: Any, where: str) -> tuple[Volume, ...]:
    read = []
    for i, v in enumerate(rules.sequence(value, where)):
        given = rules.mapping(v, f"{where}[{i}]", ("claim", "mount_path", "sub_path"))
        holds = "claim" in given and "mount_path" in given
        check(holds, f"{where}[{i}] must have claim and mount_path", given)
        read.append(
            Volume(
                claim=rules.dns_label(given["claim"], f"{where}[{i}].claim"),
                mount_path=rules.mount_path(given["mount_path"], f"{where}[{i}].mount_path"),
                sub_path=rules.sub_path(given["sub_path"], f"{where}[{i}].sub_path")
                if "sub_path" in given
                else "",
            )
        )
    return tuple(read)


def _security(value: Any, where: str) -> dict[str, Any]:
    given = rules.mapping(value, where, ("run_as_user", "run_as_group", "run_as_non_root"))
    for name, content in given.items():
        if name == "run_as_non_root":
            rules.flag(content, f"{where}.{name}")
        else:
            rules.whole(content, f"{where}.{name}")
    root = given.get("run_as_non_root") and given.get("run_as_user") == 0
    check(not root, f"{where}.run_as_user must be above 0 with run_as_non_root", 0)
    return given


def _pull_policy(value: Any, where: str) -> str:
    return rules.choice(value, where, ("Always", "IfNotPresent", "Never"))


_READERS = {
    "node_selector": rules.labels,
    "tolerations": _tolerations,
    "node_affinity": _node_affinity,
    "image_pull_secrets": _names,
    "image_pull_policy": _pull_policy,
    "secrets": _secrets,
    "config_maps": _config_maps,
    "volumes": _volumes,
    "labels": rules.labels,
    "annotations": rules.annotations,
    "env": rules.env,
    "timeout": rules.seconds,
    "security": _security,
}
