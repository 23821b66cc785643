"""Attacked training pictures stay within ε, what is learned from them withstands more, and a collapse is noticed."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from graftflow import backbones, datasets, features, files, fine_tuning, heads, seals, training
from graftflow.adversarial_training import Adversary, has_collapsed, is_worth_it, preference
from graftflow.errors import InputError
from graftflow.fine_tuning import Trainer
from graftflow.recipes import Recipe

NUM_PICTURES, SIDE = 64, 6
EPSILON = 8 / 255
# Per class a pattern that ε can turn round and that is always right, and a brightness that it cannot and that is noisy.
BRITTLE, ROBUST = 0.6 * EPSILON, 0.15


def build_trunk() -> keras.Model:
    """Frozen and invertible: only the tail decides what is looked at."""
    inputs = keras.Input((SIDE, SIDE, 3))
    return keras.Model(inputs, keras.layers.Rescaling(4.0, offset=-2.0)(inputs))


def build_tail() -> keras.Model:
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Dropout(0.1, seed=0)(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, kernel_initializer="zeros", name="logits")(x))


class Pictures:
    """Training and validation pictures, an epoch at a time."""

    num_batches = 8

    def __init__(self, kill_at: int | None = None) -> None:
        generator = np.random.default_rng(0)
        self.labels = np.arange(NUM_PICTURES) % 2
        self.values, others = (self._pixels(generator) for _ in range(2))
        self.validation = (others, self.labels)
        self.epochs: list[int] = []
        self._kill_at = kill_at

    def _pixels(self, generator: np.random.Generator) -> np.ndarray:
        sign = (2 * self.labels - 1)[:, None, None, None]
        checks = (-1.0) ** np.add.outer(np.arange(SIDE), np.arange(SIDE))[None, :, :, None]
        brightness = ROBUST * sign + generator.normal(0, ROBUST, (NUM_PICTURES, 1, 1, 1))
        return np.clip(0.5 + BRITTLE * sign * checks + brightness + np.zeros(3), 0, 1).astype("f4")

    def epoch(self, number: int):
        self.epochs.append(number)
        order = np.random.default_rng(number).permutation(NUM_PICTURES)
        for batch in np.split(order, self.num_batches):
            yield self.values[batch], self.labels[batch]
        if number == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def recipe_of(**changes) -> Recipe:
    own = {"epochs": 4, "learning_rate": 0.02, "batch_size": 8, "patience": 99, "warmup_fraction": 0.0}
    return Recipe(**{**own, "adversarial_training": "fgsm", "adversarial_epsilon": "8/255", **changes})


def build_trainer(tail: keras.Model, adversary: Adversary, recipe: Recipe) -> Trainer:
    settings = {"block_depths": {}, "class_weights": np.ones(2), "num_batches": 8}
    return Trainer(tail, recipe, adversary=adversary, **settings)


def fit(folder: Path, source: Pictures | None = None, **changes) -> tuple[keras.Model, list[dict]]:
    tail, recipe, source = build_tail(), recipe_of(**changes), source or Pictures()
    trainer = build_trainer(tail, Adversary(build_trunk(), tail, recipe), recipe)
    return tail, trainer.fit(source, source.validation, checkpoint=folder / "checkpoint.npz")


def linear_tail() -> tuple[keras.Model, np.ndarray]:
    """A tail of two logits, and the sign that each pixel's change must have to raise the loss of class 0."""
    tail = build_tail()
    kernel = np.random.default_rng(1).normal(0, 0.8, (SIDE * SIDE * 3, 2)).astype("f4")
    tail.get_layer("logits").set_weights([kernel, np.zeros(2, "f4")])
    return tail, np.sign(kernel[:, 1] - kernel[:, 0]).reshape(SIDE, SIDE, 3)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_attacked_pictures_stay_within_epsilon_and_have_a_larger_loss(name: str) -> None:
    tail, _ = linear_tail()
    adversary = Adversary(build_trunk(), tail, recipe_of(adversarial_training=name))
    pixels = np.random.default_rng(0).random((8, SIDE, SIDE, 3), dtype="f4")
    pixels[0], pixels[1] = 0.0, 1.0
    targets = np.eye(2, dtype="f4")[np.zeros(8, int)]
    first, again, other = (adversary.attack(tf.constant(pixels), targets, n).numpy() for n in (0.0, 0.0, 1.0))
    for attacked in (first, other):
        assert np.abs(attacked - pixels).max() <= EPSILON + 1e-7
        assert attacked.min() >= 0.0
        assert attacked.max() <= 1.0
    np.testing.assert_array_equal(first, again)
    if name == "fgsm":  # one step does not forget where it began
        assert (first != other).any()
    trunk = build_trunk()
    leads = [np.diff(tail(trunk(x)), axis=1)[:, 0] for x in (pixels, first)]
    assert leads[0].min() < -17  # where 32 bits lose the gradient of the cross-entropy
    assert (leads[1] > leads[0] + 1).all()


def test_a_linear_network_is_attacked_as_well_as_can_be() -> None:
    tail, signs = linear_tail()
    adversary = Adversary(build_trunk(), tail, recipe_of(adversarial_training="pgd", adversarial_steps=3))
    pixels = np.full((4, SIDE, SIDE, 3), 0.5, "f4")
    attacked = adversary.attack(tf.constant(pixels), np.eye(2, dtype="f4")[np.zeros(4, int)], 5.0)
    np.testing.assert_allclose(attacked, 0.5 + EPSILON * np.broadcast_to(signs, pixels.shape), atol=1e-6)


def test_epsilon_rises_in_the_first_half_of_training() -> None:
    tail, _ = linear_tail()
    adversary = Adversary(build_trunk(), tail, recipe_of(), num_steps=20)
    pixels, targets = tf.fill((4, SIDE, SIDE, 3), 0.5), np.eye(2, dtype="f4")[np.zeros(4, int)]
    furthest = [
        float(tf.reduce_max(tf.abs(adversary.attack(pixels, targets, n) - pixels))) for n in range(20)
    ]
    assert furthest == pytest.approx([EPSILON * min((n + 1) / 10, 1.0) for n in range(20)], abs=1e-6)


def test_patience_begins_when_epsilon_has_risen(tmp_path: Path) -> None:
    tail, recipe, source = build_tail(), recipe_of(epochs=8, patience=1, learning_rate=1e-9), Pictures()
    adversary = Scripted(tail, recipe, [0.5] + [0.4] * 7)
    history = build_trainer(tail, adversary, recipe).fit(
        source, source.validation, checkpoint=tmp_path / "checkpoint.npz"
    )
    assert len(history) == 6


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_what_is_trained_against_an_attack_withstands_more_than_what_is_not(
    tmp_path: Path, name: str
) -> None:
    source = Pictures()
    hardened, history = fit(tmp_path / "hard", adversarial_training=name, epochs=12)
    usual, recipe = (
        build_tail(),
        recipe_of(epochs=12, adversarial_epsilon="0.00001/255"),
    )  # as good as no attack
    trainer = build_trainer(usual, Adversary(build_trunk(), usual, recipe), recipe)
    trainer.fit(source, source.validation, checkpoint=tmp_path / "usual.npz")
    withstood = [
        Adversary(build_trunk(), tail, recipe_of()).withstood(*source.validation).mean()
        for tail in (usual, hardened)
    ]
    assert withstood[1] > withstood[0] + 0.2
    assert history[-1]["validation_robust_accuracy"] > 0.6
    assert all(row["validation_robust_accuracy"] <= row["validation_accuracy"] for row in history)


def test_withstanding_is_counted_on_few_pictures_of_many_and_always_on_the_same() -> None:
    tail, _ = linear_tail()
    adversary = Adversary(build_trunk(), tail, recipe_of(adversarial_epsilon="1/255"))
    pixels = np.random.default_rng(0).random((150, SIDE, SIDE, 3), dtype="f4")
    labels = np.random.default_rng(1).integers(0, 2, 150)
    found = adversary.withstood(pixels, labels)
    assert found.shape == (128,)
    assert found.any()
    assert not found.all()
    np.testing.assert_array_equal(found, adversary.withstood(pixels, labels))


class Scripted(Adversary):
    """Reports what a test wants of each epoch, and remembers the weights that it was asked about."""

    def __init__(self, tail: keras.Model, recipe: Recipe, robust: list[float]) -> None:
        super().__init__(build_trunk(), tail, recipe)
        self._tail, self._robust, self.seen = tail, iter(robust), []

    def withstood(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        self.seen.append(self._tail.get_weights())
        return np.arange(100) < round(100 * next(self._robust))


def test_a_collapse_ends_training_and_the_best_epoch_is_kept(tmp_path: Path, capsys) -> None:
    tail, recipe, source = build_tail(), recipe_of(epochs=9), Pictures()
    adversary = Scripted(tail, recipe, [0.3, 0.5, 0.4, 0.1, 0.9])
    history = build_trainer(tail, adversary, recipe).fit(
        source, source.validation, checkpoint=tmp_path / "checkpoint.npz"
    )
    assert [row["validation_robust_accuracy"] for row in history] == [0.3, 0.5, 0.4, 0.1]
    assert "Catastrophic overfitting" in capsys.readouterr().out
    for kept, best in zip(tail.get_weights(), adversary.seen[1], strict=True):
        np.testing.assert_array_equal(kept, best)


@pytest.mark.parametrize(
    ("robust", "collapsed"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.3], False),
        ([0.5, 0.2], True),
        ([0.1, 0.5, 0.2], True),
        ([0.05, 0.0], False),  # there was nothing to lose
        ([0.5, 0.1, 0.4], False),  # it came back
    ],
)
def test_a_collapse_is_a_loss_of_half_of_what_was_withstood(robust: list[float], collapsed: bool) -> None:
    assert has_collapsed([{"validation_robust_accuracy": value} for value in robust]) is collapsed


def test_epochs_are_ordered_by_what_they_withstand_where_enough_accuracy_is_left() -> None:
    names = ("validation_accuracy", "validation_robust_accuracy", "validation_log_loss")
    worst_to_best = [(0.7, 0.7, 0.1), (0.8, 0.6, 0.9), (0.99, 0.3, 0.1), (0.9, 0.4, 0.5), (0.91, 0.4, 0.4)]
    ranks = [preference(dict(zip(names, row, strict=True)), 0.9) for row in worst_to_best]
    assert all(worse < better for worse, better in itertools.pairwise(ranks))


@pytest.mark.parametrize(
    ("before", "after", "accuracy", "delivered"),
    [
        (0, 10, 0.9, True),
        (0, 10, 0.89, False),  # too much lost without attack
        (10, 10, 1.0, False),
        (10, 5, 1.0, False),
        (0, 1, 1.0, False),  # one picture alone is no evidence
    ],
)
def test_what_withstands_more_is_delivered_unless_it_costs_too_much(
    before: int, after: int, accuracy: float, delivered: bool
) -> None:
    pictures = np.arange(40)
    given = {"accuracy": accuracy, "least_accuracy": 0.9}
    assert is_worth_it(pictures < before, pictures < after, **given) is delivered


def test_a_killed_training_goes_on_with_the_result_of_an_unbroken_one(tmp_path: Path) -> None:
    expected, expected_history = fit(tmp_path / "whole")
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "from pathlib import Path; import test_adversarial_training as t\n"
        "t.fit(Path(sys.argv[2]), t.Pictures(kill_at=2))\n"
    )
    places = ":".join([str(Path(__file__).parent), *sys.path])
    arguments = [sys.executable, "-c", code, places, str(tmp_path / "broken")]
    ended = subprocess.run(arguments, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    source = Pictures()
    tail, history = fit(tmp_path / "broken", source)
    assert source.epochs == [2, 3]
    assert history == expected_history
    for one, other in zip(tail.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


REAL = Recipe(
    epochs=1, learning_rate=1e-4, batch_size=8, adversarial_training="fgsm", adversarial_epsilon="1/255"
)


@pytest.fixture(scope="module")
def inputs(picture_folder: Path, tmp_path_factory) -> dict[str, Path]:
    """The data set and head of few tiles: attacks on Lite0 take most of these tests, and go by pictures."""
    root = tmp_path_factory.mktemp("inputs")
    for folder in picture_folder.iterdir():
        (root / "pictures" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:6]:
            shutil.copy(file, root / "pictures" / folder.name)
    paths = {name: root / name for name in ("dataset", "features", "head")}
    for path in paths.values():
        path.mkdir()
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.2}
    datasets.write_dataset(paths["dataset"], source=f"directory:{root / 'pictures'}", seed=0, **fractions)
    backbone = {"backbone": "efficientnet_lite0", "weights": "imagenet"}
    features.write_features(paths["features"], dataset_path=paths["dataset"], **backbone)
    heads.write_head(paths["head"], features_path=paths["features"])
    for path in paths.values():
        seals.seal(path)
    return paths


@pytest.fixture(scope="module")
def hardened(inputs: dict[str, Path], tmp_path_factory) -> Path:
    """A model artifact of real tiles, trained against FGSM."""
    folder = tmp_path_factory.mktemp("hardened")
    write(inputs, folder)
    return folder


def write(inputs: dict[str, Path], folder: Path, **changes) -> dict:
    paths = {"dataset_path": inputs["dataset"], "head_path": inputs["head"]}
    return training.write_model(
        folder, **{**paths, "weights": "imagenet", "num_blocks": 1, "recipe": REAL, **changes}
    )


def test_the_trade_is_told_and_batchnorm_never_changes(hardened: Path) -> None:
    summary = files.read_json(hardened / "model.json")
    trade = summary["trade"]
    assert [row["name"] for row in trade["models"]] == ["head", "standard", "adversarial"]
    assert (trade["epsilon"], trade["steps"], trade["pictures"]) == (1.0, 10, 3)
    assert all(0 <= row["robust_accuracy"] <= row["accuracy"] for row in trade["models"])
    figures = training.figures_of(summary)
    assert figures["adversarial_robust_accuracy"] == summary["history"][0]["validation_robust_accuracy"]
    assert figures["head_accuracy"] == trade["models"][0]["accuracy"]
    assert figures["fine_tuned_accuracy"] == trade["models"][2]["accuracy"]
    assert trade["least_accuracy"] == pytest.approx(figures["head_accuracy"] - 0.05)
    before = backbones.build("efficientnet_lite0").get_layer("backbone")
    after = training.load_classifier(hardened).get_layer("backbone")
    frozen = [
        layer.name
        for layer in before.layers
        if layer.weights and (layer.name.endswith("_bn") or not layer.name.startswith(("block7a", "top")))
    ]
    assert len(frozen) > 50
    for name in frozen:
        pairs = zip(before.get_layer(name).get_weights(), after.get_layer(name).get_weights(), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs), name


def test_a_killed_step_goes_on_behind_the_usual_training(
    hardened: Path, inputs, tmp_path: Path, monkeypatch
) -> None:
    written = []

    def interrupted(path: Path, *state: object) -> None:
        written.append(path)
        if len(written) == 2:  # the usual training is done, the adversarial one about to be
            raise KeyboardInterrupt
        whole(path, *state)

    whole = fine_tuning._write_checkpoint
    monkeypatch.setattr(fine_tuning, "_write_checkpoint", interrupted)
    (tmp_path / "model").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write(inputs, tmp_path / "model", cache=tmp_path / "cache")
    assert [path.parent.name == "standard" for path in written] == [True, False]
    write(inputs, tmp_path / "model", cache=tmp_path / "cache")
    assert len(written) == 3
    assert files.read_json(tmp_path / "model" / "model.json") == files.read_json(hardened / "model.json")
    models = [training.load_classifier(path) for path in (hardened, tmp_path / "model")]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_withstands_no_more_than_the_head_is_not_delivered(inputs, tmp_path: Path) -> None:
    # A rate that ruins the network.
    recipe = Recipe(**{**vars(REAL), "learning_rate": 1.0})
    summary = write(inputs, tmp_path, recipe=recipe)
    assert summary["chosen"] == "head"
    kernel = training.load_classifier(tmp_path).get_layer("logits").get_weights()[0]
    expected = heads.read_layers(inputs["head"])[-1][0]
    np.testing.assert_allclose(kernel * summary["temperature"], expected, rtol=1e-5)


def test_nothing_to_train_is_nothing_to_harden(inputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_blocks must be at least 1.*Received: 0 and 'fgsm'"):
        write(inputs, tmp_path, num_blocks=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"adversarial_training": "carlini"}, "adversarial_training must be one of fgsm, none, pgd"),
        ({"adversarial_epsilon": "0"}, "adversarial_epsilon must be above 0, such as '2/255'. Received: '0'"),
        ({"adversarial_epsilon": "2"}, "epsilon must be a number in .* Did you mean '2/255'"),
        ({"adversarial_epsilon": "much"}, "epsilon must be a number in .* Received: 'much'"),
        ({"adversarial_steps": 0}, "adversarial_steps must be a whole number from 1. Received: 0"),
        ({"clean_tolerance": 1.0}, "clean_tolerance must be at least 0 and below 1. Received: 1"),
        ({"clean_tolerance": -0.1}, "clean_tolerance must be at least 0 and below 1"),
    ],
)
def test_bad_recipes_are_refused(change: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        Recipe(**change).check()
    assert "\n" not in str(caught.value)
