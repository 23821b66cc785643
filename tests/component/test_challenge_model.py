"""The step that challenges a model, as KFP calls it."""

import json
from pathlib import Path

import pytest
from kfp import dsl

from components.challenge_model import challenge_model
from graftflow.errors import InputError


def run_step(artifacts, root: Path, source: str = "digits", **settings: str) -> dsl.Metrics:
    figures = dsl.Metrics(name="challenge_metrics", uri=str(root / "metrics"), metadata={})
    challenge_model.python_func(
        dataset=dsl.Dataset(uri=str(artifacts.dataset)),
        model=dsl.Model(uri=str(artifacts.model)),
        source=source,
        num_pictures=20,
        seed=0,
        challenge=dsl.Artifact(uri=str(root / "challenge")),
        challenge_page=dsl.HTML(uri=str(root / "page")),
        challenge_metrics=figures,
        cache=str(root / "cache"),
        **settings,
    )
    return figures


def test_the_step_writes_figures_and_page(artifacts, tmp_path: Path) -> None:
    figures = run_step(artifacts, tmp_path)
    said = json.loads((tmp_path / "challenge" / "challenge.json").read_text(encoding="utf-8"))
    assert figures.metadata == json.loads((tmp_path / "metrics").read_text())  # else KFP's cache never hits
    assert figures.metadata["mahalanobis_auc"] == said["scores"]["mahalanobis"]["auc"]["value"]
    assert figures.metadata["pictures"] == 20
    assert "accuracy" not in figures.metadata  # no digit is a class of the model
    page = (tmp_path / "page").read_text(encoding="utf-8")
    assert said["verdict"]["headline"] in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"source": "digit"}, "Did you mean 'digits'"), ({"mirrors": "mirror"}, "Received: 'mirror'")],
)
def test_a_wrong_setting_leaves_no_artifact(artifacts, tmp_path: Path, settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_step(artifacts, tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_the_compiled_component_describes_its_settings() -> None:
    spec = challenge_model.component_spec
    assert all(found.description for found in spec.inputs.values())
    assert set(spec.outputs) == {"challenge", "challenge_page", "challenge_metrics"}
