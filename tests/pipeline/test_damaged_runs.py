"""What commands say of a run whose artifacts were damaged: the file, and what to type."""

from pathlib import Path

import pytest

from graftflow import seals
from graftflow.errors import InputError
from pipelines import attack_picture, compare_runs, run_step
from pipelines.run_index import Run, RunError, Step
from tests.unit.damages import DAMAGES, damage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with sealed artifacts of three steps, as far as commands look before they read them."""
    run = Run(tmp_path / "runs" / "one", {})
    for step, name in (("merge_features", "features"), ("fine_tune", "model"), ("evaluate", "evaluation")):
        with seals.sealed_directory(tmp_path / name) as folder:
            (folder / f"{name}.json").write_text('{"classes": ["cat", "dog"]}')
        run.steps[step] = Step("done", 1.0, {name: {"uri": str(tmp_path / name), "metadata": {}}})
    run.save()
    return run


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_step_alone_names_the_target_that_makes_its_input_anew(run: Run, tmp_path: Path, kind: str) -> None:
    (artifact,) = run_step.take_inputs("train_head", run).values()
    assert artifact.uri == str(tmp_path / "features")
    damage(tmp_path / "features" / "features.json", kind, seed=0)
    with pytest.raises(RunError, match=r"needs the artifact 'features' as extract_features wrote it") as told:
        run_step.take_inputs("train_head", run)
    assert str(tmp_path / "features" / "features.json") in str(told.value)
    assert str(told.value).endswith(f"Run: make extract-features RUN={run.folder}")


def test_commands_on_a_run_refuse_its_damaged_artifacts(run: Run, tmp_path: Path) -> None:
    assert attack_picture.model_of(run) == tmp_path / "model"
    assert compare_runs.evaluation_of(run) == tmp_path / "evaluation"
    damage(tmp_path / "model" / "model.json", "flip", seed=0)
    damage(tmp_path / "evaluation" / "evaluation.json", "cut", seed=0)
    with pytest.raises(InputError, match="The artifact 'model' must be as its step wrote it"):
        attack_picture.model_of(run)
    with pytest.raises(InputError, match="The artifact 'evaluation' must be as its step wrote it"):
        compare_runs.evaluation_of(run)
