"""A model file tells of the model alone, and Keras reads it as any other."""

import re
import zipfile
from pathlib import Path

import keras
import numpy as np

from graftflow import files, keras_files


def small_model() -> keras.Model:
    keras.utils.clear_session()
    policy = keras.DTypePolicy("float32")  # shared, so that Keras notes where it is in memory
    pixels = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(2, 3, kernel_initializer="ones", dtype=policy, name="first")(pixels)
    x = keras.layers.Conv2D(2, 1, kernel_initializer="ones", dtype=policy, name="second")(x)
    return keras.Model(pixels, x, name="small")


def test_the_same_model_gives_the_same_bytes_and_loads_as_it_was(tmp_path: Path) -> None:
    kept, first, second = [], tmp_path / "a.keras", tmp_path / "b" / "b.keras"
    second.parent.mkdir()
    for path in (first, second):
        kept.append(small_model())  # kept, so that the other one lies elsewhere in memory
        keras_files.save_model(kept[-1], path)
    assert files.sha256_file(first) == files.sha256_file(second)
    with zipfile.ZipFile(first) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        shared = set(re.findall(rb'"shared_object_id": (\d+)', file.read("config.json")))
    assert shared == {b"1"}
    pixels = np.arange(48, dtype=np.float32).reshape(1, 4, 4, 3)
    loaded = keras.models.load_model(first)
    np.testing.assert_array_equal(loaded(pixels), kept[0](pixels))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.keras", "b", "b.keras"]


def test_a_model_of_other_weights_gives_other_bytes(tmp_path: Path) -> None:
    model = small_model()
    keras_files.save_model(model, tmp_path / "a.keras")
    model.get_layer("first").bias.assign([0.0, 1.0])
    keras_files.save_model(model, tmp_path / "b.keras")
    assert files.sha256_file(tmp_path / "a.keras") != files.sha256_file(tmp_path / "b.keras")
