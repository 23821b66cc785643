"""Pictures that fool a model are compared, one by one, with what a server says of them."""

import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from graftflow import attacks, preprocessing, served_attacks
from graftflow.errors import InputError
from graftflow.training import load_classifier
from tests.unit.small_classifier import SIDE, write_small_dataset, write_small_model

EPSILON = 24 / 255


class InProcessServer:
    """Answers a client's question as the exported model would: decodes the bytes it was sent, nothing else."""

    url, model = "grpc://127.0.0.1:1", "toy"

    def __init__(self, model_path: Path, classes: tuple[str, ...], *, sharper: float = 1.0) -> None:
        self._logits_of, self._classes = attacks.logits_model(load_classifier(model_path)), classes
        self._sharper, self.sent = sharper, []

    def classify_images(self, pictures: list[bytes]) -> list[list[tuple[str, float]]]:
        self.sent = pictures
        pixels = preprocessing.decode_batch(tf.constant(pictures), SIDE)
        answers = tf.nn.softmax(self._sharper * self._logits_of(pixels)).numpy()
        ranked = [zip(self._classes, map(float, answer), strict=True) for answer in answers]
        return [sorted(pairs, key=lambda pair: -pair[1]) for pairs in ranked]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("served")
    dataset = write_small_dataset(root)
    return {"dataset_path": dataset, "model_path": write_small_model(root / "model", dataset)}


@pytest.fixture(scope="module")
def attacked(paths) -> served_attacks.Attacked:
    return served_attacks.attack_test_pictures(**paths, num_pictures=12, epsilon=EPSILON)


def test_what_a_server_receives_is_what_was_counted(paths, attacked) -> None:
    server = InProcessServer(paths["model_path"], attacked.classes)
    found = served_attacks.compare_served(server, attacked)
    assert found["agrees"]
    assert found["disagreements"] == 0
    assert found["served"] == found["in_process"]
    assert found["served"]["success"] > 0
    decoded = preprocessing.decode_batch(tf.constant(server.sent), SIDE).numpy()
    # To the last bit: the PNGs carry the very pixels of the attack, within ε of the originals.
    np.testing.assert_array_equal(decoded[12:], attacked.adversarial)
    levels = np.round(255 * decoded).astype(int)
    assert np.abs(levels[12:] - levels[:12]).max() <= 24
    assert [row["path"] for row in found["rows"]] == list(attacked.pictures.paths)


def test_success_is_a_share_of_what_was_right_before(paths, attacked) -> None:
    found = served_attacks.compare_served(InProcessServer(paths["model_path"], attacked.classes), attacked)
    right = [row for row in found["rows"] if row["original"]["served"]["label"] == row["label"]]
    fooled = [row for row in right if row["adversarial"]["served"]["label"] != row["label"]]
    assert found["attacked"] == len(right)
    assert found["served"]["success"] == pytest.approx(len(fooled) / len(right))


def test_another_model_behind_the_name_is_noticed(paths, attacked) -> None:
    """The classes stay the same when logits are scaled, the probabilities do not."""
    server = InProcessServer(paths["model_path"], attacked.classes, sharper=1.01)
    found = served_attacks.compare_served(server, attacked)
    assert not found["agrees"]
    assert found["disagreements"] == 0
    assert found["largest_difference"] > served_attacks.TOLERANCE


def test_a_server_that_says_otherwise_is_counted_picture_by_picture(paths, attacked) -> None:
    server = InProcessServer(paths["model_path"], attacked.classes, sharper=-1.0)
    found = served_attacks.compare_served(server, attacked)
    assert not found["agrees"]
    assert found["disagreements"] == 12
    assert found["served"]["clean_accuracy"] < found["in_process"]["clean_accuracy"]


def test_a_model_of_other_classes_is_told(paths, attacked) -> None:
    server = InProcessServer(paths["model_path"], ("cat", "dog", "hen"))
    with pytest.raises(InputError, match=r"blue, green, red.*Received: cat, dog, hen"):
        served_attacks.compare_served(server, attacked)


def test_the_seed_fixes_pictures_and_attack(paths, attacked) -> None:
    again = served_attacks.attack_test_pictures(**paths, num_pictures=12, epsilon=EPSILON)
    np.testing.assert_array_equal(again.adversarial, attacked.adversarial)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_pictures": 0}, "num_pictures must be"),
        ({"steps": 0}, "steps must be"),
        ({"epsilon": 0.5 / 255}, "epsilon must lie between 1/255.*Received: 0.00196078, which is 0.5/255"),
        ({"epsilon": 1.5}, "epsilon must lie between"),
        ({"epsilon": math.nan}, "epsilon must lie between"),
    ],
)
def test_a_bad_setting_is_refused(paths, change, rule) -> None:
    with pytest.raises(InputError, match=rule):
        served_attacks.attack_test_pictures(**{**paths, "epsilon": EPSILON, **change})


def test_nobody_at_the_address_is_an_input_error(paths) -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1"):
        served_attacks.attack_served(
            "http://127.0.0.1:1", model_name="toy", **paths, num_pictures=2, epsilon=EPSILON, timeout=1
        )
