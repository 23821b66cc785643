"""The built-in part of Kustomize: it renders as Kustomize does, and refuses what it does not know."""

import shutil
from pathlib import Path

import pytest

from graftflow.errors import InputError
from manifests import kustomizations
from manifests.merging import merge
from manifests.render import COMMANDS, render
from tests.unit.test_manifests import MANIFESTS

OWN = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: pets
resources: [../manifests/overlays/local/cpu]
labels:
  - pairs: {team: pets}
replicas:
  - {name: tf-serving, count: 2}
images:
  - {name: tensorflow/serving, newName: registry.example:5000/serving, digest: "sha256:0a1b"}
configMapGenerator:
  - name: tf-serving-config
    behavior: replace
    literals: ["batching.config=max_batch_size { value: 8 }", "monitoring.config=<&>é"]
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: tf-serving}
      spec:
        revisionHistoryLimit: null
        template:
          spec:
            containers:
              - name: proxy
                image: tensorflow/serving:1
                ports: [{containerPort: 80}]
              - name: tf-serving
                env: [{name: TF_CPP_MIN_LOG_LEVEL, $patch: delete}, {name: ADDED, value: "1"}]
                ports: [{name: rest, containerPort: 8501}]
"""


def own(tmp_path: Path, text: str = OWN) -> Path:
    shutil.copytree(MANIFESTS, tmp_path / "manifests", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("tool", COMMANDS)
def test_an_overlay_of_one_s_own_is_rendered_as_by_kustomize(tmp_path: Path, tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    folder = own(tmp_path)
    assert kustomizations.render(folder) == render(folder, tool)


def test_an_overlay_of_one_s_own_changes_what_it_names(tmp_path: Path) -> None:
    objects = {d["kind"]: d for d in kustomizations.render(own(tmp_path))}
    assert {d["metadata"]["namespace"] for d in objects.values()} == {"pets"}
    assert {d["metadata"]["labels"]["team"] for d in objects.values()} == {"pets"}
    spec = objects["Deployment"]["spec"]
    assert (spec["replicas"], "revisionHistoryLimit" in spec) == (2, False)
    proxy, server = spec["template"]["spec"]["containers"]
    assert proxy["image"] == server["image"] == "registry.example:5000/serving@sha256:0a1b"
    assert [entry["name"] for entry in server["env"]] == ["ADDED", "MODEL_STORE"]
    assert {port["name"]: port["containerPort"] for port in server["ports"]} == {"rest": 8501, "grpc": 8500}
    name = objects["ConfigMap"]["metadata"]["name"]
    assert {"name": "config", "configMap": {"name": name}} in spec["template"]["spec"]["volumes"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("namespace: pets", "namePrefix: pets-", "must be one of apiVersion, .* Received: 'namePrefix'"),
        ("namespace: pets", "nameSpace: pets", "Received: 'nameSpace'. Did you mean 'namespace'?"),
        ("namespace: pets", "namespace: [pets]", "namespace in .* must be a str"),
        (
            "overlays/local/cpu",
            "overlays/local/tpu",
            "must be a file or folder that exists. Received: .*local/tpu",
        ),
        ("local/cpu]", "local/cpu, ../manifests/overlays/production/cpu]", "must not name an object twice"),
        ("resources:", "components:", "must be a Component of .* Received: Kustomization"),
        (
            "{name: tf-serving, count: 2}",
            "{name: tf-serving, counts: 2}",
            "Received: 'counts'. Did you mean 'count'?",
        ),
        ("behavior: replace", "behavior: create", "must not name an object twice. Received: ConfigMap"),
        ("behavior: replace", "behavior: add", "must be create, merge or replace. Received: 'add'"),
        (
            "- name: tf-serving-config",
            "- name: other",
            "with behavior: replace must exist. Received: 'other'",
        ),
        ("    literals:", "    files: [../secret.txt]\n    literals:", "must lie in its folder"),
        ("    literals:", "    files: [none.txt]\n    literals:", "must exist. Received: .*none.txt"),
        ("metadata: {name: tf-serving}", "metadata: {name: other}", "Received: Deployment other in"),
        ("metadata: {name: tf-serving}", "metadata: {}", "must have metadata.name. Received: None"),
        ("  - patch: |", "  - target: {kind: Service}\n    patch: |", "Received: 'target'"),
        ("{name: ADDED, value", "{nam: ADDED, value", "An element of 'env' in a patch must have 'name'"),
        ("namespace: pets", "namespace: pets\nnamespace: dogs", "the key 'namespace' stands twice"),
        ("namespace: pets", "namespace: [pets", "must be YAML"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in OWN
    with pytest.raises(InputError, match=words) as caught:
        kustomizations.render(own(tmp_path, OWN.replace(old, new, 1)))
    assert "\n" not in str(caught.value)


def test_a_list_of_unknown_key_is_not_merged_by_guess() -> None:
    base = {"hostAliases": [{"ip": "127.0.0.1"}]}
    with pytest.raises(InputError, match="Received: 'hostAliases'"):
        merge(base, {"hostAliases": [{"ip": "127.0.0.2"}]}, typed=True)
    # A custom resource's are replaced, as Kustomize does.
    assert merge(base, {"hostAliases": []}, typed=False) == {"hostAliases": []}
