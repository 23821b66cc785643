"""Katib's Experiment tries what the pipeline trains: its command runs, and Katib's rule finds its figures."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftflow import seals, trials
from graftflow.recipes import Recipe, check_field
from manifests import kustomizations, schemas
from tests.unit.kubeflow_fields import EXPERIMENT, unknown

ROOT = Path(__file__).resolve().parents[2]
# Of its collector: pkg/metricscollector/v1beta1/common/const.go, DefaultFilter.
KATIB_FILTER = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")


@pytest.fixture(scope="module")
def experiment() -> dict[str, Any]:
    (document,) = kustomizations.render(ROOT / "manifests" / "katib")
    return document


def job_of(experiment: dict[str, Any], assignments: dict[str, str]) -> dict[str, Any]:
    """What Katib makes of the template: every ${trialParameters.x} is replaced in its JSON, a name is given."""
    template = experiment["spec"]["trialTemplate"]
    text = json.dumps(template["trialSpec"])
    for parameter in template["trialParameters"]:
        text = text.replace(f"${{trialParameters.{parameter['name']}}}", assignments[parameter["reference"]])
    return {**json.loads(text), "metadata": {"name": "trial-0"}}


def ends_of(parameter: dict[str, Any]) -> list[str]:
    space = parameter["feasibleSpace"]
    return space["list"] if "list" in space else [space["min"], space["max"]]


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=400
    )


def found_by_katib(output: str, names: list[str]) -> dict[str, float]:
    found = {}
    for line in output.splitlines():
        for name, value, *_ in KATIB_FILTER.findall(line):
            if name in names:
                found[name] = float(value)
    return found


def test_katib_knows_every_field(experiment: dict[str, Any]) -> None:
    assert (experiment["apiVersion"], experiment["kind"]) == ("kubeflow.org/v1beta1", "Experiment")
    assert unknown(experiment["spec"], EXPERIMENT) == []
    assert unknown({"objektive": 1, "maxTrialCount": "3"}, EXPERIMENT) == [
        "spec.objektive",
        "spec.maxTrialCount",
    ]


def test_every_parameter_is_defined_used_and_within_the_recipe_s_rules(experiment: dict[str, Any]) -> None:
    spec = experiment["spec"]
    parameters = {parameter["name"]: parameter for parameter in spec["parameters"]}
    template = spec["trialTemplate"]
    assert {p["reference"] for p in template["trialParameters"]} == set(parameters)
    names = [p["name"] for p in template["trialParameters"]]
    used = re.findall(r"\$\{trialParameters\.(\w+)\}", json.dumps(template["trialSpec"]))
    assert sorted(used) == sorted(names)
    for name, parameter in parameters.items():
        assert parameter["parameterType"] in ("int", "double", "categorical")
        for end in ends_of(parameter):
            if name in Recipe.__dataclass_fields__:
                kind = type(getattr(Recipe(), name))
                check_field(name, kind(end))
    assert parameters["class_weight"]["feasibleSpace"]["list"] == ["none", "balanced"]


def test_the_trial_s_job_is_sound_and_needs_no_rights(experiment: dict[str, Any]) -> None:
    parameters = experiment["spec"]["parameters"]
    for end in (0, -1):
        job = job_of(experiment, {p["name"]: ends_of(p)[end] for p in parameters})
        assert "${" not in json.dumps(job)
        for release in schemas.RELEASES:
            assert schemas.problems(job, release) == []
        trials.build_parser().parse_args(container_of(job)["args"])
    container, pod = container_of(job), job["spec"]["template"]["spec"]
    assert experiment["spec"]["trialTemplate"]["primaryContainerName"] == container["name"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_objective_and_the_other_figures_are_those_that_a_trial_prints(
    experiment: dict[str, Any],
) -> None:
    objective = experiment["spec"]["objective"]
    names = [objective["objectiveMetricName"], *objective["additionalMetricNames"]]
    assert tuple(names) == trials.METRICS
    assert objective["type"] == "minimize"


def test_the_command_runs_and_katib_finds_its_figures_without_test_pictures(
    experiment: dict[str, Any], artifacts, tmp_path: Path
) -> None:
    for name in ("dataset", "features"):
        shutil.copytree(getattr(artifacts, name), tmp_path / name)
    removed = [*tmp_path.glob("dataset/test-*"), tmp_path / "features" / "test.npz"]
    assert len(removed) == 2
    for path in removed:
        path.unlink()
    for name in ("dataset", "features"):
        seals.seal(tmp_path / name)
    chosen = {p["name"]: ends_of(p)[0] for p in experiment["spec"]["parameters"]}
    container = container_of(job_of(experiment, {**chosen, "learning_rate": "0.0001", "mixup": "0.2"}))
    arguments = [part.replace("/mnt/tuning", str(tmp_path)) for part in container["args"]]
    assert container["command"][0] == "python"
    done = run([*container["command"][1:], *arguments, "--epochs=1", "--batch-size=8"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = found_by_katib(done.stdout, list(trials.METRICS))
    assert set(figures) == set(trials.METRICS)
    assert figures["validation_log_loss"] > 0
    assert 0 <= figures["validation_accuracy"] <= 1
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "features"}, "a trial keeps nothing"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--layer-decay=1.5", "layer_decay must be above 0 and at most 1. Received: 1.5"),
        ("--features=/nowhere", "The artifact 'nowhere' must be as its step wrote it"),
    ],
)
def test_a_trial_that_cannot_run_says_why_in_one_line_and_prints_no_figure(
    option: str, words: str, artifacts, tmp_path: Path
) -> None:
    common = [f"--dataset={artifacts.dataset}", f"--features={artifacts.features}", option]
    done = run(["-m", "graftflow.trials", *common], tmp_path)
    assert done.returncode == 2
    assert f"error: {words}" in done.stderr
    assert found_by_katib(done.stdout, list(trials.METRICS)) == {}
