"""Where the steps run, by settings alone: read back as the pods that KFP would make, and refused before it would."""

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from manifests import schemas
from pipelines import compile as compile_module
from pipelines import parameters, pods
from pipelines import settings as settings_file
from pipelines.settings import SettingsError

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "pipelines" / "settings.yaml"
CLUSTERS = {
    "CPU only": "",
    "T4 on GKE, fine-tuning on four A100": """
        gpu:
          count: 1
          node_selector: {cloud.google.com/gke-accelerator: nvidia-tesla-t4}
          per_step:
            fine_tune: {count: 4, node_selector: {cloud.google.com/gke-accelerator: nvidia-tesla-a100}}
            visualise_model: {count: 0}
    """,
    "a part of an A100": """
        gpu: {count: 1, accelerator: nvidia.com/mig-1g.5gb, shared_memory: ""}
    """,
    "AMD on a node group of EKS": """
        gpu:
          count: 1
          accelerator: amd.com/gpu
          node_selector: {eks.amazonaws.com/nodegroup: amd}
          tolerations: [{key: amd.com/gpu, operator: Exists, effect: NoSchedule}]
        cache_volume: {claim: graftflow-cache}
        model_store: {claim: models}
    """,
}


def documented_example() -> str:
    """The `pods:` of settings.yaml's comment, without its marks."""
    text = SETTINGS.read_text(encoding="utf-8")
    found = re.search(r"^# (pods:\n(?:# .*\n)+)", text, re.MULTILINE)
    assert found
    return re.sub(r"^# ", "", found[1], flags=re.MULTILINE)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What compiles a settings file's text, each text once."""

    @cache
    def compile_once(text: str, name: str = "transfer_learning") -> Path:
        folder = tmp_path_factory.mktemp("compiled")
        own, output = folder / "own.yaml", folder / f"{name}.yaml"
        own.write_text(textwrap.dedent(text) or "retries: {}")
        compile_module.compile_pipeline(output, settings_file.load(own), name=name)
        return output

    return compile_once


@pytest.fixture(scope="module")
def pods_of(compiled: Callable[..., Path]) -> Callable[..., dict[str, dict]]:
    """What tells the pods of a settings file's text."""
    return lambda *what: pods.read(compiled(*what))


def main_of(pod: dict) -> dict:
    (container,) = pod["spec"]["containers"]
    return container


def mounts_of(pod: dict) -> dict[str, str]:
    """Path → volume, of those that are not KFP's own."""
    own = {m["mountPath"]: m["name"] for m in main_of(pod)["volumeMounts"]}
    return {path: name for path, name in own.items() if name not in pods.KFP_MOUNTS}


@pytest.mark.parametrize("text", [*CLUSTERS.values(), documented_example()], ids=[*CLUSTERS, "the example"])
@pytest.mark.parametrize("name", ["transfer_learning", "compare_backbones"])
def test_kfp_and_kubernetes_take_what_is_compiled(compiled, text: str, name: str) -> None:
    output = compiled(text, name)
    pipeline, platform = yaml.safe_load_all(output.read_text(encoding="utf-8"))
    json_format.ParseDict(pipeline, PipelineSpec())
    for config in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(config, KubernetesExecutorConfig())
    made = pods.read(output)
    assert kubernetes_validate.version.__version__  # without it, the pods' fields would not be looked at
    assert pods.problems(made) == []
    for pod in made.values():
        for release in pods.RELEASES:
            # The package takes any text for a quantity or an effect; these rules do not.
            assert schemas.problems(pod, release) == []


def test_accelerators_differ_from_step_to_step(pods_of) -> None:
    made = pods_of(CLUSTERS["T4 on GKE, fine-tuning on four A100"])
    limits = {step: main_of(pod)["resources"]["limits"].get("nvidia.com/gpu") for step, pod in made.items()}
    assert {step: count for step, count in limits.items() if count} == {
        "extract-features": "1",
        "fine-tune": "4",
        "generate-adversarial": "1",
    }
    label = "cloud.google.com/gke-accelerator"
    assert made["fine-tune"]["spec"]["nodeSelector"] == {label: "nvidia-tesla-a100"}
    assert made["extract-features"]["spec"]["nodeSelector"] == {label: "nvidia-tesla-t4"}
    assert made["fine-tune"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    images = {step: main_of(pod)["image"] for step, pod in made.items()}
    assert "gpu" in images["fine-tune"]
    assert "cpu" in images["visualise-model"]
    assert "nodeSelector" not in made["visualise-model"]["spec"]
    assert mounts_of(made["fine-tune"]) == {"/dev/shm": "shared-memory"}


def test_a_part_of_a_gpu_and_other_makers_are_resources_like_any(pods_of) -> None:
    part = main_of(pods_of(CLUSTERS["a part of an A100"])["fine-tune"])
    assert part["resources"]["limits"]["nvidia.com/mig-1g.5gb"] == "1"
    assert "/dev/shm" not in {m["mountPath"] for m in part["volumeMounts"]}
    amd = pods_of(CLUSTERS["AMD on a node group of EKS"])["fine-tune"]
    assert main_of(amd)["resources"]["limits"]["amd.com/gpu"] == "1"
    assert amd["spec"]["nodeSelector"] == {"eks.amazonaws.com/nodegroup": "amd"}


def test_volumes_are_mounted_where_their_parameter_is_taken(pods_of) -> None:
    text = "cache_volume: {claim: graftflow-cache, mount_path: /mnt/cache/}\nmodel_store: {claim: models}"
    made = {step: mounts_of(pod) for step, pod in pods_of(text).items()}
    cached = {step for step, mounts in made.items() if mounts.get("/mnt/cache") == "graftflow-cache"}
    pipeline = parameters.local_pipeline("python")
    steps = pipeline.pipeline_spec.components
    taking = {
        name.removeprefix("comp-")
        for name, component in steps.items()
        if component.executor_label and "cache" in component.input_definitions.parameters
    }
    assert cached == taking >= {"download-data", "extract-features", "fine-tune"}
    assert {step for step, mounts in made.items() if "/mnt/models" in mounts} == {
        "check-settings",
        "deploy-model",
    }
    compared = pods_of(text, "compare_backbones")
    mounted = {step for step, pod in compared.items() if mounts_of(pod)}
    assert mounted == {"download-data", "measure-backbone"}


def test_one_claim_may_be_the_store_and_the_cache(pods_of) -> None:
    text = (
        "cache_volume: {claim: shared, mount_path: /mnt/a}\nmodel_store: {claim: shared, mount_path: /mnt/a}"
    )
    assert mounts_of(pods_of(text)["check-settings"]) == {"/mnt/a": "shared"}


def test_a_step_has_the_defaults_settings_and_its_own(pods_of) -> None:
    made = pods_of(documented_example())
    deploy, data = made["deploy-model"], made["download-data"]
    for pod in (deploy, data):
        assert pod["spec"]["nodeSelector"] == {"pool": "batch"}
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry-password"}]
        assert pod["spec"]["activeDeadlineSeconds"] == 6 * 3600
        assert pod["metadata"]["labels"]["team"] == "vision"
        assert pod["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
        assert main_of(pod)["imagePullPolicy"] == "IfNotPresent"
        assert main_of(pod)["securityContext"]["runAsUser"] == 1000
        affinity = pod["spec"]["affinity"]["nodeAffinity"]
        (required,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert required["matchExpressions"][0]["values"] == ["europe-west4-a", "europe-west4-b"]
        (wish,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
        assert wish["weight"] == 50
    variables = {v["name"]: v.get("value") or v["valueFrom"] for v in main_of(deploy)["env"]}
    assert variables["AWS_ACCESS_KEY_ID"]["secretKeyRef"]["name"] == "s3-keys"
    assert variables["AWS_ENDPOINT_URL"]["configMapKeyRef"]["key"] == "endpoint"
    assert variables["HTTPS_PROXY"] == "http://proxy:3128"
    assert mounts_of(deploy) == {"/var/secrets/gcs": "gcs-key"}
    assert mounts_of(data) == {"/mnt/pictures": "pictures"}
    assert "AWS_ACCESS_KEY_ID" not in {v["name"] for v in main_of(data)["env"]}


def test_a_step_adds_to_lists_and_replaces_single_values(pods_of) -> None:
    made = pods_of(
        """
        gpu: {count: 1, node_selector: {pool: gpu}}
        pods:
          default:
            node_selector: {pool: batch, zone: a}
            tolerations: [{key: dedicated, operator: Exists}]
            timeout: 3600
          fine_tune:
            node_selector: {zone: b}
            tolerations: [{operator: Exists, effect: NoExecute, toleration_seconds: 60}]
            timeout: 2d
        """,
    )
    tuning, head = made["fine-tune"]["spec"], made["train-head"]["spec"]
    assert tuning["nodeSelector"] == {"pool": "gpu", "zone": "b"}
    assert [t.get("key") for t in tuning["tolerations"]] == ["dedicated", "nvidia.com/gpu", None]
    assert tuning["tolerations"][-1]["tolerationSeconds"] == 60
    assert tuning["activeDeadlineSeconds"] == 2 * 86400
    assert head["nodeSelector"] == {"pool": "batch", "zone": "a"}
    assert (head["activeDeadlineSeconds"], len(head["tolerations"])) == (3600, 1)


def test_numbers_of_yaml_become_quantities_and_limits_may_differ(pods_of) -> None:
    text = """
        resources:
          default: {cpu: 2, memory: 4000000000}
          train_head: {cpu: 0.5, cpu_limit: 1, memory: 1Gi, memory_limit: 2Gi}
        pods: {default: {node_selector: {generation: 3}, env: {TF_NUM_INTRAOP_THREADS: 2}}}
    """
    made = pods_of(text)
    assert main_of(made["evaluate"])["resources"] == {
        "requests": {"cpu": "2", "memory": "4000000000"},
        "limits": {"memory": "4000000000"},
    }
    assert main_of(made["train-head"])["resources"] == {
        "requests": {"cpu": "0.5", "memory": "1Gi"},
        "limits": {"cpu": "1", "memory": "2Gi"},
    }
    assert made["evaluate"]["spec"]["nodeSelector"] == {"generation": "3"}
    assert {"name": "TF_NUM_INTRAOP_THREADS", "value": "2"} in main_of(made["evaluate"])["env"]


def test_a_run_on_this_machine_takes_nothing_of_a_cluster() -> None:
    pipeline = parameters.local_pipeline("python-of-this-machine")
    assert not pipeline.platform_spec.platforms
    executors = json_format.MessageToDict(pipeline.pipeline_spec.deployment_spec)["executors"]
    for executor in executors.values():
        assert not {"env", "resources"} & executor["container"].keys()


def test_what_submits_the_pipeline_keeps_its_settings_in_the_same_file(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("cluster: {host: http://kfp}\nparameters: {seed: 3}\ngpu: {count: 1}")
    assert settings_file.load(own).gpu.count == 1


def test_the_same_settings_give_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(documented_example() + textwrap.dedent(CLUSTERS["AMD on a node group of EKS"]))
    written = set()
    for seed in ("1", "77"):
        output = tmp_path / f"{seed}.yaml"
        subprocess.run(
            [sys.executable, "-m", "pipelines.compile", "--settings", own, "--output", output],
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
        )
        written.add(output.read_bytes())
    assert len(written) == 1


IN_PODS = [
    ("priority_class: high", r"priority_class cannot be set here: .*admission policy.*Received: 'high'"),
    ("pod_anti_affinity: {}", "KFP has none: take node_affinity"),
    ("service_account: trainer", "service account is the run's"),
    ("gpu: {count: 1}", "gpu.per_step"),
    ("tolerance: []", "must be one of node_selector, tolerations.*Received: 'tolerance'"),
    ("node_selector: {spot: true}", r"node_selector.spot must be a text \(in quotes.*Received: True"),
    ("node_selector: {-pool: a}", "a key in pods.default.node_selector must be a name.*Received: '-pool'"),
    ("node_selector: {Pool.example.com/: a}", "Received: 'Pool.example.com/'"),
    ("node_selector: {pool: two words}", "must be at most 63 letters.*Received: 'two words'"),
    ("node_selector: [pool]", "must hold a mapping"),
    ("tolerations: {key: a}", r"tolerations must be a list"),
    ("tolerations: [{key: a, effect: NoStart}]", "effect must be one of NoSchedule, .*Received: 'NoStart'"),
    ("tolerations: [{key: a, operator: In}]", "operator must be one of Equal, Exists. Received: 'In'"),
    ("tolerations: [{effect: NoSchedule}]", "must have a key, or operator Exists"),
    ("tolerations: [{key: a, operator: Exists, value: b}]", "must have no value with operator Exists"),
    ("tolerations: [{key: a, toleration_seconds: 3}]", "must have effect NoExecute"),
    ("node_affinity: [{expressions: [{key: z, operator: In}]}]", "one value at least with operator In"),
    ("node_affinity: [{expressions: [{key: z, operator: Exists, values: [a]}]}]", "must have no values"),
    ("node_affinity: [{expressions: [{key: z, operator: Gt, values: [a]}]}]", "one whole number"),
    ("node_affinity: [{expressions: [{key: z, operator: Is}]}]", "one of In, NotIn, .*Received: 'Is'"),
    ("node_affinity: [{expressions: []}]", "must hold one expression at least"),
    ("node_affinity: [{weight: 101, expressions: [{key: z, operator: Exists}]}]", "1 to 100. Received: 101"),
    ("image_pull_policy: Sometimes", "one of Always, IfNotPresent, Never. Received: 'Sometimes'"),
    ("image_pull_secrets: [My_Secret]", r"image_pull_secrets\[0\] must be at most 253 small letters"),
    ("secrets: [{secret: a}]", "either env .* or mount_path"),
    ("secrets: [{secret: a, env: {k: V}, mount_path: /a}]", "either env .* or mount_path"),
    ("secrets: [{secret: a, env: {k: 1V}}]", "must be letters, digits and '_', no digit first"),
    ("secrets: [{secret: a, env: {two words: V}}]", "a key in .* must be letters"),
    ("secrets: [{secret: a.b, mount_path: /a}]", "names the volume, must be at most 63.*Received: 'a.b'"),
    ("config_maps: [{secret: a, env: {k: V}}]", "must be one of config_map, env"),
    ("volumes: [{claim: a}]", "must have claim and mount_path"),
    ("volumes: [{claim: a, mount_path: data}]", "must be an absolute path.*Received: 'data'"),
    ("volumes: [{claim: a, mount_path: /a/../b}]", "without '..'"),
    ("volumes: [{claim: a, mount_path: /}]", "must be an absolute path below /"),
    ("volumes: [{claim: a, mount_path: /minio}]", "must not be a path that KFP mounts itself"),
    ("volumes: [{claim: a, mount_path: /a, sub_path: ../b}]", "must be a path inside the volume"),
    ("volumes: [{claim: A, mount_path: /a}]", "small letters, digits and hyphens.*Received: 'A'"),
    ("labels: {pipeline/runid: mine}", "must not be one of KFP's"),
    ("labels: {team: no}", "in quotes"),
    ("env: {KFP_POD_NAME: a}", "must leave GRAFTFLOW_IMAGE"),
    ("env: {MY-VAR: a}", "Received: 'MY-VAR'"),
    ("timeout: soon", "must be a time such as 30s.*Received: 'soon'"),
    ("timeout: 0", "must be a time above 0. Received: 0"),
    ("security: {run_as_user: root}", "must be a whole number from 0. Received: 'root'"),
    ("security: {privileged: true}", "must be one of run_as_user, run_as_group, run_as_non_root"),
    ("security: {run_as_user: 0, run_as_non_root: true}", "must be above 0 with run_as_non_root"),
    ("{env: {A: b}, secrets: [{secret: s, env: {k: A}}]}", "variable of check_settings must be set once"),
    (
        "volumes: [{claim: a, mount_path: /a}, {claim: b, mount_path: /a/}]",
        "mount path of check_settings must be used once.*'a' is there. Received: '/a'",
    ),
    (
        "volumes: [{claim: a, mount_path: /a, sub_path: x}, {claim: a, mount_path: /b, sub_path: y}]",
        "must be mounted once in check_settings. Received: 'a'",
    ),
]
ELSEWHERE = [
    ("pods: {train: {}}", "a step must be one of .*train_head.*Received: 'train'"),
    ("pods: []", "pods must hold a mapping"),
    ("gpu: {per_step: {fine_tune: {counts: 1}}}", "gpu.per_step.fine_tune must be one of count"),
    ("gpu: {per_step: {train: {count: 1}}}", "a step must be one of"),
    ("gpu: {per_step: {fine_tune: {count: true}}}", "gpu.per_step.fine_tune.count must be a whole number"),
    ("gpu: {accelerator: a100}", "a resource of the nodes such as nvidia.com/gpu.*Received: 'a100'"),
    ("gpu: {shared_memory: 2 GB}", "gpu.shared_memory must be a whole number above 0 with Ki"),
    ("gpu: {tolerations: [NoSchedule]}", r"gpu.tolerations\[0\] must hold a mapping"),
    (
        "gpu: {count: 1}\npods: {fine_tune: {volumes: [{claim: a, mount_path: /dev/shm}]}}",
        "mount path of fine_tune must be used once, and gpu.shared_memory is there",
    ),
    ("resources: {default: {cpu: two}}", "resources.default.cpu must be a number of cores.*Received: 'two'"),
    ("resources: {default: {memory: 4K}}", "resources.default.memory must be .*Received: '4K'"),
    ("resources: {default: {memory: 4GB}}", "Received: '4GB'"),
    ("resources: {default: {disk: 4Gi}}", "must be one of cpu, memory, cpu_limit, memory_limit"),
    (
        "resources: {default: {cpu_limit: 500m}}",
        "cpu_limit of .* must be at least its cpu 2. Received: '500m'",
    ),
    (
        "resources: {fine_tune: {memory_limit: 8000M}}",
        "memory_limit of fine_tune must be at least its memory",
    ),
    ("images: {cpu: two words}", "images.cpu must be an image"),
    ("images: {gpu: ''}", "images.gpu must be an image"),
    ("retries: {backoff: soon}", "retries.backoff must be a time"),
    ("model_store: {claim: My_Claim}", "model_store.claim must be at most 63 small letters"),
    ("model_store: {mount_path: models}", "model_store.mount_path must be an absolute path"),
    ("cache_volume: {size: 1Gi}", "must be one of claim, mount_path"),
]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        *(
            (f"pods:\n  default: {{{t}}}" if t[0] != "{" else f"pods: {{default: {t}}}", r)
            for t, r in IN_PODS
        ),
        *ELSEWHERE,
    ],
)
def test_a_bad_value_is_refused_in_one_line(tmp_path: Path, text: str, rule: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(SettingsError, match=rule) as caught:
        settings_file.load(own)
    assert "\n" not in str(caught.value)
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("cache_volume: {claim: a}\nmodel_store: {claim: a}", "must be mounted once in check_settings"),
        (
            "cache_volume: {claim: a}\npods: {fine_tune: {volumes: [{claim: b, mount_path: /mnt/cache}]}}",
            "mount path of fine_tune must be used once",
        ),
    ],
)
def test_what_only_the_graph_can_tell_is_refused_when_it_is_compiled(tmp_path, text, rule, capsys) -> None:
    own, output = tmp_path / "own.yaml", tmp_path / "out.yaml"
    own.write_text(text)
    assert compile_module.main(["--settings", str(own), "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert re.search(rule, said)
    assert said.count("\n") == 1
    assert not output.exists()


def test_a_pod_that_kubernetes_would_refuse_is_told(pods_of) -> None:
    made = pods_of("")
    made["fine-tune"]["spec"]["priorityClas"] = "high"
    main_of(made["evaluate"])["env"].append({"name": "GRAFTFLOW_IMAGE", "value": "another"})
    twice, *refused = pods.problems(made)
    assert twice == "evaluate: environment variables must differ. Received twice: 'GRAFTFLOW_IMAGE'"
    assert len(refused) == len(pods.RELEASES)
    for line, release in zip(refused, pods.RELEASES, strict=True):
        assert line.startswith(
            f"fine-tune: its pod's spec must be as Kubernetes {release} has it. Received: "
        )
        assert "priorityClas" in line
        assert "\n" not in line
