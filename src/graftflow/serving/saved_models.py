"""One version of a model in memory: loaded from its SavedModel, warmed, and asked by signature."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from graftflow.serving.json_inputs import Tensor
from graftflow.serving.status import Code, ServingError, invalid

log = logging.getLogger("graftflow.serving")

WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
WARM_UP_LIMIT = 1000  # records, as in TensorFlow Serving
_MAX_SAVED_MODEL_BYTES = 2**31 - 1  # protobuf's own limit

# What eager TensorFlow puts before the message of the kernel that failed.
_PREAMBLE = re.compile(r"^Graph execution error:.*?<stack traces unavailable>\n", re.DOTALL)
_OPERATION = re.compile(r"\s*\[Op:[^\]]*\]\s*$")


@dataclass(frozen=True)
class Signature:
    """What a signature takes and gives: for every tensor its dtype, e.g. ``"float"``."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class LoadedVersion:
    """A SavedModel in memory.

    Args:
        number: its version.
        path: its folder, holding ``saved_model.pb``.

    Raises:
        ServingError: NOT_FOUND where there is no ``saved_model.pb``, else the code and message of
            what failed in loading it or in replaying its warm-up requests.
    """

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        self.signature_defs = _signature_defs(path)
        try:
            self._model: Any = tf.saved_model.load(str(path))
        except Exception as error:  # whatever a broken SavedModel makes TensorFlow raise
            raise as_serving_error(error) from error
        self.signatures = {
            name: Signature(_dtypes(definition.inputs), _dtypes(definition.outputs))
            for name, definition in self.signature_defs.items()
            if name in self._model.signatures
        }
        self._warm_up()

    def signature(self, name: str) -> Signature:
        """Return a signature's inputs and outputs.

        Raises:
            ServingError: INVALID_ARGUMENT where the model has no such signature.
        """
        if name not in self.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        return self.signatures[name]

    def predict(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a signature.

        Args:
            name: a signature's name.
            inputs: all its inputs, by name; strings as numpy objects holding ``bytes``.

        Returns:
            Its outputs by name, in the same form.

        Raises:
            ServingError: what the graph raised, with its own code; never UNKNOWN.
        """
        wanted = self.signature(name).inputs
        missing, extra = (
            sorted(wanted.keys() - inputs.keys()),
            sorted(inputs.keys() - wanted.keys()),
        )
        if missing or extra:
            raise invalid(
                f"input size does not match signature: {len(inputs)}!={len(wanted)} "
                f"len({{{','.join(sorted(inputs))}}}) != len({{{','.join(sorted(wanted))}}}). "
                f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
            )
        try:
            tensors = {
                key: tf.constant(value, tf.dtypes.as_dtype(types_pb2.DataType.Value(_enum(wanted[key]))))
                for key, value in inputs.items()
            }
            outputs = self._model.signatures[name](**tensors)
            return {key: value.numpy() for key, value in outputs.items()}
        except Exception as error:
            raise as_serving_error(error) from error

    def _warm_up(self) -> None:
        """Replay the requests that the model brings along: the first client waits for nothing."""
        path = self.path / WARM_UP_FILE
        if not path.is_file():
            return
        replayed = 0
        try:
            for record in tf.data.TFRecordDataset(str(path)).take(WARM_UP_LIMIT).as_numpy_iterator():
                entry = prediction_log_pb2.PredictionLog.FromString(record)
                if not entry.HasField("predict_log"):
                    continue  # Classify and Regress are not served here
                request = entry.predict_log.request
                self.predict(
                    request.model_spec.signature_name or "serving_default",
                    {key: tf.make_ndarray(value) for key, value in request.inputs.items()},
                )
                replayed += 1
        except Exception as error:
            cause = as_serving_error(error)
            raise ServingError(
                cause.code, f"warm-up request {replayed + 1} failed: {cause.message}"
            ) from error
        log.info("version %d: replayed %d warm-up requests", self.number, replayed)


def as_serving_error(error: Exception) -> ServingError:
    """Return an exception of TensorFlow's as a code and a message without Python's surroundings."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        message = _OPERATION.sub("", _PREAMBLE.sub("", error.message))
        name = next((k for k, v in _CODES.items() if v == error.error_code), "INVALID_ARGUMENT")
        code = Code[name] if name != "UNKNOWN" else Code.INVALID_ARGUMENT
        return ServingError(code, message)
    if isinstance(error, MemoryError):
        return ServingError(Code.RESOURCE_EXHAUSTED, "Out of memory")
    # Shapes and dtypes that do not fit a signature surface as these.
    return invalid(_OPERATION.sub("", str(error)) or type(error).__name__)


_CODES: dict[str, int] = {
    name: value
    for name, value in vars(tf.errors).items()
    if name in Code.__members__ and isinstance(value, int)
}


def _signature_defs(path: Path) -> dict[str, Any]:
    """Read the signatures as written, for the metadata; the private ``__…`` ones left out."""
    file = path / "saved_model.pb"
    if not file.is_file():
        raise ServingError(
            Code.NOT_FOUND,
            f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}",
        )
    saved_model = saved_model_pb2.SavedModel()
    try:
        if file.stat().st_size > _MAX_SAVED_MODEL_BYTES:
            raise ValueError("larger than 2 GiB")
        saved_model.ParseFromString(file.read_bytes())
    except Exception as error:
        raise ServingError(Code.DATA_LOSS, f"Can't parse {file} as binary proto") from error
    for graph in saved_model.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            return {k: v for k, v in graph.signature_def.items() if not k.startswith("__")}
    raise ServingError(
        Code.NOT_FOUND,
        "Could not find meta graph def matching supplied tags: { serve }. "
        "To inspect available tag-sets in the SavedModel, please use the SavedModel CLI: "
        "`saved_model_cli`",
    )


def _dtypes(tensors: Mapping[str, Any]) -> dict[str, str]:
    return {k: types_pb2.DataType.Name(v.dtype).removeprefix("DT_").lower() for k, v in tensors.items()}


def _enum(name: str) -> str:
    return f"DT_{name.upper()}"
