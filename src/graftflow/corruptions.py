"""Common corruptions at five severities: what befalls pictures without any ill will.

Parameters are those of ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", appendix A and their code), made for pictures of 224 pixels. Lengths, which are the
radii of the blurs, are scaled with the side of the picture; noise, brightness, contrast and JPEG quality are not.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from graftflow.errors import InputError, unknown_name

SEVERITIES = (1, 2, 3, 4, 5)
SOURCE = "Hendrycks and Dietterich 2019"
_SIDE = 224  # of the pictures that the parameters were made for

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        title: as shown.
        parameter: what ``values`` are.
        values: one a severity, for pictures of 224 pixels.
        is_length: whether the values are pixels and grow with the side of the picture.
        apply: from one picture ``float32 (s, s, 3)`` in [0, 1], a value and a generator to the corrupted picture.
    """

    title: str
    parameter: str
    values: tuple[float, float, float, float, float]
    is_length: bool
    apply: Callable[[Array, float, np.random.Generator], Any]


def corrupt(pixels: Array, name: str, severity: int, *, seed: int, first: int = 0) -> Array:
    """Corrupt pictures, each for itself, and round them to 8 bits, as a server would receive them.

    Args:
        pixels: ``float32 (n, s, s, 3)`` in [0, 1].
        name: one of :data:`CORRUPTIONS`.
        severity: 1 (weak) to 5 (strong).
        seed: fixes the noise; severities share it, so that a stronger one is the same noise, larger.
        first: number of the first picture among all: with the seed it fixes a picture's noise, whatever its batch.

    Returns:
        ``float32 (n, s, s, 3)``, whole multiples of 1/255 in [0, 1].

    Raises:
        InputError: there is no such corruption or severity, or the pixels have another shape.
    """
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, tuple(CORRUPTIONS))
    if severity not in SEVERITIES:
        raise InputError(f"severity must be a whole number from 1 to 5. Received: {severity}.")
    if pixels.ndim != 4 or pixels.shape[3] != 3:
        raise InputError(f"pixels must have the shape (n, s, s, 3). Received: {pixels.shape}.")
    kind = CORRUPTIONS[name]
    value = kind.values[severity - 1] * (pixels.shape[1] / _SIDE if kind.is_length else 1)
    corrupted = np.empty(pixels.shape, np.float32)
    for index, picture in enumerate(pixels):
        corrupted[index] = kind.apply(picture, value, np.random.default_rng((seed, first + index)))
    levels = np.round(np.clip(corrupted, 0, 1) * np.float32(255))
    return np.asarray(levels / np.float32(255), np.float32)


def _gaussian_noise(x: Array, deviation: float, generator: np.random.Generator) -> Any:
    return x + deviation * generator.standard_normal(x.shape)


def _gaussian_blur(x: Array, deviation: float, _: np.random.Generator) -> Any:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (deviation, deviation, 0), mode="nearest")


def _defocus_blur(x: Array, radius: float, _: np.random.Generator) -> Any:
    """Convolve with a disk, its rim smooth, as light from a point spreads behind a lens out of focus."""
    from scipy.signal import fftconvolve

    reach = int(np.ceil(radius)) + 1
    offsets = np.arange(-reach, reach + 1)
    distance = np.hypot(offsets[:, None], offsets[None, :])
    disk = np.clip(radius + 0.5 - distance, 0, 1)[..., None].astype(np.float32)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    return fftconvolve(padded, disk / disk.sum(), mode="valid", axes=(0, 1))


def _jpeg(x: Array, quality: float, _: np.random.Generator) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(np.round(x * 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(quality))
    with Image.open(buffer) as image:
        return np.asarray(image, np.float32) / 255


def _brightness(x: Array, more: float, _: np.random.Generator) -> Any:
    """Raise V of HSV; hue and saturation stay, so all channels are multiplied alike."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + more, 1)
    return np.where(value > 0, x * raised / np.maximum(value, 1e-6), raised)


def _contrast(x: Array, share: float, _: np.random.Generator) -> Any:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * share + mean


CORRUPTIONS = {
    "gaussian_noise": Corruption(
        "Gaussian noise", "standard deviation", (0.08, 0.12, 0.18, 0.26, 0.38), False, _gaussian_noise
    ),
    "gaussian_blur": Corruption("Gaussian blur", "σ in pixels", (1, 2, 3, 4, 6), True, _gaussian_blur),
    "defocus_blur": Corruption("Defocus", "radius in pixels", (3, 4, 6, 8, 10), True, _defocus_blur),
    "jpeg": Corruption("JPEG", "quality", (25, 18, 15, 10, 7), False, _jpeg),
    "brightness": Corruption(
        "Brightness", "added to V of HSV", (0.1, 0.2, 0.3, 0.4, 0.5), False, _brightness
    ),
    "contrast": Corruption("Contrast", "share that is left", (0.4, 0.3, 0.2, 0.1, 0.05), False, _contrast),
}
