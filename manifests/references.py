"""Checks what objects say of each other: labels, ports, volumes, files, replicas. Kubernetes accepts all of these
mistakes, and then nothing is selected, mounted or scaled."""

import re
from collections.abc import Iterator
from typing import Any

from manifests.documents import Document, title
from manifests.pods import Pod, pods_of

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_FILE_FLAG = re.compile(r"--\w+_file=(/.*)")


def problems(documents: list[Document]) -> list[str]:
    """Return where objects do not fit each other, one line each; none where all is well."""
    pods = pods_of(documents)
    config_maps = {d["metadata"]["name"]: d.get("data") or {} for d in documents if d["kind"] == "ConfigMap"}
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    found: list[str] = []
    for document in documents:
        found += _CHECKS[document["kind"]](document, documents, pods) if document["kind"] in _CHECKS else []
    for pod in pods:
        found += [
            *_of_volumes(pod, config_maps),
            *_of_containers(pod, config_maps),
            *_of_pod(pod, accounts),
        ]
    return found


def _line(where: str, rule: str, received: Any, choices: Any = None) -> str:
    ending = f". Choices: {', '.join(map(str, choices)) or 'none'}" if choices is not None else ""
    return f"{where}: {rule}. Received: {received!r}{ending}"


def _ports(pod: Pod) -> set[str | int]:
    """Names and numbers of the ports that a pod's containers name."""
    return {port for _, container in pod.containers() for port in _ports_of(container)}


def _ports_of(container: dict[str, Any]) -> list[str | int]:
    ports = container.get("ports") or []
    return [value for port in ports for value in (port.get("name"), port.get("containerPort")) if value]


def _selected(document: Document, selector: Any, pods: list[Pod]) -> tuple[list[Pod], list[str]]:
    """Return the pods that a selector finds, and a line where it finds none."""
    namespace = document["metadata"].get("namespace", "")
    chosen = [pod for pod in pods if pod.has_labels(selector or {}) and pod.namespace == namespace]
    if chosen:
        return chosen, []
    there = [pod.labels for pod in pods]
    return [], [_line(title(document), "the selector must find pods", selector, there)]


def _of_deployment(document: Document, _: list[Document], pods: list[Pod]) -> Iterator[str]:
    spec, where = document["spec"], title(document)
    wanted = (spec.get("selector") or {}).get("matchLabels") or {}
    pod = next(pod for pod in pods if pod.owner == where)
    if not wanted or not pod.has_labels(wanted):
        yield _line(where, "the selector must find its own pods", wanted, [pod.labels])
    update = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    if [str(update.get(name, 1)).rstrip("%") for name in ("maxSurge", "maxUnavailable")] == ["0", "0"]:
        yield _line(where, "maxSurge or maxUnavailable must be above 0", update)


def _of_service(document: Document, _: list[Document], pods: list[Pod]) -> Iterator[str]:
    chosen, lines = _selected(document, document["spec"].get("selector"), pods)
    yield from lines
    for pod in chosen:
        for port in document["spec"].get("ports") or []:
            target = port.get("targetPort", port.get("port"))
            if target not in _ports(pod):
                rule = f"targetPort must be a port of {pod.owner}"
                yield _line(title(document), rule, target, sorted(_ports(pod), key=str))


def _of_network_policy(document: Document, _: list[Document], pods: list[Pod]) -> Iterator[str]:
    selector = document["spec"].get("podSelector") or {}
    chosen, lines = _selected(document, selector.get("matchLabels"), pods)
    yield from lines
    types = document["spec"].get("policyTypes") or []
    for direction, policy_type in (("ingress", "Ingress"), ("egress", "Egress")):
        if direction in document["spec"] and policy_type not in types:
            yield _line(title(document), f"policyTypes must have {policy_type}", types)
    for pod in chosen:
        for rule in document["spec"].get("ingress") or []:
            for port in rule.get("ports") or []:
                if port.get("port") not in _ports(pod):
                    text = f"a port of ingress must be one of {pod.owner}"
                    yield _line(title(document), text, port.get("port"), sorted(_ports(pod), key=str))


def _of_disruption_budget(document: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    spec = document["spec"]
    chosen, lines = _selected(document, (spec.get("selector") or {}).get("matchLabels"), pods)
    yield from lines
    for pod in chosen:
        scaled = [d["spec"].get("minReplicas", 1) for d in documents if _scales(d, pod)]
        replicas = scaled[0] if scaled else pod.replicas
        least = spec.get("minAvailable")
        blocked = least == "100%" or (isinstance(least, int) and least >= replicas)
        if blocked or spec.get("maxUnavailable") in (0, "0%"):
            rule = f"one of the {replicas} pods of {pod.owner} must be free to go, or no node can be drained"
            yield _line(title(document), rule, {k: v for k, v in spec.items() if k != "selector"})


def _scales(document: Document, pod: Pod) -> bool:
    if document["kind"] != "HorizontalPodAutoscaler":
        return False
    target = document["spec"]["scaleTargetRef"]
    return f"{target['kind']} {target['name']}" == pod.owner


def _of_autoscaler(document: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    spec, where = document["spec"], title(document)
    target = spec["scaleTargetRef"]
    chosen = [pod for pod in pods if _scales(document, pod)]
    objects = [d for d in documents if d["apiVersion"] == target.get("apiVersion")]
    if not chosen or all(title(d) != chosen[0].owner for d in objects):
        yield _line(
            where, "scaleTargetRef must name an object that is there", target, [p.owner for p in pods]
        )
        return
    if any("replicas" in d["spec"] for d in objects if title(d) == chosen[0].owner):
        rule = f"{chosen[0].owner} must not name replicas: applying it would undo the autoscaler's"
        yield _line(where, rule, chosen[0].replicas)
    if spec.get("minReplicas", 1) > spec["maxReplicas"]:
        yield _line(where, "minReplicas must be at most maxReplicas", spec.get("minReplicas"))
    for metric in spec.get("metrics") or []:
        resource = (metric.get("resource") or {}).get("name")
        for container_is, container in chosen[0].containers() if resource else ():
            if resource not in ((container.get("resources") or {}).get("requests") or {}):
                yield _line(where, f"{container_is} must request {resource}, which it scales by", None)


_CHECKS = {
    "Deployment": _of_deployment,
    "Service": _of_service,
    "NetworkPolicy": _of_network_policy,
    "PodDisruptionBudget": _of_disruption_budget,
    "HorizontalPodAutoscaler": _of_autoscaler,
}


def _of_pod(pod: Pod, accounts: set[str]) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if account and not pod.by_kserve and account not in accounts:
        yield _line(pod.owner, "serviceAccountName must be an account that is there", account, accounts)
    for constraint in pod.spec.get("topologySpreadConstraints") or []:
        wanted = (constraint.get("labelSelector") or {}).get("matchLabels") or {}
        if not wanted or not pod.has_labels(wanted):
            rule = "topologySpreadConstraints must count its own pods"
            yield _line(pod.owner, rule, wanted, [pod.labels])
    port = pod.annotations.get("prometheus.io/port")
    if port and not any(str(port) == str(known) for known in _ports(pod)):
        rule = "prometheus.io/port must be a port of the pod"
        yield _line(pod.owner, rule, port, sorted(_ports(pod), key=str))


def _of_volumes(pod: Pod, config_maps: dict[str, dict[str, str]]) -> Iterator[str]:
    volumes = pod.spec.get("volumes") or []
    names = [volume.get("name") for volume in volumes]
    used = set()
    for where, container in pod.containers():
        mounts = container.get("volumeMounts") or []
        used |= {mount.get("name") for mount in mounts}
        for mount in mounts:
            if mount.get("name") not in names:
                yield _line(where, "a mounted volume must be one of the pod's", mount.get("name"), names)
        paths = [mount.get("mountPath") for mount in mounts]
        for path in sorted({path for path in paths if paths.count(path) > 1}, key=str):
            yield _line(where, "only one volume may be mounted at a path", path)
    for name in names:
        if name not in used:
            yield _line(pod.owner, "a volume must be mounted", name)
    for volume in volumes:
        sources = sorted(set(volume) - {"name"})
        if len(sources) != 1:
            yield _line(pod.owner, f"volume '{volume.get('name')}' must have one source", sources)
        source = volume.get("configMap")
        if source is None:
            continue
        if source.get("name") not in config_maps:
            yield _line(pod.owner, "a volume's ConfigMap must be there", source.get("name"), config_maps)
        else:
            keys = config_maps[source["name"]]
            for item in source.get("items") or []:
                if item.get("key") not in keys:
                    yield _line(pod.owner, "a ConfigMap's item must be there", item.get("key"), keys)


def _of_containers(pod: Pod, config_maps: dict[str, dict[str, str]]) -> Iterator[str]:
    volumes = {volume.get("name"): volume for volume in pod.spec.get("volumes") or []}
    for where, container in pod.containers():
        for name in PROBES:
            probe = container.get(name) or {}
            for how in ("httpGet", "tcpSocket", "grpc"):
                if how in probe and probe[how].get("port") not in _ports_of(container):
                    port, choices = probe[how].get("port"), _ports_of(container)
                    yield _line(where, f"the port of {name} must be one of the container's", port, choices)
        stop = ((container.get("lifecycle") or {}).get("preStop") or {}).get("exec") or {}
        command = stop.get("command") or []
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if command[:1] == ["/bin/sleep"] and int(command[1]) >= grace:
            rule = f"preStop must end before terminationGracePeriodSeconds ({grace})"
            yield _line(where, rule, command)
        yield from _of_arguments(where, container, volumes, config_maps)


def _of_arguments(
    where: str,
    container: dict[str, Any],
    volumes: dict[Any, dict[str, Any]],
    config_maps: dict[str, dict[str, str]],
) -> Iterator[str]:
    """A flag that names a file names one that is mounted; a variable in a flag is one of the container's."""
    variables = {entry.get("name"): str(entry.get("value", "")) for entry in container.get("env") or []}
    mounts = container.get("volumeMounts") or []
    for argument in map(str, container.get("args") or []):
        for name in _VARIABLE.findall(argument):
            if name not in variables:
                yield _line(where, f"a variable of {argument} must be in env", name, variables)
        expanded = _VARIABLE.sub(lambda match: variables.get(match[1], match[0]), argument)
        file = _FILE_FLAG.fullmatch(expanded)
        if not file:
            continue
        holding = [m for m in mounts if file[1].startswith(str(m.get("mountPath")).rstrip("/") + "/")]
        if not holding:
            choices = [mount.get("mountPath") for mount in mounts]
            yield _line(where, f"the file of {argument} must lie in a mounted volume", file[1], choices)
        for mount in holding:
            source = (volumes.get(mount.get("name")) or {}).get("configMap") or {}
            keys = config_maps.get(source.get("name", ""))
            key = file[1].removeprefix(str(mount["mountPath"]).rstrip("/") + "/")
            if keys is not None and not source.get("items") and key not in keys:
                yield _line(where, f"the file of {argument} must be in its ConfigMap", key, keys)
