"""The pods that KFP makes of a compiled pipeline's steps, told without a cluster.

A follow-up in Python of what KFP's backend does: ``initPodSpecPatch`` and ``extendPodSpecPatch`` of its driver turn a
step's container and its Kubernetes settings into a pod's specification, and its compiler for Argo adds the volumes of
the launcher and the labels. Reading the pods before a run shows what Kubernetes would refuse in the middle of one.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.setting_rules import KFP_MOUNTS

# The oldest release of Kubernetes whose fields the pods keep to, and the newest that is known.
RELEASES = ("1.30", "1.37")
_LIMITS = {
    "requests": (("cpu", "resourceCpuRequest"), ("memory", "resourceMemoryRequest")),
    "limits": (("cpu", "resourceCpuLimit"), ("memory", "resourceMemoryLimit")),
}


def read(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the pods of a compiled pipeline: step, as KFP calls it (``fine-tune``) → object of kind Pod.

    Args:
        path: the YAML that ``pipelines.compile`` writes.
    """
    pipeline, *platform = yaml.safe_load_all(Path(path).read_text(encoding="utf-8"))
    given = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platform else {}
    return {
        name.removeprefix("exec-"): pod_of(
            name.removeprefix("exec-"), executor["container"], given.get(name, {})
        )
        for name, executor in pipeline["deploymentSpec"]["executors"].items()
    }


def problems(pods: dict[str, dict[str, Any]]) -> list[str]:
    """Return what Kubernetes would refuse in the pods of a pipeline, one line each; none where all is well.

    Names that must differ are always looked at; fields and types where the package kubernetes-validate, one of the
    tests', is installed.

    Args:
        pods: step → object of kind Pod, as :func:`read` returns them.
    """
    found = [line for step, pod in pods.items() for line in _repeated(step, pod["spec"])]
    try:
        import kubernetes_validate
    except ModuleNotFoundError:
        return found
    everything = {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": list(pods.values())}
    for release in RELEASES:
        try:
            kubernetes_validate.validate(everything, release, strict=True)
        except kubernetes_validate.ValidationError as error:
            _, index, *path = error.absolute_path
            place = ".".join(str(part) for part in path)
            found.append(
                f"{list(pods)[index]}: its pod's {place} must be as Kubernetes {release} has it. "
                f"Received: {error.message}"
            )
    return found


def _repeated(step: str, spec: dict[str, Any]) -> Iterator[str]:
    main = spec["containers"][0]
    for what, names in (
        ("names of volumes", [volume["name"] for volume in spec["volumes"]]),
        ("mount paths", [mount["mountPath"] for mount in main["volumeMounts"]]),
        ("environment variables", [variable["name"] for variable in main["env"]]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{step}: {what} must differ. Received twice: '{name}'"


def pod_of(step: str, container: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of one step.

    Args:
        step: what it is called.
        container: the step's ``container`` in the compiled pipeline.
        given: its Kubernetes settings there, a KubernetesExecutorConfig; empty where it has none.
    """
    mounts = [{"name": name, "mountPath": path} for name, path in KFP_MOUNTS.items()]
    volumes: list[dict[str, Any]] = [{"name": name, "emptyDir": {}} for name in KFP_MOUNTS]
    for mount, volume in _volumes(given):
        mounts.append(mount)
        volumes.append(volume)
    main: dict[str, Any] = {
        "name": "main",
        "image": container["image"],
        "command": ["/kfp-launcher/launch"],
        "args": [*container.get("command", []), *container.get("args", [])],
        "env": [*container.get("env", []), *_variables(given)],
        "resources": _resources(container.get("resources", {})),
        "volumeMounts": mounts,
        "securityContext": _security(given.get("securityContext", {})),
    }
    if "imagePullPolicy" in given:
        main["imagePullPolicy"] = given["imagePullPolicy"]
    spec: dict[str, Any] = {"containers": [main], "volumes": volumes, "restartPolicy": "Never"}
    if "nodeSelector" in given:
        spec["nodeSelector"] = given["nodeSelector"]["labels"]
    if "tolerations" in given:
        spec["tolerations"] = [
            {key: int(value) if key == "tolerationSeconds" else value for key, value in toleration.items()}
            for toleration in given["tolerations"]
        ]
    if "nodeAffinity" in given:
        spec["affinity"] = {"nodeAffinity": _node_affinity(given["nodeAffinity"])}
    if "imagePullSecret" in given:
        spec["imagePullSecrets"] = [{"name": secret["secretName"]} for secret in given["imagePullSecret"]]
    if "activeDeadlineSeconds" in given:
        spec["activeDeadlineSeconds"] = int(given["activeDeadlineSeconds"])
    metadata = given.get("podMetadata", {})
    # KFP's own labels come last: they stand above a pipeline's.
    labels = {**metadata.get("labels", {}), "pipeline/runid": "00000000-0000-0000-0000-000000000000"}
    named = {"name": step, "labels": labels, "annotations": metadata.get("annotations", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": spec}


def _volumes(given: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each mount with its volume; KFP calls the volume like the claim, secret or config map."""
    for claim in given.get("pvcMount", []):
        mount = {"name": claim["constant"], "mountPath": claim["mountPath"]}
        if claim.get("subPath"):
            mount["subPath"] = claim["subPath"]
        source = {"persistentVolumeClaim": {"claimName": claim["constant"]}}
        yield mount, {"name": claim["constant"], **source}
    for secret in given.get("secretAsVolume", []):
        mount = {"name": secret["secretName"], "mountPath": secret["mountPath"]}
        source = {"secretName": secret["secretName"], "optional": secret.get("optional", False)}
        yield mount, {"name": secret["secretName"], "secret": source}
    for config in given.get("configMapAsVolume", []):
        mount = {"name": config["configMapName"], "mountPath": config["mountPath"]}
        source = {"name": config["configMapName"], "optional": config.get("optional", False)}
        yield mount, {"name": config["configMapName"], "configMap": source}
    for empty in given.get("emptyDirMounts", []):
        mount = {"name": empty["volumeName"], "mountPath": empty["mountPath"]}
        limit = {"sizeLimit": empty["sizeLimit"]} if "sizeLimit" in empty else {}
        yield mount, {"name": empty["volumeName"], "emptyDir": {"medium": empty.get("medium", ""), **limit}}


def _variables(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the environment variables that come from elsewhere than the pipeline itself."""
    for sources, name, key, reference in (
        ("secretAsEnv", "secretName", "secretKey", "secretKeyRef"),
        ("configMapAsEnv", "configMapName", "configMapKey", "configMapKeyRef"),
    ):
        for source in given.get(sources, []):
            for pair in source["keyToEnv"]:
                wanted = {"name": source[name], "key": pair[key], "optional": source.get("optional", False)}
                yield {"name": pair["envVar"], "valueFrom": {reference: wanted}}
    for field in given.get("fieldPathAsEnv", []):
        yield {"name": field["name"], "valueFrom": {"fieldRef": {"fieldPath": field["fieldPath"]}}}


def _resources(given: dict[str, Any]) -> dict[str, dict[str, str]]:
    amounts = {
        kind: {name: given[key] for name, key in names if key in given} for kind, names in _LIMITS.items()
    }
    if "accelerator" in given:
        accelerator = given["accelerator"]
        amounts["limits"][accelerator["resourceType"]] = accelerator["resourceCount"]
    return amounts


def _node_affinity(terms: list[dict[str, Any]]) -> dict[str, Any]:
    """Return terms as Kubernetes has them: those without a weight are choices, of which one must hold."""
    required = [_term(term) for term in terms if "weight" not in term]
    preferred = [
        {"weight": int(term["weight"]), "preference": _term(term)} for term in terms if "weight" in term
    ]
    affinity: dict[str, Any] = {}
    if required:
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": required}
    if preferred:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    return affinity


def _term(term: dict[str, Any]) -> dict[str, Any]:
    return {name: term[name] for name in ("matchExpressions", "matchFields") if name in term}


def _security(given: dict[str, Any]) -> dict[str, Any]:
    """Return a container's identity; KFP always takes its capabilities away where one is given."""
    if not given:
        return {}
    numbers = {name: int(given[name]) for name in ("runAsUser", "runAsGroup") if name in given}
    flags = {name: given[name] for name in ("runAsNonRoot",) if name in given}
    return {**numbers, **flags, "capabilities": {"drop": ["ALL"]}}
