"""The temperature is found where it is known, and stays sensible where pictures say little."""

import numpy as np
import pytest

from graftflow.calibration import fit_temperature, with_temperature
from graftflow.fine_tuning import score


def drawn(num_pictures: int, *, true_temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels were drawn from softmax(logits / true_temperature)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 4, (num_pictures, 5))
    probabilities = np.exp(logits / true_temperature)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(5, p=p) for p in probabilities])
    return logits.astype("f4"), labels


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(true: float) -> None:
    logits, labels = drawn(4000, true_temperature=true)
    assert fit_temperature(logits, labels) == pytest.approx(true, rel=0.1)


def test_an_overconfident_model_gets_a_smaller_loss_on_other_pictures() -> None:
    logits, labels = drawn(200, true_temperature=3.0)
    temperature = fit_temperature(logits, labels)
    assert temperature > 1.5
    others, their_labels = drawn(2000, true_temperature=3.0, seed=1)
    before, after = score(others, their_labels), score(others / temperature, their_labels)
    assert after["log_loss"] < before["log_loss"]
    assert after["accuracy"] == before["accuracy"]


@pytest.mark.parametrize("num_pictures", [3, 100])
def test_pictures_without_a_mistake_do_not_ask_for_certainty(num_pictures: int) -> None:
    labels = np.arange(num_pictures) % 3
    logits = 8.0 * np.eye(3, dtype="f4")[labels]
    assert 0.5 < fit_temperature(logits, labels) < 1.05


def test_the_temperature_stays_in_its_bounds_for_wild_logits() -> None:
    labels = np.zeros(50, int)
    wrong = np.tile(np.array([[-1e6, 1e6]], "f4"), (50, 1))
    assert fit_temperature(wrong, labels) == pytest.approx(10.0, rel=0.01)


def test_probabilities_at_another_temperature_are_those_of_the_logits() -> None:
    logits, _ = drawn(100, true_temperature=1.0)

    def softmax(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values.astype("f8") - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    cooled = with_temperature(softmax(logits), 2.5)
    np.testing.assert_allclose(cooled, softmax(logits / 2.5), atol=1e-6)
    np.testing.assert_allclose(with_temperature(cooled, 1 / 2.5), softmax(logits), atol=1e-6)
    np.testing.assert_allclose(with_temperature(np.array([[1.0, 0.0]]), 3.0), [[1.0, 0.0]], atol=1e-12)
