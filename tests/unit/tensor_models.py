"""A SavedModel whose signatures show what a server does: dtypes, batches, errors, slow work, versions."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

# One input and one output of the signature ``every`` each; all of shape (n,).
NUMBERS = {
    "bool": [True, False, True],
    "int8": [-128, 0, 127],
    "int16": [-32768, 0, 32767],
    "int32": [-(2**31), 0, 2**31 - 1],
    "int64": [-(2**63), 0, 2**63 - 1],
    "uint8": [0, 1, 255],
    "uint16": [0, 1, 65535],
    "uint32": [0, 1, 2**32 - 1],
    "uint64": [0, 1, 2**64 - 1],
    "float16": [-1.5, float("nan"), 65504.0],
    "bfloat16": [-1.5, float("-inf"), 3.0],
    "float32": [0.1, float("nan"), float("inf")],
    "float64": [0.1, -0.0, 1e308],
    "complex64": [1 + 2j, -0.5j, 0j],
    "complex128": [0.1 + 0.2j, -1e300j, 0j],
}
TEXTS = [b"", "drei ✓".encode(), b"\xff\x00raw"]
RECORDS = [{"x": 2.0}, {}, {"x": -3.5}]  # of examples, for classify and regress


def every_input() -> dict[str, Any]:
    """The inputs of the signature ``every``: a row of numbers of each dtype, and of bytes."""
    import tensorflow as tf

    rows: dict[str, Any] = {
        name: np.array(values, tf.dtypes.as_dtype(name).as_numpy_dtype) for name, values in NUMBERS.items()
    }
    return {**rows, "string": np.array(TEXTS, np.object_)}


def save_versions(folder: Path) -> Path:
    """Write versions 1 and 2 under a folder, unless they are there; their factors are 1 and 2."""
    if not folder.is_dir():
        written = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(written, ignore_errors=True)
        _save(written)
        written.rename(folder)
    return folder


def _save(folder: Path) -> None:
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self) -> None:
            self.factor = tf.Variable(0.0)

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
        def scale(self, x: Any) -> dict[str, Any]:
            """``y`` is x times the version; ``total`` its sum; ``size`` how many rows ran together."""
            size = tf.shape(x)[0]
            return {
                "y": self.factor * x,
                "total": tf.reduce_sum(self.factor * x, 1),
                "size": tf.fill([size], size),
            }

        @tf.function
        def every(self, **inputs: Any) -> dict[str, Any]:
            return {f"{name}_out": tf.identity(tensor) for name, tensor in inputs.items()}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
        def spin(self, turns: Any) -> dict[str, Any]:
            """Count to the largest of ``turns``: some hundred thousand a second."""
            most = tf.reduce_max(turns)
            count = tf.while_loop(lambda i: i < most, lambda i: (i + 1,), (tf.constant(0, tf.int64),))[0]
            return {
                "count": tf.fill(tf.shape(turns), count),
                "size": tf.ones_like(turns) * tf.size(turns, tf.int64),
            }

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int32)])
        def divide(self, a: Any, b: Any) -> dict[str, Any]:
            return {"quotient": a // b, "size": tf.fill(tf.shape(a), tf.size(a))}

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
        def widths(self, row: Any) -> dict[str, Any]:
            """What a row holds and how wide it came."""
            size, width = tf.shape(row)[0], tf.shape(row)[1]
            return {
                "sum": tf.reduce_sum(row, 1),
                "width": tf.fill([size], width),
                "last": row[:, -1],
                "size": tf.fill([size], size),
            }

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def decode(self, image: Any) -> dict[str, Any]:
            def mean(content: Any) -> Any:
                pixels = tf.io.decode_image(content, channels=3, expand_animations=False)
                return tf.reduce_mean(tf.cast(pixels, tf.float32))

            means = tf.map_fn(mean, image, fn_output_signature=tf.TensorSpec((), tf.float32))
            return {"mean": means, "size": tf.fill(tf.shape(image), tf.size(image)), "image_bytes": image}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def scalar(self, x: Any) -> dict[str, Any]:
            return {"sum": tf.reduce_sum(x)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def classify(self, inputs: Any) -> dict[str, Any]:
            x = self.factor * _feature(inputs)
            classes = tf.tile(tf.constant([["no", "ja ✓"]]), [tf.shape(x)[0], 1])
            return {"classes": classes, "scores": tf.concat([1.0 - x, x], 1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def regress(self, inputs: Any) -> dict[str, Any]:
            return {"outputs": self.factor * _feature(inputs)}

    module = Module()
    specs = {name: tf.TensorSpec([None], name, name) for name in (*NUMBERS, "string")}
    signatures = {"serving_default": module.scale, "every": module.every.get_concrete_function(**specs)}
    for name in ("spin", "divide", "widths", "decode", "scalar", "classify", "regress"):
        signatures[name] = getattr(module, name)
    for version in (1, 2):
        module.factor.assign(float(version))
        tf.saved_model.save(module, str(folder / str(version)), signatures=signatures)


def _feature(serialized: Any) -> Any:
    """The float feature ``x`` of every example, 0 where there is none: float32 of shape (n, 1)."""
    import tensorflow as tf

    default = np.zeros(1, np.float32)
    return tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32, default)})["x"]


def install(version: Path, store: Path, number: int) -> None:
    """Publish a version under a base path as a deployment does: written aside, then renamed."""
    store.mkdir(parents=True, exist_ok=True)
    aside = store.parent / f"{store.name}.{number}.tmp"
    shutil.copytree(version, aside)
    aside.rename(store / str(number))
