"""Ideal images are what a classifier is sure of, drawn from noise by a seed."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from graftflow import attacks, backbones, ideal_images
from graftflow.errors import InputError
from graftflow.ideal_images import Artist, draw, draw_ideal, head_of, judge_of, write_animation
from tests.unit.small_classifier import SIDE, build_small_classifier, write_small_dataset, write_small_model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("small")
    return keras.models.load_model(
        write_small_model(root / "model", write_small_dataset(root)) / "model.keras"
    )


def test_the_same_seed_gives_the_same_pictures(classifier: Any) -> None:
    first, again, other = (
        draw_ideal(classifier, [0, 2], size=SIDE, steps=5, seed=seed)[1] for seed in (1, 1, 2)
    )
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)
    assert first.pixels.shape == (SIDE, SIDE, 3)
    assert first.pixels.dtype == np.float32
    assert first.pixels.min() == 0
    assert first.pixels.max() == 1


def test_a_picture_does_not_depend_on_the_others(classifier: Any) -> None:
    alone = draw_ideal(classifier, [2], size=SIDE, steps=3, seed=0)[0]
    together = draw_ideal(classifier, [0, 2], size=SIDE, steps=3, seed=0)[1]
    np.testing.assert_allclose(alone.pixels, together.pixels, atol=0.02)


def test_whatever_is_drawn_is_compiled_once(classifier: Any) -> None:
    artist = Artist(classifier, SIDE)
    for classes in ([0, 2], [1], [2, 1, 0]):
        drawn = artist.draw(classes, steps=3, seed=0)
        expected = draw_ideal(classifier, classes, size=SIDE, steps=3, seed=0)
        for (pixels, frames), one in zip(drawn, expected, strict=True):
            np.testing.assert_array_equal(pixels, one.pixels)
            assert frames == one.frames == []
    assert artist._slope.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("size", [15, SIDE, 40])
def test_a_drawing_of_any_size_is_what_the_class_looks_like(classifier: Any, size: int) -> None:
    drawing = draw_ideal(classifier, [2], size=size, steps=80, seed=0)[0]
    assert drawing.pixels.shape == (size, size, 3)
    # The data set's hues are 0, 1/3 and 2/3: the last class is of blue pictures, whatever it is called.
    assert drawing.pixels.mean(axis=(0, 1)).argmax() == 2
    assert drawing.probability > 0.8


def test_the_probability_is_that_of_the_picture_a_server_would_receive(classifier: Any) -> None:
    drawing = draw_ideal(classifier, [1], size=40, steps=20, seed=0)[0]
    received = tf.image.resize(np.round(255 * drawing.pixels), (SIDE, SIDE), antialias=True)[None] / 255
    assert drawing.probability == pytest.approx(float(classifier(received)[0, 1]), abs=1e-5)


def test_frames_lead_from_noise_to_the_picture(classifier: Any) -> None:
    drawing = draw_ideal(classifier, [0], size=SIDE, steps=60, seed=0, num_frames=6)[0]
    assert len(drawing.frames) == 6
    assert all(frame.dtype == np.uint8 and frame.shape == (SIDE, SIDE, 3) for frame in drawing.frames)
    apart = [float(np.abs(frame / 255 - drawing.pixels).mean()) for frame in drawing.frames]
    assert apart[-1] < 0.01 < apart[0]
    assert len(draw_ideal(classifier, [0], size=SIDE, steps=2, seed=0, num_frames=6)[0].frames) == 2


def test_statistics_of_photographs_are_natural_and_those_of_noise_are_not(shared_data: Path) -> None:
    network = backbones.build_imagenet_classifier("efficientnet_lite0")
    judge = judge_of(network)
    photographs = sorted((shared_data / "imagenet-sample").rglob("*.jp*g"), key=lambda path: path.name)[:4]
    pictures = [Image.open(path).convert("RGB").resize((224, 224)) for path in photographs]
    pixels = np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures])
    noise = np.random.default_rng(0).uniform(0, 1, pixels.shape).astype(np.float32)
    logits, natural = judge(tf.constant(pixels))
    assert float(tf.reduce_max(natural)) < float(tf.reduce_min(judge(tf.constant(noise))[1]))
    np.testing.assert_allclose(logits, attacks.logits_model(network)(pixels), atol=1e-3)


def test_the_parts_of_a_nested_classifier_answer_as_the_whole(classifier: Any) -> None:
    pixels = np.random.default_rng(0).uniform(0, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    features = classifier.get_layer("backbone")(classifier.get_layer("preprocessing")(pixels))
    np.testing.assert_allclose(
        tf.nn.softmax(head_of(classifier)(features)), classifier(pixels), rtol=1e-5, atol=1e-6
    )
    # It has no batch normalisation, so nothing is unnatural to it.
    assert not judge_of(classifier)(tf.constant(pixels))[1].numpy().any()


def test_efficientnet_lite_draws_a_siamese_cat_and_a_zebra_it_is_sure_of() -> None:
    classifier = backbones.build_imagenet_classifier("efficientnet_lite0")
    drawings = draw_ideal(classifier, [284, 340], size=224, steps=60, seed=0)
    assert min(drawing.probability for drawing in drawings) > 0.99


def test_one_class_is_drawn_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backbones, "build_imagenet_classifier", lambda name, *, weights: build_small_classifier(1000)
    )
    steps: list[int] = []
    pixels, probability, frames = draw("siamese_cat", size=20, steps=30, advance=lambda: steps.append(1))
    assert pixels.shape == (20, 20, 3)
    assert 0 <= probability <= 1
    assert 1 < len(frames) <= 24
    assert len(steps) == 30


def test_an_animation_plays_all_frames_and_rests_on_the_last(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(5)]
    write_animation(tmp_path / "large.webp", frames)
    write_animation(tmp_path / "small.webp", frames, most_bytes=20_000)
    with Image.open(tmp_path / "large.webp") as picture:
        assert picture.n_frames == 5
        assert picture.size == (192, 192)
        assert picture.info["loop"] == 0
        durations = []
        for frame in range(5):
            picture.seek(frame)
            picture.load()
            durations.append(picture.info["duration"])
    assert durations[-1] > max(durations[:-1])
    assert (tmp_path / "small.webp").stat().st_size < (tmp_path / "large.webp").stat().st_size


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"class_name": "zebr"}, "Near it: 'zebra'"),
        ({"steps": 0}, "steps must be at least 1. Received: 0"),
        ({"size": 7}, "size must lie in 8 … 1024 pixels. Received: 7"),
        ({"backbone": "resnet5"}, "Did you mean 'resnet50'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        ideal_images.draw(**{"class_name": "zebra", **settings})
