"""What models and servers of other kinds answer about a picture, KServe's v1 protocol first."""

import pytest

from graftflow.errors import InputError
from graftflow.serving.client import Client, ServerUnreachableError
from graftflow.serving.rankings import ranking
from tests.unit.scripted_server import RANKED, scripted_server
from tests.unit.serving_model import picture

ANSWER = [("cat", 0.75), ("dog", 0.25)]


@pytest.fixture
def scripted():
    with scripted_server() as script:
        yield script


class TestKServe:
    """The v1 protocol, as KServe's own model servers answer it: no versions, no signatures."""

    @pytest.mark.parametrize(
        ("ready", "state"), [(True, "AVAILABLE"), ("True", "AVAILABLE"), (False, "LOADING")]
    )
    def test_readiness_is_told_as_a_version_without_a_number(self, scripted, ready, state):
        scripted.answers = [(200, {"name": "pets", "ready": ready}, {})]
        (status,) = Client(scripted.url, "pets").status()
        assert (status["version"], status["state"]) == ("", state)

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            (RANKED, ANSWER),
            ({"probabilities": [0.25, 0.75], "label": "cat", "class_index": 1},
             [("cat", 0.75), ("class 0", 0.25)]),
            ({"probabilities": [0.25, 0.75], "label": "cat"}, [("cat", 0.75), ("class 0", 0.25)]),
            ({"dense_1": [0.25, 0.75]}, [("class 1", 0.75), ("class 0", 0.25)]),
            ([-1.5, 2], [("class 1", 2.0), ("class 0", -1.5)]),
            ([["dog", 0.25], ["cat", 0.75]], ANSWER),
        ],
    )  # fmt: skip
    def test_a_server_that_ignores_the_signature_is_understood(self, scripted, row, expected):
        scripted.answers = [(200, {"predictions": [row]}, {})]
        assert Client(scripted.url, "pets").classify_images([picture()]) == [expected]

    def test_a_model_that_does_not_exist_is_told(self, scripted):
        scripted.answers = [(404, {"error": "Model with name pets does not exist."}, {})]
        with pytest.raises(ServerUnreachableError, match="serves no model 'pets': Model with name pets"):
            Client(scripted.url, "pets").classify_images([picture()])

    def test_a_gateways_errors_are_told(self, scripted):
        scripted.answers = [(401, {"detail": "no token"}, {})]
        with pytest.raises(ServerUnreachableError, match="lets nobody in like this: no token"):
            Client(scripted.url, "pets").classify_images([picture()])
        scripted.answers = [(502, b"<html>Bad gateway</html>", {})]
        with pytest.raises(ServerUnreachableError, match="does not answer as a model server does: HTTP 502"):
            Client(scripted.url, "pets").classify_images([picture()])


def test_the_default_signature_serves_where_the_model_ranks_nothing(scripted):
    def answer(body):
        if body["signature_name"] == "ranked":
            return 400, {"error": 'Serving signature name: "ranked" not found in signature def'}
        return 200, {"predictions": [{"probabilities": [0.75, 0.25], "label": "cat", "class_index": 0}]}

    scripted.answers = [(200, answer, {})]
    client = Client(scripted.url)
    for _ in range(2):
        assert client.classify_images([picture()]) == [[("cat", 0.75), ("class 1", 0.25)]]
    assert [b["signature_name"] for _, b in scripted.requests] == ["ranked"] + ["serving_default"] * 2
    with pytest.raises(
        ServerUnreachableError, match="model 'graftflow' must have a signature ranked. .* not found"
    ):
        Client(scripted.url, signature="ranked").classify_images([picture()])


@pytest.mark.parametrize(
    "row", [{"classes": ["a"]}, {"a": [1.0], "b": [2.0]}, "cat", 1.5, [], [["a", "b"]], {}]
)
def test_an_answer_without_classes_is_told(scripted, row):
    with pytest.raises(InputError, match="must answer with classes and scores, probabilities, or a list"):
        ranking(row)
    scripted.answers = [(200, {"predictions": [row]}, {})]
    with pytest.raises(ServerUnreachableError, match="signature 'ranked' of 'graftflow' cannot be read"):
        Client(scripted.url).classify_images([picture()])


def test_a_probability_that_is_no_number_comes_last():
    ranked = ranking([0.1, float("nan"), 0.7])
    assert [name for name, _ in ranked] == ["class 2", "class 0", "class 1"]
