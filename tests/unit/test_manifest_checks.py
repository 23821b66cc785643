"""Every kind of mistake in a manifest is found before it is applied, and says what is wrong in one line."""

from collections.abc import Callable
from typing import Any

import pytest

from graftflow.errors import InputError
from manifests import schemas
from manifests.documents import Document
from manifests.render import problems
from tests.unit.test_manifests import SERVERS, rendered

Change = Callable[[dict[str, Any]], Any]

# What breaks an object, and the words that the message about it must have.
MISTAKES: dict[str, tuple[str, Change, str]] = {
    "unknown field": ("Deployment", lambda d: d["spec"].update(replica=2), "Received: 'replica'"),
    "unknown field deep": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0].update(imagePullPolicyy="Always"),
        "Received: 'imagePullPolicyy'. Did you mean 'imagePullPolicy'?",
    ),
    "wrong type": (
        "Service",
        lambda d: d["spec"]["ports"][0].update(port="8500"),
        "spec.ports[0].port must be of type integer. Received: '8500'",
    ),
    "missing field": ("Deployment", lambda d: d["spec"].pop("selector"), "spec must have 'selector'"),
    "missing field deep": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"].pop("port"),
        "readinessProbe.httpGet must have 'port'",
    ),
    "quantity": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].update(memory="2gb"),
        "resources.limits.memory must be a quantity",
    ),
    "choice": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0].update(imagePullPolicy="IfNotPresnt"),
        "imagePullPolicy must be one of Always, IfNotPresent, Never. Received: 'IfNotPresnt'",
    ),
    "choice in a list": (
        "NetworkPolicy",
        lambda d: d["spec"].update(policyTypes=["Ingress", "egress"]),
        "spec.policyTypes must be one of Ingress, Egress. Received: 'egress'",
    ),
    "port's range": (
        "Service",
        lambda d: d["spec"]["ports"][0].update(port=85000),
        "spec.ports[0].port must be 1 to 65535. Received: 85000",
    ),
    "kind": ("Service", lambda d: d.update(apiVersion="v2"), "Received: v2 Service"),
    "old version": (
        "HorizontalPodAutoscaler",
        lambda d: d.update(apiVersion="autoscaling/v2beta2"),
        "Received: autoscaling/v2beta2",
    ),
    "deployment's selector": (
        "Deployment",
        lambda d: d["spec"]["selector"]["matchLabels"].update(app="other"),
        "Deployment tf-serving: the selector must find its own pods",
    ),
    "service's selector": (
        "Service",
        lambda d: d["spec"]["selector"].update({"app.kubernetes.io/name": "tfserving"}),
        "Service tf-serving: the selector must find pods",
    ),
    "budget's selector": (
        "PodDisruptionBudget",
        lambda d: d["spec"]["selector"]["matchLabels"].update(app="other"),
        "PodDisruptionBudget tf-serving: the selector must find pods",
    ),
    "policy's selector": (
        "NetworkPolicy",
        lambda d: d["spec"]["podSelector"]["matchLabels"].update(app="other"),
        "NetworkPolicy tf-serving: the selector must find pods",
    ),
    "namespace": (
        "Service",
        lambda d: d["metadata"].update(namespace="elsewhere"),
        "Service tf-serving: the selector must find pods",
    ),
    "autoscaler's target": (
        "HorizontalPodAutoscaler",
        lambda d: d["spec"]["scaleTargetRef"].update(name="tfserving"),
        "scaleTargetRef must name an object that is there",
    ),
    "autoscaler's target version": (
        "HorizontalPodAutoscaler",
        lambda d: d["spec"]["scaleTargetRef"].update(apiVersion="apps/v2"),
        "scaleTargetRef must name an object that is there",
    ),
    "replicas beside an autoscaler": (
        "Deployment",
        lambda d: d["spec"].update(replicas=3),
        "must not name replicas",
    ),
    "autoscaler's range": (
        "HorizontalPodAutoscaler",
        lambda d: d["spec"].update(minReplicas=11),
        "minReplicas must be at most maxReplicas",
    ),
    "spread": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["topologySpreadConstraints"][0].pop("labelSelector"),
        "topologySpreadConstraints must count its own pods",
    ),
    "service's port": (
        "Service",
        lambda d: d["spec"]["ports"][1].update(targetPort="rest"),
        "targetPort must be a port of Deployment tf-serving. Received: 'rest'",
    ),
    "policy's port": (
        "NetworkPolicy",
        lambda d: d["spec"]["ingress"][0]["ports"][0].update(port=9000),
        "a port of ingress must be one of Deployment tf-serving. Received: 9000",
    ),
    "policy's type": (
        "NetworkPolicy",
        lambda d: d["spec"].update(policyTypes=["Ingress"]),
        "policyTypes must have Egress",
    ),
    "probe's named port": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"].update(
            port="rest"
        ),
        "the port of readinessProbe must be one of the container's. Received: 'rest'",
    ),
    "probe's number": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["tcpSocket"].update(
            port=8502
        ),
        "the port of livenessProbe must be one of the container's. Received: 8502",
    ),
    "mount without volume": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][1].update(name="conf"),
        "a mounted volume must be one of the pod's. Received: 'conf'",
    ),
    "volume without mount": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["volumes"].append({"name": "spare", "emptyDir": {}}),
        "a volume must be mounted. Received: 'spare'",
    ),
    "two sources": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["volumes"][0].update(emptyDir={}),
        "must have one source",
    ),
    "two mounts": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][1].update(mountPath="/tmp"),
        "only one volume may be mounted at a path. Received: '/tmp'",
    ),
    "config map": (
        "ConfigMap",
        lambda d: d["metadata"].update(name="tf-serving-config"),
        "a volume's ConfigMap must be there",
    ),
    "file of a flag": (
        "ConfigMap",
        lambda d: d["data"].pop("batching.config"),
        "must be in its ConfigMap. Received: 'batching.config'",
    ),
    "place of a flag's file": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["args"].append(
            "--ssl_config_file=/ssl/a.config"
        ),
        "must lie in a mounted volume. Received: '/ssl/a.config'",
    ),
    "variable of a flag": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"]["containers"][0].update(env=[]),
        "must be in env. Received: 'MODEL_STORE'",
    ),
    "account": (
        "ServiceAccount",
        lambda d: d["metadata"].update(name="other"),
        "serviceAccountName must be an account that is there",
    ),
    "drain": (
        "PodDisruptionBudget",
        lambda d: d["spec"].update(maxUnavailable=0),
        "must be free to go, or no node can be drained",
    ),
    "drain of few": (
        "PodDisruptionBudget",
        lambda d: (d["spec"].pop("maxUnavailable"), d["spec"].update(minAvailable=2)),
        "one of the 2 pods of Deployment tf-serving must be free to go",
    ),
    "grace": (
        "Deployment",
        lambda d: d["spec"]["template"]["spec"].update(terminationGracePeriodSeconds=15),
        "preStop must end before terminationGracePeriodSeconds (15)",
    ),
    "rolling update": (
        "Deployment",
        lambda d: d["spec"]["strategy"]["rollingUpdate"].update(maxSurge=0, maxUnavailable=0),
        "maxSurge or maxUnavailable must be above 0",
    ),
    "metrics' port": (
        "Deployment",
        lambda d: d["spec"]["template"]["metadata"]["annotations"].update({"prometheus.io/port": "9090"}),
        "prometheus.io/port must be a port of the pod. Received: '9090'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    kind, change, words = MISTAKES[mistake]
    objects = rendered("production/cpu")
    change(objects[kind])
    found = problems(list(objects.values()))
    assert any(words in line for line in found), found
    assert all("\n" not in line for line in found)


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (
            "predictor",
            {"minReplica": 1},
            "spec.predictor must hold fields known to KServe. Received: 'minReplica'",
        ),
        ("predictor", {"minReplicas": "1"}, "spec.predictor.minReplicas must be of type integer"),
        ("predictor", {"tolerations": [{"keys": "gpu"}]}, "spec.predictor.tolerations[0] must hold fields"),
        ("predictor", {"volumes": []}, "a mounted volume must be one of the pod's. Received: 'tmp'"),
        ("model", {"storageURI": "gs://a"}, "Received: 'storageURI'. Did you mean 'storageUri'?"),
        ("model", {"storageUri": "/mnt/models"}, "spec.predictor.model.storageUri must fit its schema"),
        ("model", {"protocolVersion": "v3"}, "spec.predictor.model.protocolVersion must be one of v1, v2"),
        ("model", {"modelFormat": {}}, "spec.predictor.model.modelFormat must have 'name'"),
        ("model", {"runtimeVersion": "latest"}, "the image must have a tag other than latest"),
        ("model", {"securityContext": None}, "readOnlyRootFilesystem must be true"),
    ],
)
def test_a_mistake_in_an_inference_service_is_found(place: str, change: dict[str, Any], words: str) -> None:
    objects = rendered("production/kserve-cpu")
    predictor = objects["InferenceService"]["spec"]["predictor"]
    (predictor if place == "predictor" else predictor["model"]).update(change)
    assert any(words in line for line in problems(list(objects.values())))


def pod_and_containers(document: Document) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if document["kind"] == "InferenceService":
        predictor = document["spec"]["predictor"]
        return predictor, [predictor["model"]]
    pod = document["spec"]["template"]["spec"]
    return pod, pod["initContainers"] + pod["containers"]


# What gives a container more rights, or takes the scheduler's figures away.
BREACHES: dict[str, tuple[Change, str]] = {
    "root": (lambda c: c["securityContext"].update(runAsUser=0), "runAsUser must be a user other than root"),
    "maybe root": (lambda c: c["securityContext"].update(runAsNonRoot=False), "runAsNonRoot must be true"),
    "root file system": (
        lambda c: c["securityContext"].pop("readOnlyRootFilesystem"),
        "readOnlyRootFilesystem must be true",
    ),
    "escalation": (
        lambda c: c["securityContext"].pop("allowPrivilegeEscalation"),
        "allowPrivilegeEscalation must be false",
    ),
    "privileged": (lambda c: c["securityContext"].update(privileged=True), "privileged must not be set"),
    "capabilities kept": (lambda c: c["securityContext"].pop("capabilities"), "capabilities must drop ALL"),
    "capabilities added": (
        lambda c: c["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        "capabilities must drop ALL",
    ),
    "system calls": (
        lambda c: c["securityContext"].update(seccompProfile={"type": "Unconfined"}),
        "seccompProfile.type must be RuntimeDefault",
    ),
    "no requests": (lambda c: c["resources"].pop("requests"), "resources.requests.cpu must be set"),
    "no limit": (lambda c: c["resources"]["limits"].pop("memory"), "resources.limits.memory must be set"),
}
# The same of a whole pod.
POD_BREACHES: dict[str, tuple[Change, str]] = {
    "token": (lambda p: p.pop("automountServiceAccountToken"), "automountServiceAccountToken must be false"),
    "node's network": (lambda p: p.update(hostNetwork=True), "hostNetwork must not be set"),
    "node's folder": (
        lambda p: p["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
        "a volume must not be a folder of the node",
    ),
}


@pytest.mark.parametrize("name", SERVERS)
def test_no_container_of_any_overlay_may_ask_for_more(name: str) -> None:
    kind = "InferenceService" if "kserve" in name else "Deployment"
    number = len(pod_and_containers(rendered(name)[kind])[1])
    for change, words in BREACHES.values():
        for index in range(number):
            objects = rendered(name)
            change(pod_and_containers(objects[kind])[1][index])
            assert any(words in line for line in problems(list(objects.values()))), (words, index)
    for change, words in POD_BREACHES.values():
        objects = rendered(name)
        change(pod_and_containers(objects[kind])[0])
        assert any(words in line for line in problems(list(objects.values()))), words


@pytest.mark.parametrize(
    "image", ["tensorflow/serving", "tensorflow/serving:latest", "registry:5000/serving"]
)
def test_an_image_without_a_fixed_tag_is_found(image: str) -> None:
    objects = rendered("local/cpu")
    objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] = image
    assert any("a tag other than latest" in line for line in problems(list(objects.values())))


def test_an_account_with_a_token_is_found() -> None:
    objects = rendered("local/cpu")
    del objects["ServiceAccount"]["automountServiceAccountToken"]
    assert problems(list(objects.values())) == [
        "ServiceAccount tf-serving: automountServiceAccountToken must be false. Received: None"
    ]


def test_an_unknown_release_names_those_that_are_there() -> None:
    with pytest.raises(InputError, match=r"must be one of 1\.25.* 1\.37\. Received: '1\.5'"):
        problems(list(rendered("local/cpu").values()), ["1.5"])
    assert set(schemas.RELEASES) == {"1.30", "1.37"}
