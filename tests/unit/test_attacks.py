"""Attacks keep their bounds, go the way they say, and reproduce exact answers on linear models."""

import subprocess
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from graftflow import attacks
from graftflow.attacks import networks
from graftflow.epsilons import parse_epsilon, parse_epsilons, whole_levels
from graftflow.errors import InputError
from graftflow.imagenet_classes import IMAGENET_CLASSES, imagenet_index

SIDE = 6
EPSILONS = (0.5 / 255, 1 / 255, 4 / 255, 16 / 255)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Sixteen pictures of whole 1/255, with black and white in them."""
    generator = np.random.default_rng(0)
    return (generator.integers(0, 256, (16, SIDE, SIDE, 3)) / 255).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits"),
            keras.layers.Activation("softmax", name="probabilities"),
        ]
    )


@pytest.fixture(scope="module")
def logits_of(network: keras.Model) -> keras.Model:
    return attacks.logits_model(network)


@pytest.fixture(scope="module")
def labels(logits_of: keras.Model, pixels: np.ndarray) -> np.ndarray:
    return np.argmax(logits_of(pixels), axis=1)


@pytest.fixture(scope="module")
def targets(labels: np.ndarray) -> np.ndarray:
    return (labels + 1) % 3


class Linear:
    """Two classes with logits (0, w·x + b): the least ε that changes class 1 is margin / ‖w‖₁."""

    def __init__(self, centre: np.ndarray, margin: float, scale: float = 1.0) -> None:
        w = np.random.default_rng(5).normal(0, 0.1, centre.shape)
        self.w = tf.constant(scale * w, tf.float32)
        self.bias = float(scale * margin - np.sum(scale * w * centre))
        self.least_epsilon = margin / float(np.abs(w).sum())

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        z = tf.reduce_sum(self.w * pixels, axis=(1, 2, 3)) + self.bias
        return tf.stack([tf.zeros_like(z), z], axis=1)


def every_attack(
    logits_of: attacks.Logits, pixels: np.ndarray, labels: np.ndarray, epsilon: float, targeted: bool
) -> dict[str, np.ndarray]:
    return {
        "fgsm": attacks.fgsm(logits_of, pixels, labels, epsilon=epsilon, targeted=targeted).numpy(),
        "pgd": attacks.pgd(
            logits_of, pixels, labels, epsilon=epsilon, steps=6, seed=0, targeted=targeted
        ).numpy(),
    }


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_attacks_stay_within_epsilon_and_the_pixel_range(
    logits_of: keras.Model, pixels: np.ndarray, labels: np.ndarray, epsilon: float, targeted: bool
) -> None:
    for found in every_attack(logits_of, pixels, labels, epsilon, targeted).values():
        assert found.dtype == np.float32
        assert np.abs(found - pixels).max() <= epsilon + 1e-7
        assert found.min() >= 0
        assert found.max() <= 1


@pytest.mark.parametrize("epsilon", [*EPSILONS, 1.7 / 255, 0.02])
def test_eight_bits_hold_epsilon_to_the_last_bit(
    logits_of: keras.Model, pixels: np.ndarray, labels: np.ndarray, epsilon: float
) -> None:
    found = attacks.pgd(logits_of, pixels, labels, epsilon=epsilon, steps=6, seed=0, eight_bits=True).numpy()
    levels = np.round(found * 255).astype(int)
    assert np.array_equal((levels / np.float32(255)).astype(np.float32), found)
    assert np.abs(levels - np.round(pixels * 255).astype(int)).max() <= whole_levels(epsilon)
    assert 0 <= levels.min() <= levels.max() <= 255


def test_rounding_leaves_an_attack_that_fits_as_it_is(pixels: np.ndarray) -> None:
    moved = np.clip(pixels + np.float32(2 / 255), 0, 1)
    rounded = attacks.round_to_eight_bits(moved, pixels, 2 / 255).numpy()
    np.testing.assert_allclose(rounded, moved, atol=1e-6)


def test_no_epsilon_changes_nothing(logits_of: keras.Model, pixels: np.ndarray, labels: np.ndarray) -> None:
    for found in every_attack(logits_of, pixels, labels, 0.0, False).values():
        assert np.array_equal(found, pixels)


def test_untargeted_attacks_raise_the_labels_loss(
    logits_of: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    before = attacks.log_odds_against(logits_of(pixels), labels).numpy()
    for found in every_attack(logits_of, pixels, labels, 1 / 255, False).values():
        assert np.all(attacks.log_odds_against(logits_of(found), labels).numpy() > before)


def test_targeted_attacks_lower_the_targets_loss(
    logits_of: keras.Model, pixels: np.ndarray, targets: np.ndarray
) -> None:
    before = attacks.log_odds_against(logits_of(pixels), targets).numpy()
    for found in every_attack(logits_of, pixels, targets, 1 / 255, True).values():
        assert np.all(attacks.log_odds_against(logits_of(found), targets).numpy() < before)


def test_pgd_raises_the_loss_at_least_as_far_as_fgsm(
    logits_of: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    found = every_attack(logits_of, pixels, labels, 0.5 / 255, False)
    wrong = {name: np.argmax(logits_of(x), axis=1) != labels for name, x in found.items()}
    assert wrong["pgd"].sum() >= wrong["fgsm"].sum()


def test_targeted_pgd_reaches_every_target_in_a_large_ball(
    logits_of: keras.Model, pixels: np.ndarray, targets: np.ndarray
) -> None:
    found = attacks.pgd(
        logits_of, pixels, targets, epsilon=0.6, steps=30, seed=0, targeted=True, eight_bits=True
    )
    assert np.array_equal(np.argmax(logits_of(found), axis=1), targets)


# A margin of 60 is where float32 loses the gradient of a cross-entropy.
@pytest.mark.parametrize("scale", [1.0, 600.0])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_linear_model_falls_exactly_at_its_margin_over_the_l1_norm(attack: str, scale: float) -> None:
    centre = np.random.default_rng(2).uniform(0.3, 0.7, (1, SIDE, SIDE, 3)).astype(np.float32)
    model = Linear(centre, margin=0.1, scale=scale)
    for factor, falls in ((0.99, False), (1.01, True)):
        found = every_attack(model, centre, np.array([1]), factor * model.least_epsilon, False)[attack]
        assert bool(model(found)[0, 1] < 0) == falls


def test_fgsm_is_the_signed_weight_on_a_linear_model() -> None:
    centre = np.full((1, SIDE, SIDE, 3), 0.5, np.float32)
    model = Linear(centre, margin=0.1)
    found = attacks.fgsm(model, centre, [1], epsilon=0.1)
    np.testing.assert_allclose(found - centre, -0.1 * np.sign(model.w)[None][0], atol=1e-7)


def test_the_loss_is_the_log_odds_and_keeps_its_gradient() -> None:
    logits = tf.constant([[1.0, 2.0, 4.0], [0.0, 90.0, 0.0]])
    labels = tf.constant([2, 1], tf.int64)
    p = tf.nn.softmax(tf.cast(logits, tf.float64), axis=1).numpy()[0, 2]
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = attacks.log_odds_against(logits, labels)
    assert float(loss[0]) == pytest.approx(np.log((1 - p) / p), abs=1e-5)
    np.testing.assert_allclose(tape.gradient(loss, logits)[1], [0.5, -1, 0.5], atol=1e-6)


def test_the_same_seed_gives_the_same_pictures_and_another_does_not(
    logits_of: keras.Model, pixels: np.ndarray, targets: np.ndarray
) -> None:
    def run(seed: int) -> np.ndarray:
        return attacks.pgd(
            logits_of, pixels, targets, epsilon=2 / 255, steps=2, seed=seed, targeted=True
        ).numpy()

    assert np.array_equal(run(2**63 - 1), run(2**63 - 1))
    assert not np.array_equal(run(3), run(4))


def test_fgsm_can_share_its_gradient_between_radii(
    logits_of: keras.Model, pixels: np.ndarray, targets: np.ndarray
) -> None:
    signs = attacks.signed_gradient(logits_of, pixels, targets, targeted=True)
    for epsilon in EPSILONS:
        alone = attacks.fgsm(logits_of, pixels, targets, epsilon=epsilon, targeted=True)
        shared = attacks.fgsm(logits_of, pixels, targets, epsilon=epsilon, targeted=True, signs=signs)
        assert np.array_equal(alone, shared)


def test_a_batch_is_attacked_picture_by_picture(
    logits_of: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    together = attacks.fgsm(logits_of, pixels, labels, epsilon=4 / 255).numpy()
    alone = attacks.fgsm(logits_of, pixels[5:6], labels[5:6], epsilon=4 / 255).numpy()
    np.testing.assert_allclose(together[5:6], alone, atol=1e-7)


def test_radii_share_one_compilation(logits_of: keras.Model, pixels: np.ndarray, labels: np.ndarray) -> None:
    every_attack(logits_of, pixels, labels, EPSILONS[0], False)
    every_attack(logits_of, pixels[:7], labels[:7], EPSILONS[0], False)
    before = networks.gradient_pass.experimental_get_tracing_count()
    for epsilon in EPSILONS:
        every_attack(logits_of, pixels[:9], labels[:9], epsilon, False)
    assert networks.gradient_pass.experimental_get_tracing_count() == before


@pytest.mark.parametrize("eight_bits", [False, True])
def test_descent_reaches_its_class_with_the_asked_probability(
    logits_of: keras.Model, pixels: np.ndarray, targets: np.ndarray, eight_bits: bool
) -> None:
    found = attacks.descend(
        logits_of, pixels, targets, steps=200, probability=0.8, eight_bits=eight_bits
    ).numpy()
    reached = tf.nn.softmax(logits_of(found)).numpy()[np.arange(16), targets]
    assert reached.min() >= 0.8
    assert found.min() >= 0
    assert found.max() <= 1


def test_descent_leaves_a_picture_alone_that_is_sure_already(
    logits_of: keras.Model, pixels: np.ndarray, labels: np.ndarray
) -> None:
    probability = float(tf.reduce_max(tf.nn.softmax(logits_of(pixels)), axis=1).numpy().min()) - 1e-4
    found = attacks.descend(logits_of, pixels, labels, steps=5, probability=probability)
    assert np.array_equal(found, pixels)


def test_descent_with_total_variation_is_smoother(
    logits_of: keras.Model, pixels: np.ndarray, targets: np.ndarray
) -> None:
    plain, smooth = (
        attacks.descend(
            logits_of, pixels, targets, steps=20, probability=0.999, total_variation_weight=weight
        )
        for weight in (0.0, 100.0)
    )
    assert np.mean(attacks.total_variation(smooth)) < np.mean(attacks.total_variation(plain))
    usual = attacks.descend(logits_of, pixels, targets, steps=20, probability=0.999)
    np.testing.assert_array_equal(usual, plain)


def test_the_gradient_of_the_total_variation_is_that_of_its_formula() -> None:
    pixels = tf.constant(np.random.default_rng(0).integers(0, 4, (3, 5, 7, 3)), tf.float32)
    weights = tf.constant([1.0, -2.0, 30.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(pixels)
        down, across = tf.abs(pixels[:, 1:] - pixels[:, :-1]), tf.abs(pixels[:, :, 1:] - pixels[:, :, :-1])
        plain = weights * (tf.reduce_mean(down, axis=(1, 2, 3)) + tf.reduce_mean(across, axis=(1, 2, 3)))
        own = weights * attacks.total_variation(pixels)
    np.testing.assert_allclose(tape.gradient(own, pixels), tape.gradient(plain, pixels), atol=1e-6)


def test_total_variation_adds_the_steps_down_and_across() -> None:
    steps = 0.1 * np.arange(4)[:, None] + 0.02 * np.arange(5)[None, :]
    pictures = np.stack([steps, steps[::-1], np.zeros((4, 5))])[..., None].repeat(3, axis=3)
    np.testing.assert_allclose(
        attacks.total_variation(pictures.astype(np.float32)), [0.12, 0.12, 0], atol=1e-6
    )


def test_logits_model_ends_before_the_softmax(network: keras.Model, pixels: np.ndarray) -> None:
    logits = attacks.logits_model(network)(pixels)
    np.testing.assert_allclose(tf.nn.softmax(logits), network(pixels), atol=1e-6)


def test_logits_model_needs_the_layer() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="other")])
    with pytest.raises(InputError, match=r"named 'logits'.*other"):
        attacks.logits_model(model)


def call(name: str, **settings: object) -> Callable[..., object]:
    defaults = {
        "fgsm": {"epsilon": 0.1},
        "pgd": {"epsilon": 0.1, "steps": 2, "seed": 0},
        "descend": {"steps": 2},
    }[name]
    return lambda *arrays: getattr(attacks, name)(*arrays, **{**defaults, **settings})


@pytest.mark.parametrize(
    ("run", "rule"),
    [
        (call("fgsm", epsilon=-0.1), r"epsilon must lie in \[0, 1\]. Received: -0.1"),
        (call("fgsm", epsilon=float("nan")), "epsilon must lie in"),
        (call("pgd", epsilon=1.5), "epsilon must lie in"),
        (call("pgd", steps=0), "steps must be at least 1. Received: 0"),
        (call("pgd", step_size=-1.0), "step_size must be at least 0"),
        (call("descend", steps=0), "steps must be at least 1"),
        (call("descend", probability=1.0), "probability must lie between 0 and 1"),
        (call("descend", step_size=0.0), "step_size must be above 0"),
        (call("descend", total_variation_weight=-1.0), "total_variation_weight must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(
    run: Callable[..., object],
    rule: str,
    logits_of: keras.Model,
    pixels: np.ndarray,
    labels: np.ndarray,
) -> None:
    with pytest.raises(InputError, match=rule):
        run(logits_of, pixels, labels)


def test_labels_must_be_classes_of_the_model(logits_of: keras.Model, pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="labels must lie in 0 … 2"):
        attacks.fgsm(logits_of, pixels[:1], [3], epsilon=0.1)
    with pytest.raises(InputError, match=r"labels \(n,\)"):
        attacks.fgsm(logits_of, pixels[:2], [1], epsilon=0.1)


def test_one_logit_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"at least 2 classes\. Received: 1"):
        attacks.fgsm(lambda x: tf.reduce_sum(x, axis=(1, 2, 3))[:, None], pixels[:1], [0], epsilon=0.1)


@pytest.mark.parametrize(
    ("text", "value"), [("4/255", 4 / 255), (" 0.5 / 255", 0.5 / 255), ("0.03", 0.03), ("0", 0), ("1", 1)]
)
def test_radii_are_quotients_or_numbers(text: str, value: float) -> None:
    assert parse_epsilon(text) == value


@pytest.mark.parametrize(
    "text", ["-1/255", "nan", "inf", "1e999", "1/0", "256/255", "1/2/3", "", "four", "１/255", "0x1"]
)
def test_other_radii_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="epsilon must be a number"):
        parse_epsilon(text)


def test_a_forgotten_255_is_pointed_out() -> None:
    with pytest.raises(InputError, match="Did you mean '4/255'"):
        parse_epsilon("4")


def test_lists_of_radii_are_sorted_without_repeats() -> None:
    assert parse_epsilons("2/255,1/255, 2/255,") == [1 / 255, 2 / 255]
    with pytest.raises(InputError, match="at least one radius"):
        parse_epsilons(" , ")


def test_whole_levels_of_every_k_are_k() -> None:
    assert [whole_levels(parse_epsilon(f"{k}/255")) for k in range(256)] == list(range(256))
    assert whole_levels(0.999 / 255) == 0


def test_parsing_radii_loads_no_tensorflow() -> None:
    code = "import sys, graftflow.epsilons; print('tensorflow' in sys.modules)"
    path = "import sys; sys.path.insert(0, 'src'); "
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_imagenet_has_1000_different_names() -> None:
    assert len(IMAGENET_CLASSES) == len(set(IMAGENET_CLASSES)) == 1000


@pytest.mark.parametrize(
    ("name", "index"),
    [("Siamese cat", 284), ("siamese_cat", 284), ("zebra", 340), ("Cardigan", 264), ("cardigan", 474)],
)
def test_imagenet_names_are_found(name: str, index: int) -> None:
    assert imagenet_index(name) == index


def test_an_unknown_imagenet_name_names_its_neighbours() -> None:
    with pytest.raises(InputError, match=r"Received: 'siamese'\. Near it: 'Siamese cat'"):
        imagenet_index("siamese")
    with pytest.raises(InputError, match="'cardigan'"):
        imagenet_index("CARDIGAN")


def test_the_number_of_classes_is_told_without_a_pass(
    logits_of: keras.Model, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passed(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(networks, "predict_logits", passed)
        assert networks.num_classes(logits_of, pixels) == 3
    # A graph that does not tell it is run.
    assert networks.num_classes(lambda x: tf.reshape(x, (tf.shape(x)[0], -1)), pixels) == SIDE * SIDE * 3
