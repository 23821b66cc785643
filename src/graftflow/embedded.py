"""Real pictures that come with the Python packages, so that a first run needs no network."""

import io
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graftflow.errors import InputError
from graftflow.pictures import Picture, Source

TILE = 64
MAXIMUM_TILES = 64
# Grey levels; flatter tiles (sky, the black around the retina) show nothing of their class.
MINIMUM_CONTRAST = 3.0

CLOSEUPS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat_fur": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "deep_field": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
CLOSEUPS_NOTE = (
    "Closeups are tiles of single photographs from scikit-image: tiles of one photograph stand in "
    "several splits, so the accuracy is optimistic."
)
DIGITS_NOTE = "Digits are scans of 8 by 8 pixels from scikit-learn: unlike what backbones were trained on."


def open_closeups() -> Source:
    """Open ``closeups``: at most 64 tiles of 64 by 64 pixels from each of 14 photographs, as PNG.

    Tiles do not overlap. Of those with contrast (standard deviation of grey of at least 3 of 255
    levels), 64 are taken at even distances in reading order, so that nothing depends on a seed.

    Raises:
        InputError: the installed scikit-image has not got the photographs.
    """
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("The source 'closeups' needs the package scikit-image, which is not installed.")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    tiles: list[Picture] = []
    for label, name in CLOSEUPS.items():
        if not (folder / name).is_file():
            raise InputError(
                f"The source 'closeups' needs the photograph '{name}' of scikit-image. "
                f"There is none in '{folder}'."
            )
        tiles += _tiles(label, folder / name)
    return Source(iter(tiles), len(tiles), CLOSEUPS_NOTE)


def open_digits() -> Source:
    """Open ``digits``: the 1,797 scans of scikit-learn, 8 by 8 pixels, as greyscale PNG."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()

    def pictures() -> Iterator[Picture]:
        for i, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
            pixels = np.round(image * (255 / 16)).astype(np.uint8)
            yield Picture(f"{target}/{i:04d}.png", str(target), partial(encode_png, pixels))

    return Source(pictures(), len(digits.target), DIGITS_NOTE)


def encode_png(pixels: Any) -> bytes:
    """Encode ``uint8 (height, width)`` or ``uint8 (height, width, 3)`` as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _tiles(label: str, file: Path) -> list[Picture]:
    with Image.open(file) as image:
        pixels = np.asarray(image)
        grey = np.asarray(image.convert("L"), np.float64)
    corners = [
        (top, left)
        for top in range(0, grey.shape[0] - TILE + 1, TILE)
        for left in range(0, grey.shape[1] - TILE + 1, TILE)
        if grey[top : top + TILE, left : left + TILE].std() >= MINIMUM_CONTRAST
    ]
    count = min(len(corners), MAXIMUM_TILES)
    chosen = [corners[i * len(corners) // count] for i in range(count)]
    return [
        Picture(
            f"{label}/row{top // TILE:02d}_column{left // TILE:02d}.png",
            label,
            # A copy, because a view would keep the whole photograph in memory.
            partial(encode_png, pixels[top : top + TILE, left : left + TILE].copy()),
        )
        for top, left in chosen
    ]
