"""Corruptions grow with their severity, stay pictures of 8 bits, and do what their names say."""

import numpy as np
import pytest

from graftflow.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from graftflow.embedded import open_closeups
from graftflow.errors import InputError
from graftflow.predictions import decode

NAMES = tuple(CORRUPTIONS)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Tiles of four photographs at 112 pixels, as whole levels."""
    found = list(open_closeups().pictures)
    tiles = found[:: len(found) // 4][:4]
    return np.asarray(np.round(decode([tile.read() for tile in tiles], 112) * 255) / np.float32(255))


@pytest.mark.parametrize("name", NAMES)
def test_a_higher_severity_takes_a_picture_further_away(name: str, pixels: np.ndarray) -> None:
    distances = []
    for severity in SEVERITIES:
        found = corrupt(pixels, name, severity, seed=0)
        assert found.shape == pixels.shape
        assert found.dtype == np.float32
        assert found.min() >= 0
        assert found.max() <= 1
        assert np.abs(found * 255 - np.round(found * 255)).max() < 1e-4
        distances.append(float(np.abs(found - pixels).mean()))
    assert distances == sorted(distances)
    assert 0 < distances[0] < distances[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_corrupted_alike_in_any_company(name: str, pixels: np.ndarray) -> None:
    together = corrupt(pixels, name, 3, seed=4)
    assert np.array_equal(together, corrupt(pixels, name, 3, seed=4))
    assert np.array_equal(together[:1], corrupt(pixels[:1], name, 3, seed=4))
    assert np.array_equal(together[1:], corrupt(pixels[1:], name, 3, seed=4, first=1))


def test_only_noise_depends_on_the_seed(pixels: np.ndarray) -> None:
    differs = {
        name for name in NAMES if (corrupt(pixels, name, 2, seed=0) != corrupt(pixels, name, 2, seed=1)).any()
    }
    assert differs == {"gaussian_noise"}


def test_noise_has_the_deviation_of_the_paper() -> None:
    grey = np.full((1, 224, 224, 3), 0.5, np.float32)
    found = corrupt(grey, "gaussian_noise", 1, seed=0)
    assert found.std() == pytest.approx(0.08, rel=0.02)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur"])
@pytest.mark.parametrize("side", [56, 224])
def test_a_blur_spreads_a_point_over_the_same_share_of_a_picture_of_any_size(name: str, side: int) -> None:
    line = np.zeros((1, side, side, 3), np.float32)
    line[:, :, : side // 2] = 1
    found = corrupt(line, name, 5, seed=0)[0, side // 2, :, 0]
    width = np.sum((found > 0.1) & (found < 0.9)) / side
    assert width == pytest.approx({"gaussian_blur": 0.069, "defocus_blur": 0.062}[name], abs=0.02)
    assert np.isclose(found.mean(), 0.5, atol=0.01)


def test_brightness_raises_the_lightest_channel_and_keeps_the_hue() -> None:
    colour = np.tile(np.array([0.4, 0.2, 0.1], np.float32), (1, 8, 8, 1))
    found = corrupt(colour, "brightness", 2, seed=0)[0, 0, 0]
    assert found == pytest.approx([0.6, 0.3, 0.15], abs=1 / 255)
    black = np.zeros((1, 8, 8, 3), np.float32)
    assert corrupt(black, "brightness", 2, seed=0) == pytest.approx(0.2, abs=1 / 255)


def test_contrast_keeps_the_mean(pixels: np.ndarray) -> None:
    found = corrupt(pixels, "contrast", 3, seed=0)
    assert found.mean(axis=(1, 2)) == pytest.approx(pixels.mean(axis=(1, 2)), abs=2 / 255)
    assert found.std() < 0.35 * pixels.std() + 0.1


def test_what_is_no_corruption_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="corruption must be one of .*Did you mean 'contrast'"):
        corrupt(pixels, "contrst", 1, seed=0)
    with pytest.raises(InputError, match="severity must be a whole number from 1 to 5. Received: 6"):
        corrupt(pixels, "contrast", 6, seed=0)
    with pytest.raises(InputError, match="pixels must have the shape"):
        corrupt(pixels[0], "contrast", 1, seed=0)
