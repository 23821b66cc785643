"""The classifier as a SavedModel that TensorFlow Serving loads as it is: bytes in, labels out."""

import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import fingerprint_pb2

from graftflow import datasets, files
from graftflow.errors import InputError
from graftflow.lineages import Origin, write_lineage
from graftflow.preprocessing import decode_batch
from graftflow.training import load_classifier

# The exported graph must answer as the Keras model does, up to the order of float32 sums.
TOLERANCE = 1e-5


class ServedClassifier(tf.Module):  # type: ignore[misc]
    """A classifier with its decoding, its class names and TensorFlow Serving's signatures.

    Args:
        model: Keras model from pixels ``float32 (n, s, s, 3)`` in [0, 1] to probabilities ``(n, k)``.
        classes: the ``k`` class names.
        classes_file: text file with one class a line, carried along as an asset.
    """

    def __init__(self, model: Any, classes: list[str], classes_file: Path) -> None:
        super().__init__()
        # TensorFlow's own variables: where Keras' wrappers are tracked instead, the checkpoint holds copies that
        # the graph does not read, and TensorFlow Serving, which runs the graph in a session, finds none.
        self.weights = [variable.value for variable in model.weights]
        self.input_size = int(model.input_shape[1])
        self.classes = tf.constant(classes)
        self.classes_asset = tf.saved_model.Asset(str(classes_file))
        pixels = tf.TensorSpec((None, self.input_size, self.input_size, 3), tf.float32, "pixels")
        # Traced once; all three signatures call it.
        self.forward = tf.function(lambda x: model(x, training=False), input_signature=[pixels])
        image_bytes = tf.TensorSpec((None,), tf.string, "image_bytes")
        self.functions = {
            "serving_default": tf.function(self.classify_bytes).get_concrete_function(image_bytes),
            "pixels": tf.function(self.classify_pixels).get_concrete_function(pixels),
            "ranked": tf.function(self.rank_bytes).get_concrete_function(image_bytes),
        }

    def classify_pixels(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Pixels ``float32 (n, s, s, 3)`` in [0, 1] → probabilities ``(n, k)``, label and class index ``(n,)``."""
        probabilities = self.forward(pixels)
        index = tf.argmax(probabilities, axis=-1)
        return {
            "probabilities": probabilities,
            "label": tf.gather(self.classes, index),
            "class_index": index,
        }

    def classify_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """JPEG or PNG bytes ``string (n,)`` → as :meth:`classify_pixels`."""
        return self.classify_pixels(decode_batch(image_bytes, self.input_size))

    def rank_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """JPEG or PNG bytes ``string (n,)`` → class names and their probabilities ``(n, k)``, best first."""
        probabilities = self.classify_bytes(image_bytes)["probabilities"]
        order = tf.argsort(probabilities, axis=-1, direction="DESCENDING", stable=True)
        return {
            "classes": tf.gather(self.classes, order),
            "scores": tf.gather(probabilities, order, batch_dims=1),
        }


def check_version(version: int) -> None:
    """Raise InputError unless ``version`` is a version number of TensorFlow Serving (0 asks for a new one)."""
    if not 0 <= version < 2**63:
        raise InputError(
            f"version must be a whole number from 0 (the time of export) to 2^63 - 1. Received: {version}"
        )


def write_saved_model(
    destination: str | Path,
    *,
    model_path: str | Path,
    dataset_path: str | Path,
    version: int = 0,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Write the ``saved_model`` artifact into an existing folder, reload it and compare it with the original.

    Args:
        destination: an existing folder.
        model_path: a ``model`` artifact.
        dataset_path: the ``dataset`` artifact, whose first validation pictures are the warm-up requests.
        version: number of the version folder; 0 takes the seconds since 1970.
        origin: of the export, for its lineage; ``None`` where nothing is known of it.

    Returns:
        What stands in ``export.json``.

    Raises:
        InputError: for a negative version, or where the reloaded model answers differently.
    """
    check_version(version)
    version = version or int(time.time())
    source = files.read_json(Path(model_path) / "model.json")
    model = load_classifier(model_path)
    pictures = [record["image"].numpy() for record in datasets.read_split(dataset_path, "validation").take(4)]
    folder = Path(destination) / str(version)
    classes_file = Path(destination) / "classes.txt"
    classes_file.write_text("".join(f"{name}\n" for name in source["classes"]), encoding="utf-8")
    served = ServedClassifier(model, source["classes"], classes_file)
    tf.saved_model.save(served, str(folder), signatures=served.functions)
    classes_file.unlink()
    _name_by_content(folder)
    _write_warmup(folder, pictures[0])
    write_lineage(
        folder,
        origin=origin or Origin(),
        version=version,
        model_path=model_path,
        dataset_path=dataset_path,
    )
    _compare(folder, model, pictures)
    summary = {
        "version": version,
        "classes": source["classes"],
        "sha256": files.sha256_directory(folder),
        "backbone": source["backbone"],
        "input_size": served.input_size,
        "temperature": source.get("temperature", 1.0),
    }
    files.write_json(Path(destination) / "export.json", summary)
    return summary


def _name_by_content(folder: Path) -> None:
    """Give a SavedModel a UUID of its content: TensorFlow draws one by chance, and the same export would differ."""
    file = folder / "fingerprint.pb"
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(file.read_bytes())
    fingerprint.uuid = ""
    content = fingerprint.SerializeToString(deterministic=True)
    fingerprint.uuid = str(uuid.uuid5(uuid.NAMESPACE_OID, content.hex()).int)
    file.write_bytes(fingerprint.SerializeToString(deterministic=True))


def _write_warmup(folder: Path, picture: bytes) -> None:
    """Write requests that a server replays before it takes traffic (TensorFlow Serving, "SavedModel Warmup")."""
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    extra = folder / "assets.extra"
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for signature in ("serving_default", "ranked"):
            for batch in (1, 8):
                request = predict_pb2.PredictRequest(
                    model_spec=model_pb2.ModelSpec(signature_name=signature),
                    inputs={"image_bytes": tf.make_tensor_proto([picture] * batch)},
                )
                log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def load_signatures(folder: str | Path) -> Any:
    """Load a version folder; returns its signatures by name. Each takes keyword tensors and returns a dictionary.

    The returned mapping keeps the loaded model alive.
    """
    loaded = tf.saved_model.load(str(folder))
    return _Signatures(loaded)


class _Signatures:
    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    def __getitem__(self, name: str) -> Any:
        return self._loaded.signatures[name]


def version_folder(saved_model_path: str | Path) -> Path:
    """Return the version folder of a ``saved_model`` artifact."""
    export = files.read_json(Path(saved_model_path) / "export.json")
    return Path(saved_model_path) / str(int(export["version"]))


def _compare(folder: Path, model: Any, pictures: list[bytes]) -> None:
    signatures = load_signatures(folder)
    size = int(model.input_shape[1])
    pixels = decode_batch(tf.constant(pictures), size)
    expected = model(pixels, training=False).numpy()
    answers = {
        "pixels": signatures["pixels"](pixels=pixels),
        "serving_default": signatures["serving_default"](image_bytes=tf.constant(pictures)),
    }
    for name, answer in answers.items():
        difference = float(np.abs(answer["probabilities"].numpy() - expected).max())
        if not difference <= TOLERANCE:
            raise InputError(
                f"The exported model must answer as the original within {TOLERANCE}. "
                f"Received: a difference of {difference:.3g} from signature '{name}'"
            )
