"""What the manifests render to: sound for Kubernetes, the same by Kustomize itself, and fit for the model server."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from graftflow.serving import config_texts, flags
from manifests import kustomizations
from manifests.pods import pods_of
from manifests.render import BUILT_IN, COMMANDS, OVERLAYS, main, overlays, problems, render
from tests.unit.test_architecture import files_of, imports_of

MANIFESTS = OVERLAYS.parent
ALL = overlays()
SERVERS = [name for name in ALL if not name.endswith("model-store")]


def rendered(name: str) -> dict[str, dict[str, Any]]:
    """The objects of an overlay by kind; each overlay has one of a kind."""
    documents = render(OVERLAYS / name, BUILT_IN)
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def pod_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]["spec"]


def server_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return pod_of(objects)["containers"][0]


def flag_of(objects: dict[str, dict[str, Any]], name: str) -> str:
    found = [a.partition("=")[2] for a in server_of(objects)["args"] if a.startswith(f"--{name}=")]
    assert len(found) == 1, f"{name} stands {len(found)} times"
    return found[0]


@pytest.mark.parametrize("path", files_of("manifests"), ids=lambda p: p.name)
def test_manifests_know_only_themselves_and_the_library_s_errors_and_files(path: Path) -> None:
    ours = {"components", "graftflow", "pipelines", "tensorflow", "kfp"}
    known = {"graftflow.errors", "graftflow.files"}
    assert not {n for n in imports_of(path, everywhere=True) if n.split(".")[0] in ours} - known


@pytest.mark.parametrize("name", ALL)
def test_every_overlay_is_sound(name: str) -> None:
    assert problems(render(OVERLAYS / name, BUILT_IN)) == []


@pytest.mark.parametrize("tool", COMMANDS)
@pytest.mark.parametrize("name", ALL)
def test_kustomize_renders_the_same(name: str, tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    assert render(OVERLAYS / name, tool) == render(OVERLAYS / name, BUILT_IN)


def test_every_stage_has_cpu_gpu_kserve_and_the_claim_that_they_mount() -> None:
    for stage in ("local", "production"):
        assert {f"{stage}/{n}" for n in ("cpu", "gpu", "kserve-cpu", "kserve-gpu", "model-store")} <= set(ALL)
        claim = rendered(f"{stage}/model-store")["PersistentVolumeClaim"]["metadata"]["name"]
        for name in ("cpu", "gpu"):
            volumes = pod_of(rendered(f"{stage}/{name}"))["volumes"]
            assert [
                v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v
            ] == [claim]
            model = rendered(f"{stage}/kserve-{name}")["InferenceService"]["spec"]["predictor"]["model"]
            assert model["storageUri"].startswith(f"pvc://{claim}/")


@pytest.mark.parametrize("name", ["local/cpu", "local/gpu", "production/cpu", "production/gpu"])
def test_the_server_sees_the_store_where_the_pipeline_s_step_writes_it(name: str) -> None:
    settings = yaml.safe_load((MANIFESTS.parent / "pipelines" / "settings.yaml").read_text())
    store = settings["model_store"]["mount_path"]
    pod = pod_of(rendered(name))
    for container in pod["initContainers"] + pod["containers"]:
        assert {"name": "MODEL_STORE", "value": store} in container["env"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts["model-store"]["mountPath"] == store
        assert mounts["model-store"]["readOnly"] is True


@pytest.mark.parametrize("name", [name for name in SERVERS if name.endswith("object-store")])
def test_a_bucket_takes_the_place_of_the_volume(name: str) -> None:
    objects = rendered(name)
    if "InferenceService" in objects:
        assert objects["InferenceService"]["spec"]["predictor"]["model"]["storageUri"].startswith("gs://")
        return
    assert "persistentVolumeClaim" not in str(objects)
    values = {entry["name"]: entry["value"] for entry in server_of(objects)["env"]}
    assert values["MODEL_STORE"].startswith("gs://")
    # Names and HTTPS, which a server on a volume may not reach.
    ports = {port["port"] for rule in objects["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]}
    assert {53, 443} <= ports
    assert rendered("production/cpu")["NetworkPolicy"]["spec"]["egress"] == []


@pytest.mark.parametrize("name", [name for name in SERVERS if "kserve" not in name])
def test_the_flags_and_files_are_those_of_both_servers(name: str, tmp_path: Path) -> None:
    objects = rendered(name)
    for file, text in objects["ConfigMap"]["data"].items():
        (tmp_path / file).write_text(text)
    batching = config_texts.read_batching(tmp_path / "batching.config")
    assert batching.max_batch_size == (64 if "gpu" in name else 32)
    path = config_texts.read_monitoring(tmp_path / "monitoring.config")
    metadata = objects["Deployment"]["spec"]["template"]["metadata"]
    assert metadata["annotations"]["prometheus.io/path"] == path
    assert metadata["annotations"]["prometheus.io/port"] == flag_of(objects, "rest_api_port")
    (tmp_path / "models.config").write_text("model_config_list {}")
    arguments = [
        re.sub(r"=\S*/(\w+\.config)$", lambda m: f"={tmp_path / m[1]}", argument)
        for argument in server_of(objects)["args"]
    ]
    read = flags.parse_flags(arguments)
    assert (read.grpc_port, read.rest_port) == (8500, 8501)


@pytest.mark.parametrize("name", SERVERS)
def test_gpu_overlays_and_no_others_ask_for_a_gpu(name: str) -> None:
    (pod,) = pods_of(render(OVERLAYS / name, BUILT_IN))
    text = yaml.safe_dump(pod.spec)
    if "gpu" not in name:
        assert "nvidia" not in text
        assert "-gpu" not in text
        return
    assert pod.spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod.spec["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    *_, (_, server) = pod.containers()
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (server.get("image") or server["runtimeVersion"]).endswith("-gpu")


def test_a_drain_waits_for_requests_that_are_under_way() -> None:
    objects = rendered("production/cpu")
    pause = int(server_of(objects)["lifecycle"]["preStop"]["exec"]["command"][1])
    request = int(flag_of(objects, "rest_api_timeout_in_ms")) / 1000
    assert pod_of(objects)["terminationGracePeriodSeconds"] >= pause + request


def test_a_changed_file_of_settings_is_a_new_config_map(tmp_path: Path) -> None:
    copied = shutil.copytree(MANIFESTS / "base" / "tf-serving", tmp_path / "base")
    before = {d["kind"]: d for d in kustomizations.render(copied)}
    (copied / "batching.config").write_text("max_batch_size { value: 8 }\n")
    after = {d["kind"]: d for d in kustomizations.render(copied)}
    names = [objects["ConfigMap"]["metadata"]["name"] for objects in (before, after)]
    assert names[0] != names[1]
    for objects, name in zip((before, after), names, strict=True):
        volumes = {volume["name"]: volume for volume in pod_of(objects)["volumes"]}
        assert volumes["config"]["configMap"]["name"] == name


def waiting(store: Path) -> subprocess.Popen:
    """The init container's command, on a folder of this machine."""
    (container,) = pod_of(rendered("local/cpu"))["initContainers"]
    command = [part.replace("sleep 10", "sleep 0.1") for part in container["command"]]
    return subprocess.Popen(
        command, env={"MODEL_STORE": str(store), "PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE
    )


def test_a_pod_waits_until_the_store_has_models(tmp_path: Path) -> None:
    with waiting(tmp_path) as process:
        assert process.stdout.readline().decode().startswith(f"Waiting for {tmp_path}/models.config")
        assert process.poll() is None
        (tmp_path / "models.config").write_text("model_config_list {}")
        process.stdout.read()
        assert process.wait(timeout=20) == 0


def test_a_waiting_pod_can_be_stopped_at_once(tmp_path: Path) -> None:
    with waiting(tmp_path) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        process.stdout.read()
        assert process.wait(timeout=20) == 143
        assert time.monotonic() - started < 5


def test_the_command_writes_every_overlay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--with", BUILT_IN, "--output", str(tmp_path)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == overlays()
    assert last.startswith(f"{len(lines)} of {len(lines)} overlays are sound: rendered with built-in")
    for name in overlays():
        file = tmp_path / f"{name.replace('/', '-')}.yaml"
        assert list(yaml.safe_load_all(file.read_text())) == render(OVERLAYS / name, BUILT_IN)
    assert len(list(tmp_path.iterdir())) == len(lines)


def test_the_command_writes_nothing_for_a_wrong_overlay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    deployment = tmp_path / "manifests" / "components" / "tf-serving" / "gpu" / "deployment.yaml"
    deployment.write_text(deployment.read_text().replace("nodeSelector", "nodeSelectors"))
    monkeypatch.setattr("manifests.render.OVERLAYS", tmp_path / "manifests" / "overlays")
    output = tmp_path / "output"
    output.mkdir()
    (output / "local-gpu.yaml").write_text("of an earlier run")
    assert main(["local/gpu", "local/cpu", "--with", BUILT_IN, "--output", str(output)]) == 1
    out, err = capsys.readouterr()
    assert "Received: 'nodeSelectors'. Did you mean 'nodeSelector'?" in err
    assert all(line.startswith("error: local/gpu: Deployment tf-serving: ") for line in err.splitlines())
    assert "1 of 2 overlays are sound" in out
    assert [file.name for file in output.iterdir()] == ["local-cpu.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["local/tpu"], "OVERLAY must be one of local/cpu, "),
        (["--kubernetes", "1.5"], "A release of Kubernetes must be one of 1.25, "),
    ],
)
def test_wrong_usage_is_said_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--with", BUILT_IN, "--output", str(tmp_path / "output")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {words}")
    assert error.count("\n") == 1


def test_a_renderer_that_is_not_installed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["local/cpu", "--with", "kubectl", "--output", str(tmp_path / "output")]) == 2
    assert "Received: 'kubectl'. Choices: built-in" in capsys.readouterr().err
    assert main(["local/cpu", "--output", str(tmp_path / "output")]) == 0
    assert "rendered with built-in" in capsys.readouterr().out


def test_a_renderer_that_fails_is_quoted_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "kubectl"
    tool.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('unknown\\ncommand kustomize')\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["local/cpu", "--output", str(tmp_path / "output")]) == 2
    assert capsys.readouterr().err.endswith("Received: unknown command kustomize\n")
