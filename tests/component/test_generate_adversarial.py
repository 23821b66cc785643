"""The step that attacks the model, as KFP calls it."""

import json
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.generate_adversarial import generate_adversarial
from graftflow.errors import InputError
from tests.unit.small_classifier import write_small_dataset, write_small_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("inputs")
    dataset = write_small_dataset(root)
    model = write_small_model(root / "model", dataset)
    return {"dataset": dsl.Dataset(uri=str(dataset)), "model": dsl.Model(uri=str(model))}


def run(path: Path, inputs: dict[str, Any], **settings: Any) -> tuple[dsl.Artifact, dsl.Metrics]:
    adversarial, robustness = dsl.Artifact(uri=str(path / "a")), dsl.Metrics(uri=str(path / "m"))
    defaults = {"epsilons": "0.5/255, 16/255", "steps": 3, "num_pictures": 6, "target_class": ""}
    generate_adversarial.python_func(
        **inputs, **{**defaults, **settings}, seed=0, adversarial=adversarial, robustness=robustness
    )
    return adversarial, robustness


def test_the_step_writes_the_artifact_and_its_metrics(tmp_path: Path, inputs: dict[str, Any]) -> None:
    adversarial, robustness = run(tmp_path, inputs)
    content = json.loads((Path(adversarial.path) / "adversarial.json").read_text())
    assert content["epsilons"] == [0.5, 16]
    assert all((Path(adversarial.path) / row["file"]).is_file() for row in content["triplets"])
    figures = json.loads(json.dumps(robustness.metadata, allow_nan=False))
    assert figures["clean_accuracy"] == content["clean_accuracy"]
    assert figures["worst_case_accuracy"] == content["worst_case"]["accuracy"][-1]
    assert figures["largest_epsilon_255"] == 16
    assert {"fgsm_accuracy", "pgd_accuracy", "fgsm_targeted_accuracy", "pgd_targeted_accuracy"} < set(figures)
    assert json.loads(Path(robustness.path).read_text()) == figures
    assert all(type(value) is float for value in robustness.metadata.values())


def test_the_step_explains_a_wrong_radius(tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Did you mean '4/255'"):
        run(tmp_path, inputs, epsilons="4")
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_leaves_nothing_behind(tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="target_class must be one of"):
        run(tmp_path, inputs, target_class="purple")
    assert list(tmp_path.iterdir()) == []
