"""Data sets of TensorFlow Datasets that are prepared already: what they yield, and what is said when they cannot."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftflow.embedded import encode_png
from graftflow.errors import InputError
from graftflow.pictures import Unusable
from graftflow.sources import open_source

# tfds asks protobuf for something that protobuf is about to drop.
tfds_warns = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated")


def contents(source: str, scratch: Path, **settings: Any) -> list[tuple[str, str]]:
    with open_source(source, scratch=scratch, **settings) as opened:
        found = [(picture.path, picture.label) for picture in opened.pictures]
        assert opened.total == len(found)
    return found


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[[type], Path]:
    def prepare(builder: type) -> Path:
        made = builder(data_dir=str(tmp_path / "tfds"))
        made.download_and_prepare()
        return tmp_path / "tfds"

    return prepare


@tfds_warns
def test_tfds_yields_the_encoded_bytes_of_all_splits(tmp_path: Path, prepare: Callable[[type], Path]) -> None:
    import tensorflow_datasets as tfds

    class GraftflowShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["square", "circle"]),
                "extra": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples(8), "test": self._generate_examples(5)}

        def _generate_examples(self, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
            for i in range(count):
                label = -1 if i == 4 else i % 2
                yield i, {"image": shape(i), "label": label, "extra": "x"}

    data_dir = prepare(GraftflowShapes)
    with open_source("tfds:graftflow_shapes", scratch=tmp_path, tfds_data_dir=data_dir) as opened:
        pictures = list(opened.pictures)
    assert opened.total == len(pictures) == 13
    assert "test, train" in opened.note
    labelled = [picture for picture in pictures if picture.label]
    assert {picture.label for picture in labelled} == {"square", "circle"}
    assert {picture.path.split("/")[1][:5] for picture in pictures} == {"train", "test-"}
    stored = {picture.read() for picture in labelled}
    assert stored <= {shape(i).getvalue() for i in range(8)}
    unlabelled = [picture for picture in pictures if not picture.label]
    assert len(unlabelled) == 2
    with pytest.raises(Unusable, match="has no label"):
        unlabelled[0].read()
    again = contents("tfds:graftflow_shapes", tmp_path, tfds_data_dir=data_dir)
    assert again == [(picture.path, picture.label) for picture in pictures]
    file = next(data_dir.rglob("*train.tfrecord*"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"'graftflow_shapes' in '.*' cannot be read: ") as caught:
        contents("tfds:graftflow_shapes", tmp_path, tfds_data_dir=data_dir)
    assert "\n" not in str(caught.value)


def shape(index: int) -> io.BytesIO:
    return io.BytesIO(encode_png(np.full((4, 5, 3), index * 9, np.uint8)))


@tfds_warns
def test_tfds_without_image_and_label_is_told(tmp_path: Path, prepare: Callable[[type], Path]) -> None:
    import tensorflow_datasets as tfds

    class GraftflowWords(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "word": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager: Any) -> Any:
            return {"train": iter([(0, {"image": shape(1), "word": "x"})])}

        def _generate_examples(self) -> None:
            raise NotImplementedError

    data_dir = prepare(GraftflowWords)
    with pytest.raises(InputError, match="no such 'label'; its features: image, word"):
        contents("tfds:graftflow_words", tmp_path, tfds_data_dir=data_dir)


def test_tfds_with_an_unknown_version_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Received: 'mnist:9\.9\.9'") as caught:
        contents("tfds:mnist:9.9.9", tmp_path, tfds_data_dir=tmp_path)
    assert "\n" not in str(caught.value)
