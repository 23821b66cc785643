"""The pods that objects make: of a Deployment, and of KServe's InferenceService, seen alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from manifests.documents import Document, title

# What KServe calls the container of the model server.
KSERVE_CONTAINER = "kserve-container"


@dataclass(frozen=True)
class Pod:
    """Pods of one object.

    Attributes:
        owner: ``"Kind name"`` of the object.
        namespace: of the object; empty where it is named when applied.
        labels: of the pods; of KServe's only the one that it documents.
        annotations: of the pods.
        spec: the pod's specification; of an InferenceService the predictor, its model as the only container.
        replicas: how many there are when the object alone decides, at least.
        by_kserve: whether KServe makes them, and adds ports and volumes of its own.
    """

    owner: str
    namespace: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: dict[str, Any]
    replicas: int
    by_kserve: bool = False

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each container, those that run first included, with the words a message calls it by."""
        for kind in ("initContainers", "containers"):
            for container in self.spec.get(kind) or []:
                yield f"{self.owner}: container '{container.get('name')}'", container

    def has_labels(self, wanted: dict[str, str]) -> bool:
        """Return whether the pods carry all of these labels."""
        return wanted.items() <= self.labels.items()


def pods_of(documents: list[Document]) -> list[Pod]:
    """Return the pods of all objects that make some."""
    found = []
    for document in documents:
        namespace = document["metadata"].get("namespace", "")
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            metadata = template.get("metadata") or {}
            found.append(
                Pod(
                    owner=title(document),
                    namespace=namespace,
                    labels=metadata.get("labels") or {},
                    annotations=metadata.get("annotations") or {},
                    spec=template["spec"],
                    replicas=document["spec"].get("replicas", 1),
                )
            )
        elif document["kind"] == "InferenceService":
            predictor = document["spec"]["predictor"]
            spec = {**predictor, "containers": [{"name": KSERVE_CONTAINER, **predictor["model"]}]}
            name = document["metadata"]["name"]
            found.append(
                Pod(
                    owner=title(document),
                    namespace=namespace,
                    labels={"app": f"isvc.{name}-predictor"},
                    annotations=document["metadata"].get("annotations") or {},
                    spec=spec,
                    replicas=predictor.get("minReplicas", 1),
                    by_kserve=True,
                )
            )
    return found
