"""Attacks find what is there: exact answers, hidden gradients, a real network; and they count what it cost."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from graftflow import attacks, datasets, preprocessing
from graftflow.attacks import balls, networks, results
from graftflow.errors import InputError
from graftflow.training import load_classifier
from tests.conftest import Artifacts

SIDE = 8
FAST = {
    "fgsm": attacks.fast_gradient,
    "pgd": partial(attacks.projected_gradient, steps=8, seed=0),
    "apgd": partial(attacks.apgd, steps=8, seed=0),
}


class Linear:
    """Two classes with logits (0, w·(x − centre) + margin), through a function of the second."""

    def __init__(self, margin: float, shape_of: Callable[[tf.Tensor], tf.Tensor] = tf.identity) -> None:
        self.w = tf.constant(np.random.default_rng(5).normal(0, 0.1, (SIDE, SIDE, 3)), tf.float32)
        self.margin, self.shape_of = margin, shape_of
        self.least = {
            "linf": margin / float(tf.norm(self.w, 1)),
            "l2": margin / float(tf.norm(self.w, 2)),
        }

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        z = self.shape_of(tf.reduce_sum(self.w * (pixels - 0.5), axis=(1, 2, 3)) + self.margin)
        return tf.stack([tf.zeros_like(z), z], axis=1)


class Counted:
    """A network that counts the pictures it judges."""

    def __init__(self, network: Any) -> None:
        self.network, self.count = network, tf.Variable(0, dtype=tf.int32)

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        self.count.assign_add(tf.shape(pixels)[0])
        return self.network(pixels)


def grey(count: int) -> np.ndarray:
    return np.full((count, SIDE, SIDE, 3), 0.5, np.float32)


def through_png(pixels: np.ndarray) -> np.ndarray:
    """The 8-bit levels that a server decodes."""
    levels = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(buffer, "PNG")
        levels.append(np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"), np.int64))
    return np.stack(levels)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return (np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3)) / 255).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Four classes, not linear."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )


@pytest.fixture(scope="module")
def labels(network: keras.Model, pixels: np.ndarray) -> np.ndarray:
    return np.argmax(network(pixels), axis=1)


@pytest.fixture(scope="module")
def real(artifacts: Artifacts) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A trained classifier, and test pictures that it gets right."""
    model = load_classifier(artifacts.model)
    examples = list(datasets.read_split(artifacts.dataset, "test"))[:8]
    images = tf.stack([example["image"] for example in examples])
    pixels = preprocessing.decode_batch(images, model.input_shape[1]).numpy()
    pixels = (np.round(pixels * 255) / 255).astype(np.float32)
    labels = np.array([int(example["label"]) for example in examples])
    logits_of = attacks.logits_model(model)
    right = attacks.predict_logits(logits_of, pixels).numpy().argmax(axis=1) == labels
    assert right.sum() >= 4
    return logits_of, pixels[right], labels[right]


EVERY = {
    **FAST,
    "apgd-dlr": partial(attacks.apgd, steps=6, seed=0, loss="dlr"),
    "square": partial(attacks.square, queries=20, seed=0),
    "ensemble": partial(attacks.ensemble, steps=4, queries=8, seed=0, num_targets=2),
}
IN_L2 = {
    name: partial(attack, norm="l2") for name, attack in EVERY.items() if name not in ("square", "apgd-dlr")
}


@pytest.mark.parametrize("epsilon", [0.4 / 255, 1 / 255, 4 / 255, 0.02])
@pytest.mark.parametrize("name", EVERY)
def test_a_decoded_png_lies_in_the_ball_and_is_what_was_judged(
    name: str, epsilon: float, network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    found = EVERY[name](network, pixels, labels, epsilon=epsilon, eight_bits=True)
    levels = through_png(found.pixels)
    assert np.array_equal((levels / 255).astype(np.float32), found.pixels)
    assert np.abs(levels - np.round(pixels * 255)).max() <= 255 * epsilon + 1e-9
    judged = attacks.predict_logits(network, (levels / 255).astype(np.float32)).numpy().argmax(axis=1)
    assert np.array_equal(judged != labels, found.fooled)


@pytest.mark.parametrize("epsilon", [0.001, 0.03, 0.3, 2.0])
@pytest.mark.parametrize("name", IN_L2)
def test_a_decoded_png_lies_in_the_l2_ball(
    name: str, epsilon: float, network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    found = IN_L2[name](network, pixels, labels, epsilon=epsilon, eight_bits=True)
    moved = through_png(found.pixels) - np.round(pixels * 255).astype(np.int64)
    assert (moved**2).sum(axis=(1, 2, 3)).max() <= (255 * epsilon) ** 2 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball_evenly(norm: balls.Norm) -> None:
    centre = np.full((3000, 1, 1, 3), 0.5, np.float32)
    starts = balls.random_start(tf.constant(centre), 0.1, norm, seed=(0,), numbers=range(3000))
    moved = (starts.numpy() - centre).reshape(-1, 3) / 0.1
    assert np.abs(moved.mean(axis=0)).max() < 0.06  # five deviations
    size = np.abs(moved).max(axis=1) if norm == "linf" else np.linalg.norm(moved, axis=1)
    # In three dimensions the cube of the distance from the centre is uniform.
    assert size.max() <= 1 + 1e-6
    assert np.quantile(size**3, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.05)
    few = balls.random_start(tf.constant(centre[:2]), 0.1, norm, seed=(0,), numbers=[2999, 7])
    assert np.array_equal(few, starts.numpy()[[2999, 7]])


def test_whole_levels_of_an_l2_ball_are_its_largest_sum_of_squares() -> None:
    assert [float(balls.radius(k**0.5 / 255, "l2").levels) for k in range(50)] == list(range(50))
    assert float(balls.radius(0.999 / 255, "l2").levels) == 0


def test_rounding_in_l2_fills_the_ball() -> None:
    model = Linear(margin=1.0)
    found = attacks.fast_gradient(model, grey(1), [1], epsilon=0.02, norm="l2", eight_bits=True)
    # Half a level in the steepest pixel, less in the others: rounded as they are, all would be 0.
    moved = attacks.distances(found.pixels, np.round(grey(1) * 255) / 255, "l2")
    assert 0.8 * 0.02 <= moved[0] <= 0.02


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", FAST)
def test_a_linear_model_falls_at_its_margin_over_the_dual_norm(name: str, norm: str) -> None:
    model = Linear(margin=0.1)
    for factor, falls in ((0.995, False), (1.005, True)):
        found = FAST[name](model, grey(2), [1, 1], epsilon=factor * model.least[norm], norm=norm)
        assert found.fooled.tolist() == [falls] * 2


def test_square_exposes_a_hidden_gradient() -> None:
    model = Linear(margin=1.0, shape_of=lambda z: tf.round(50 * z) / 50)
    epsilon = 1.5 * model.least["linf"]
    for name in FAST:
        assert not FAST[name](model, grey(4), [1] * 4, epsilon=epsilon).fooled.any()
    searched = attacks.square(model, grey(4), [1] * 4, epsilon=epsilon, queries=400, seed=0)
    assert searched.fooled.all()
    for eight_bits in (False, True):
        together = attacks.ensemble(
            model, grey(4), [1] * 4, epsilon=epsilon, steps=5, queries=400, seed=0, eight_bits=eight_bits
        )
        assert together.fooled.all()
        assert set(together.names) == {"Square"}
    assert np.array_equal((through_png(together.pixels) / 255).astype(np.float32), together.pixels)


def test_logits_a_thousand_times_as_large_hide_nothing(
    network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    for attack in FAST.values():
        plain = attack(network, pixels, labels, epsilon=4 / 255)
        scaled = attack(lambda x: 1000 * network(x), pixels, labels, epsilon=4 / 255)
        assert scaled.fooled.sum() >= plain.fooled.sum() - 1


@pytest.mark.parametrize("name", EVERY)
def test_the_size_of_batches_changes_nothing(
    name: str, network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    one, all_at_once = (
        EVERY[name](network, pixels, labels, epsilon=2 / 255, batch_size=size) for size in (1, 12)
    )
    assert np.array_equal(one.fooled, all_at_once.fooled)
    assert np.array_equal(one.evaluations, all_at_once.evaluations)
    np.testing.assert_allclose(one.pixels, all_at_once.pixels, atol=1e-6)


@pytest.mark.parametrize(
    "attack",
    [
        partial(attacks.projected_gradient, steps=30, seed=0),
        partial(attacks.projected_gradient, steps=30, seed=0, norm="l2"),
        partial(attacks.apgd, steps=30, seed=0),
        partial(attacks.square, queries=300, seed=0),
    ],
    ids=["pgd", "pgd-l2", "apgd", "square"],
)
def test_targeted_attacks_reach_every_target(
    attack: Callable[..., attacks.Attacked], network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    radius = 6.0 if attack.keywords.get("norm") == "l2" else 0.6  # type: ignore[attr-defined]
    targets = (labels + 1) % 4
    found = attack(network, pixels, targets, epsilon=radius, targeted=True, eight_bits=True)
    assert found.fooled.all()
    assert np.array_equal(np.argmax(network(found.pixels), axis=1), targets)


@pytest.mark.parametrize("name", EVERY)
def test_evaluations_are_what_the_network_judged(
    name: str, network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    counted = Counted(network)
    found = EVERY[name](counted, pixels, labels, epsilon=1 / 255)
    if name != "ensemble":  # which asks for the likeliest classes too
        assert int(counted.count) == found.evaluations.sum()


def test_fooled_pictures_cost_nothing_more(
    network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    easy = attacks.projected_gradient(network, pixels, labels, epsilon=0.5, steps=50, seed=0)
    hard = attacks.projected_gradient(network, pixels, labels, epsilon=1e-5, steps=50, seed=0)
    assert easy.fooled.all()
    assert not hard.fooled.any()
    assert (hard.evaluations == 56).all()  # itself, 50 gradients, 3 looks, then FGSM's gradient and its look
    assert easy.evaluations.max() < 15
    wrong = attacks.square(network, pixels, (labels + 1) % 4, epsilon=0.1, queries=9, seed=0)
    assert (wrong.evaluations == 1).all()
    assert np.array_equal(wrong.pixels, pixels)


def test_another_radius_or_number_of_steps_or_pictures_compiles_nothing(
    network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    def run(epsilon: float, steps: int, count: int) -> None:
        for name in FAST:
            settings = {} if name == "fgsm" else {"steps": steps}
            FAST[name](network, pixels[:count], labels[:count], epsilon=epsilon, **settings)
        attacks.square(network, pixels[:count], labels[:count], epsilon=epsilon, queries=steps, seed=0)

    run(1 / 255, 4, 12)
    graphs = (networks.gradient_pass, networks.predict_pass)
    before = [graph.experimental_get_tracing_count() for graph in graphs]
    run(3 / 255, 7, 5)
    run(9 / 255, 2, 1)
    assert [graph.experimental_get_tracing_count() for graph in graphs] == before


@pytest.mark.parametrize("epsilon", [0.5 / 255, 2 / 255, 8 / 255])
def test_pgd_fools_every_picture_of_a_real_network_that_fgsm_fools(
    epsilon: float, real: tuple[keras.Model, np.ndarray, np.ndarray]
) -> None:
    rounded = epsilon >= 1 / 255
    once = attacks.fast_gradient(*real, epsilon=epsilon, eight_bits=rounded)
    often = attacks.projected_gradient(*real, epsilon=epsilon, steps=5, seed=0, eight_bits=rounded)
    assert (often.fooled | ~once.fooled).all()
    assert often.fooled.sum() >= once.fooled.sum()


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_a_large_ball_holds_a_picture_that_fools_a_real_network(
    name: str, real: tuple[keras.Model, np.ndarray, np.ndarray]
) -> None:
    logits_of, pixels, labels = real
    found = FAST[name](logits_of, pixels, labels, epsilon=32 / 255, eight_bits=True)
    assert found.fooled.all()
    judged = attacks.predict_logits(logits_of, through_png(found.pixels) / 255).numpy().argmax(axis=1)
    assert (judged != labels).all()


def test_the_ensemble_loses_nothing_that_its_first_attack_found(
    network: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    settings: dict[str, Any] = {"epsilon": 1.5 / 255, "steps": 5, "seed": 0}
    first = attacks.apgd(network, pixels, labels, **settings)
    found = attacks.ensemble(network, pixels, labels, queries=10, **settings)
    assert (found.fooled | ~first.fooled).all()
    assert (found.names[first.fooled] == "APGD-CE").all()
    assert (found.evaluations >= first.evaluations).all()


def test_a_restart_begins_again_where_a_picture_resists() -> None:
    judged = []
    for restarts in (1, 3):
        network = Counted(Linear(margin=100.0))
        attacks.pgd(network, grey(2), np.ones(2, int), epsilon=0.01, steps=4, seed=0, restarts=restarts)
        judged.append(int(network.count))
    assert judged[1] > 2 * judged[0]


@pytest.mark.parametrize("attack", [attacks.apgd, attacks.projected_gradient])
def test_every_restart_begins_elsewhere(
    attack: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, original = [], results.Batch.random_start

    def noted(batch: results.Batch, *seed: int) -> tf.Tensor:
        starts.append(original(batch, *seed))
        return starts[-1]

    monkeypatch.setattr(results.Batch, "random_start", noted)
    attack(Linear(margin=100.0), grey(2), np.ones(2, int), epsilon=0.01, steps=1, seed=0, restarts=3)
    assert len({start.numpy().tobytes() for start in starts}) == len(starts) == 3


class Facets:
    """Logits of ``classes`` classes, each a linear function of its own; the first leads on grey by far."""

    def __init__(self, classes: int) -> None:
        self.w = tf.constant(np.random.default_rng(6).normal(0, 0.1, (SIDE, SIDE, 3, classes)), tf.float32)

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        logits = tf.tensordot(pixels - 0.5, self.w, 3)
        return logits + 10 * tf.one_hot(0, logits.shape[1])


@pytest.mark.parametrize("batch_size", [2, 64])
def test_targeted_dlr_climbs_to_the_class_that_it_is_given(batch_size: int) -> None:
    network, targets = Facets(5), np.array([3, 1, 4, 2, 1, 3])
    labels = np.zeros(len(targets), int)
    found = attacks.apgd(
        network, grey(len(targets)), labels, epsilon=0.02, steps=20, seed=0, loss="targeted-dlr", targets=targets,
        batch_size=batch_size,
    )  # fmt: skip
    assert not found.fooled.any()
    risen = network(tf.constant(found.pixels)) - network(tf.constant(grey(1)))
    assert (np.argmax(risen - risen[:, :1], axis=1) == targets).all()


@pytest.mark.parametrize(("classes", "climbs"), [(2, 1), (3, 2)])
def test_the_ensemble_restarts_each_of_its_climbs(classes: int, climbs: int) -> None:
    judged = [
        attacks.ensemble(
            Facets(classes),
            grey(2),
            np.zeros(2, int),
            epsilon=0.01,
            steps=4,
            queries=3,
            seed=0,
            restarts=restarts,
        ).evaluations
        for restarts in (1, 2, 3)
    ]
    assert (judged[1] - judged[0] == 5 * climbs).all()
    assert (judged[2] - judged[1] == 5 * climbs).all()


def test_apgd_halves_its_step_until_it_stands_on_the_peak() -> None:
    middle = 0.5 + 0.05 * np.random.default_rng(3).uniform(-1, 1, (SIDE, SIDE, 3)).astype(np.float32)

    def dome(pixels: tf.Tensor) -> tf.Tensor:
        z = 1 + tf.reduce_sum(tf.square(pixels - middle), axis=(1, 2, 3))
        return tf.stack([tf.zeros_like(z), z], axis=1)

    def height(x: np.ndarray) -> float:
        return float(dome(tf.constant(x))[0, 1]) - 1

    found = attacks.apgd(dome, grey(1), [1], epsilon=0.1, steps=100, seed=0).pixels
    fixed = attacks.projected_gradient(
        dome, grey(1), [1], epsilon=0.1, steps=100, seed=0, step_size=0.2
    ).pixels
    assert height(found) < 0.02 * height(grey(1))
    assert height(found) < 0.1 * height(fixed)


def test_checkpoints_are_the_papers() -> None:
    assert attacks.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert attacks.checkpoints(1) == [1]


def test_squares_shrink_as_in_the_paper() -> None:
    shares = [attacks.square_share(i, 10_000, 0.8) for i in (1, 10, 11, 51, 201, 1001, 9000)]
    assert shares == [0.8, 0.8, 0.4, 0.2, 0.1, 0.05, 0.8 / 256]
    assert attacks.square_share(11, 100, 0.8) == attacks.square_share(1100, 10_000, 0.8)


@pytest.mark.parametrize(
    ("attack", "rule"),
    [
        (partial(attacks.apgd, steps=3, seed=0, loss="dlr"), "at least 3 classes. Received: 2"),
        (
            partial(attacks.apgd, steps=3, seed=0, loss="hinge"),
            "one of ce, dlr, targeted-dlr. Received: 'hinge'",
        ),
        (partial(attacks.apgd, steps=3, seed=0, targets=[0]), "targets belong to the loss 'targeted-dlr'"),
        (partial(attacks.apgd, steps=0, seed=0), "steps must be at least 1. Received: 0"),
        (partial(attacks.projected_gradient, steps=3, seed=0, norm="l1"), "'linf' or 'l2'. Received: 'l1'"),
        (partial(attacks.projected_gradient, steps=3, seed=0, restarts=0), "restarts must be at least 1"),
        (partial(attacks.projected_gradient, steps=3, seed=0, batch_size=0), "batch_size must be at least 1"),
        (partial(attacks.square, queries=0, seed=0), "queries must be at least 1. Received: 0"),
        (partial(attacks.square, queries=1, seed=0, first_share=0.0), "first_share must lie above 0"),
        (
            partial(attacks.ensemble, steps=1, queries=1, seed=0, num_targets=0),
            "num_targets must be at least 1",
        ),
        (partial(attacks.in_turn, []), "attacks must name at least one attack"),
    ],
)
def test_settings_out_of_range_are_refused(attack: Callable[..., object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        attack(Linear(margin=0.1), grey(1), [1], epsilon=0.1)


def test_no_pictures_are_no_trouble(network: keras.Model) -> None:
    found = attacks.projected_gradient(
        network, np.zeros((0, SIDE, SIDE, 3), np.float32), np.zeros(0, np.int64), epsilon=0.1, steps=2, seed=0
    )
    assert found.pixels.shape == (0, SIDE, SIDE, 3)
    assert found.rate == 0
