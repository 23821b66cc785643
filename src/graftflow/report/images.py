"""Pictures inside the page, encoded again until all of them together fit."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from graftflow.encodings import upright
from graftflow.errors import InputError

# Share of the wanted size and WebP quality, tried in turn until everything fits.
LEVELS = ((1.0, 82), (1.0, 65), (0.8, 60), (0.6, 55), (0.4, 45), (0.25, 35), (0.12, 20))


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its file and the most that its width and height may be, in pixels."""

    artifact: str
    file: Path
    side: int


@dataclass(frozen=True)
class Encoded:
    """A picture as the page carries it; width and height are those at full quality."""

    uri: str
    width: int
    height: int


@dataclass
class Album:
    """The pictures of a page, in the order in which they were added."""

    pictures: list[Picture] = field(default_factory=list)

    def add(self, artifact: str, file: Path, side: int) -> int:
        """Remember a picture and return its number."""
        self.pictures.append(Picture(artifact, file, side))
        return len(self.pictures) - 1


def encode_within(pictures: Sequence[Picture], budget: int) -> list[Encoded]:
    """Encode pictures as WebP data URIs that have at most ``budget`` characters together.

    Quality and size are lowered for all alike; the lowest of ``LEVELS`` is taken even where it does
    not fit.

    Args:
        pictures: what to encode.
        budget: characters for all URIs together.

    Raises:
        InputError: a file is missing or no picture.
    """
    opened = [_open(picture) for picture in pictures]
    encoded: list[Encoded] = []
    for share, quality in LEVELS:
        encoded = [_encode(image, share, quality) for image in opened]
        if sum(len(one.uri) for one in encoded) <= budget:
            break
    return encoded


def _open(picture: Picture) -> Image.Image:
    try:
        with Image.open(picture.file) as image:
            image.draft("RGB", (picture.side, picture.side))
            opened = upright(image).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(
            f"The '{picture.artifact}' artifact must hold the picture '{picture.file.name}'. "
            f"Received: '{picture.file}' ({type(error).__name__})."
        ) from error
    opened.thumbnail((picture.side, picture.side))
    return opened


def _encode(image: Image.Image, share: float, quality: int) -> Encoded:
    width, height = (max(1, round(side * share)) for side in image.size)
    smaller = image if share == 1 else image.resize((width, height))
    buffer = io.BytesIO()
    smaller.save(buffer, "WEBP", quality=quality, method=2)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Encoded(f"data:image/webp;base64,{data}", *image.size)
