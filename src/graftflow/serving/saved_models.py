"""One version of a model in memory: a SavedModel in a session, as TensorFlow Serving runs it, warmed."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from graftflow.serving import examples, monitoring, tensor_protos
from graftflow.serving.json_inputs import Tensor
from graftflow.serving.status import Code, ServingError, invalid

log = logging.getLogger("graftflow.serving")
# It advises against the session of TensorFlow 1, which TensorFlow Serving runs graphs in.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
WARM_UP_LIMIT = 1000  # records, as in TensorFlow Serving
_MAX_SAVED_MODEL_BYTES = 2**31 - 1  # protobuf's own limit

# What a session puts around the message of the kernel that failed.
_PREAMBLE = re.compile(
    r"^Graph execution error:\s*(Detected at node.*?(?=Node: |\Z))?(Node: '[^']*'\n)?", re.DOTALL
)
_POSTSCRIPT = re.compile(
    r"\s*(\[\[\{\{(?:function_)?node .*|\[Op:[^\]]*\]\s*|Original stack trace for .*|Errors may have originated .*)$",
    re.DOTALL,
)
_FUNCTION = re.compile(r"^\{\{function_node [^}]*\}\}\s*")


@dataclass(frozen=True)
class Signature:
    """What a signature takes and gives: for every tensor its dtype, e.g. ``"float"``."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class LoadedVersion:
    """A SavedModel in memory, on threads and devices that it shares with the others.

    Args:
        number: its version.
        path: its folder, holding ``saved_model.pb``.

    Raises:
        ServingError: NOT_FOUND where there is no ``saved_model.pb``, else the code and message of
            what failed in loading it or in replaying its warm-up requests.
    """

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        started = time.perf_counter()
        try:
            self._load()
        except BaseException:
            monitoring.LOADS.labels(str(path.parent), "fail").inc()
            raise
        self._warm_up()
        monitoring.LOADS.labels(str(path.parent), "success").inc()
        monitoring.LOAD_LATENCY.labels(str(path.parent)).inc((time.perf_counter() - started) * 1e6)

    def _load(self) -> None:
        self.signature_defs = _signature_defs(self.path)
        graph = tf.Graph()
        options = tf.compat.v1.ConfigProto(allow_soft_placement=True)
        options.gpu_options.allow_growth = True
        self._session: Any = tf.compat.v1.Session(graph=graph, config=options)
        try:
            with graph.as_default():
                tf.compat.v1.saved_model.load(self._session, ["serve"], str(self.path))
            graph.finalize()
        except Exception as error:  # whatever a broken SavedModel makes TensorFlow raise
            self._session.close()
            raise as_serving_error(error) from error
        self.signatures = {
            name: Signature(_dtypes(definition.inputs), _dtypes(definition.outputs))
            for name, definition in self.signature_defs.items()
        }

    def signature(self, name: str) -> Signature:
        """Return a signature's inputs and outputs.

        Raises:
            ServingError: INVALID_ARGUMENT where the model has no such signature.
        """
        if name not in self.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        return self.signatures[name]

    def run(
        self,
        name: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Tensor]:
        """Run a signature. Safe to call from any thread.

        Args:
            name: a signature's name.
            inputs: all its inputs, by name; strings as numpy objects holding ``bytes``.
            outputs: names of those wanted, the others are not computed; ``None`` for all.
            timeout: seconds after which the work is given up.

        Returns:
            Its outputs by name, in the same form.

        Raises:
            ServingError: what the graph raised, with its own code; never UNKNOWN.
        """
        definition = self.signature_defs[name]
        wanted = definition.outputs if outputs is None else outputs
        fetches = {key: definition.outputs[key].name for key in wanted}
        feeds = {definition.inputs[key].name: value for key, value in inputs.items()}
        options = None
        if timeout is not None:
            options = tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(1e3 * timeout)))
        try:
            answers = self._session.run(fetches, feeds, options)
        except Exception as error:
            raise as_serving_error(error) from error
        # A scalar comes as numpy's, a string one as bytes.
        return {
            key: value if isinstance(value, np.ndarray) else _scalar(value) for key, value in answers.items()
        }

    def close(self) -> None:
        """Give up what runs, with CANCELLED; nothing runs afterwards."""
        self._session.close()

    def _warm_up(self) -> None:
        """Replay the requests that the model brings along: the first client waits for nothing."""
        path = self.path / WARM_UP_FILE
        if not path.is_file():
            return
        replayed = 0
        started = time.perf_counter()
        try:
            for record in tf.compat.v1.io.tf_record_iterator(str(path)):
                if replayed == WARM_UP_LIMIT:
                    raise invalid(f"Number of warmup records exceeds the maximum ({WARM_UP_LIMIT})")
                self._replay(prediction_log_pb2.PredictionLog.FromString(record))
                replayed += 1
        except Exception as error:
            cause = (
                invalid("not a PredictionLog") if isinstance(error, DecodeError) else as_serving_error(error)
            )
            monitoring.WARM_UP.labels(str(self.path), cause.code.name).observe(_micros(started))
            raise ServingError(
                cause.code, f"warm-up request {replayed + 1} failed: {cause.message}"
            ) from error
        monitoring.WARM_UP.labels(str(self.path), "OK").observe(_micros(started))
        log.info("version %d: replayed %d warm-up requests", self.number, replayed)

    def _replay(self, entry: Any) -> None:
        kind = entry.WhichOneof("log_type")
        if kind == "predict_log":
            request = entry.predict_log.request
            name = request.model_spec.signature_name or "serving_default"
            wanted = self.signature(name).inputs
            if request.inputs.keys() != wanted.keys():
                raise invalid(f"Inputs expected: {', '.join(wanted)}. Received: {', '.join(request.inputs)}")
            inputs = {
                key: tensor_protos.read(key, value, wanted[key], place)
                for place, (key, value) in enumerate(sorted(request.inputs.items()))
            }
            self.run(name, inputs, list(request.output_filter) or None)
        elif kind in ("classify_log", "regress_log"):
            request = getattr(entry, kind).request
            self._replay_examples(request.model_spec, request.input)
        elif kind == "multi_inference_log":
            request = entry.multi_inference_log.request
            for task in request.tasks:
                self._replay_examples(task.model_spec, request.input)
        else:
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")

    def _replay_examples(self, spec: Any, given: Any) -> None:
        name = spec.signature_name or "serving_default"
        key = next(iter(self.signature(name).inputs), "")
        self.run(name, {key: examples.serialized_examples(given)})


def as_serving_error(error: Exception) -> ServingError:
    """Return an exception of TensorFlow's as a code and a message without Python's surroundings."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        name = next((k for k, v in _CODES.items() if v == error.error_code), "INVALID_ARGUMENT")
        code = Code[name] if name != "UNKNOWN" else Code.INVALID_ARGUMENT
        return ServingError(code, _readable(error.message))
    if isinstance(error, UnicodeDecodeError):
        # The graph's message quotes bytes of the request, and fails to become an OpError.
        return invalid(_readable(bytes(error.object).decode("utf-8", "replace")))
    if isinstance(error, MemoryError):
        return ServingError(Code.RESOURCE_EXHAUSTED, "Out of memory")
    # Shapes and dtypes that do not fit a placeholder surface as these.
    return invalid(str(error) or type(error).__name__)


def _readable(message: str) -> str:
    """Return the kernel's own words of a session's message."""
    return _FUNCTION.sub("", _POSTSCRIPT.sub("", _PREAMBLE.sub("", message)).strip())


_CODES: dict[str, int] = {
    name: value
    for name, value in vars(tf.errors).items()
    if name in Code.__members__ and isinstance(value, int)
}


def _scalar(value: Any) -> Tensor:
    return np.array(value, np.object_) if isinstance(value, bytes) else np.asarray(value)


def _micros(since: float) -> float:
    return (time.perf_counter() - since) * 1e6


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
