"""What fools the model in process fools the deployed one: PNGs over REST and over gRPC, picture by picture."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from graftflow import deployment, served_attacks
from graftflow.serving.client import Client
from tests.unit.serving_model import Server, running_server

PICTURES, EPSILON = 12, 4 / 255


@pytest.fixture(scope="module")
def server(artifacts, tmp_path_factory) -> Iterator[Server]:
    """The real server process on the deployed version."""
    store: Path = tmp_path_factory.mktemp("store")
    deployment.deploy(artifacts.saved_model, store=str(store), model_name="toy")
    with running_server(store / "toy", tmp_path_factory.mktemp("log") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def attacked(artifacts) -> served_attacks.Attacked:
    return served_attacks.attack_test_pictures(
        model_path=artifacts.model, dataset_path=artifacts.dataset, num_pictures=PICTURES, epsilon=EPSILON
    )


@pytest.mark.parametrize("transport", ["REST", "gRPC"])
def test_the_success_served_is_the_success_in_process(server, attacked, transport) -> None:
    url = server.url if transport == "REST" else f"grpc://{server.address}"
    with Client(url, "toy", as_is=True) as client:
        found = served_attacks.compare_served(client, attacked)
    assert found["served"] == found["in_process"]
    # Of a model that was not trained to be robust next to nothing may be left (4/255, PGD).
    assert found["served"]["clean_accuracy"] >= 0.9
    assert found["served"]["success"] >= 0.9
    assert len(found["rows"]) == PICTURES
    for row in found["rows"]:
        for when in ("original", "adversarial"):
            assert row[when]["served"]["label"] == row[when]["in_process"]["label"], row["path"]
            assert row[when]["difference"] <= 1e-5, row["path"]
    assert found["agrees"]


def test_a_version_and_a_radius_may_be_chosen(server, artifacts) -> None:
    found = served_attacks.attack_served(
        f"grpc://{server.address}",
        model_name="toy",
        model_path=artifacts.model,
        dataset_path=artifacts.dataset,
        num_pictures=3,
        epsilon=1 / 255,
        steps=2,
        version=3,
    )
    assert found["epsilon"] == 1
    assert found["pictures"] == 3
    assert found["agrees"]
