"""Checks that pods ask for no more than a model server needs: Kubernetes' `restricted` profile, and a little more.

Source: Kubernetes' Pod Security Standards. Beyond them: a read-only root file system, no token of the cluster,
resources for the scheduler, a pinned image.
"""

from collections.abc import Iterator
from typing import Any

from manifests.documents import Document, title
from manifests.pods import Pod, pods_of


def problems(documents: list[Document]) -> list[str]:
    """Return where objects ask for more than they may, one line each; none where all is well."""
    found = [line for pod in pods_of(documents) for line in _of_pod(pod)]
    for document in documents:
        if document["kind"] == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
            given = document.get("automountServiceAccountToken")
            found.append(_line(title(document), "automountServiceAccountToken must be false", given))
    return found


def _line(where: str, rule: str, received: Any) -> str:
    return f"{where}: {rule}. Received: {received!r}"


def _of_pod(pod: Pod) -> Iterator[str]:
    spec = pod.spec
    if spec.get("automountServiceAccountToken") is not False:
        given = spec.get("automountServiceAccountToken")
        yield _line(pod.owner, "automountServiceAccountToken must be false", given)
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield _line(pod.owner, f"{name} must not be set", spec[name])
    for volume in spec.get("volumes") or []:
        if "hostPath" in volume:
            yield _line(pod.owner, "a volume must not be a folder of the node", volume)
    for where, container in pod.containers():
        yield from _of_container(where, container, spec.get("securityContext") or {})


def _of_container(where: str, container: dict[str, Any], of_pod: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    either = {**of_pod, **own}
    if either.get("runAsNonRoot") is not True:
        yield _line(where, "runAsNonRoot must be true", either.get("runAsNonRoot"))
    if not either.get("runAsUser"):
        yield _line(where, "runAsUser must be a user other than root", either.get("runAsUser"))
    profile = (either.get("seccompProfile") or {}).get("type")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield _line(where, "seccompProfile.type must be RuntimeDefault or Localhost", profile)
    if own.get("allowPrivilegeEscalation") is not False:
        yield _line(where, "allowPrivilegeEscalation must be false", own.get("allowPrivilegeEscalation"))
    if own.get("privileged"):
        yield _line(where, "privileged must not be set", own["privileged"])
    if own.get("readOnlyRootFilesystem") is not True:
        yield _line(where, "readOnlyRootFilesystem must be true", own.get("readOnlyRootFilesystem"))
    capabilities = own.get("capabilities") or {}
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield _line(where, "capabilities must drop ALL and add none", capabilities)
    resources = container.get("resources") or {}
    for kind, name in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        if name not in (resources.get(kind) or {}):
            yield _line(where, f"resources.{kind}.{name} must be set", resources)
    yield from _of_image(where, container)


def _of_image(where: str, container: dict[str, Any]) -> Iterator[str]:
    if "runtime" in container:  # KServe's: the image is the runtime's, and this is its tag
        tag = container.get("runtimeVersion", "")
        image = f"{container['runtime']}:{tag}"
    else:
        image = str(container.get("image", ""))
        tag = "digest" if "@" in image else image.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        yield _line(where, "the image must have a tag other than latest", image)
