"""TensorFlow Serving's gRPC services on its own stubs, with the faults that a test asks for."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.any_pb2 import Any as AnyMessage
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from graftflow.serving.tensor_protos import write

CLASSES = (b"cat", b"dog")


class Double(
    prediction_service_pb2_grpc.PredictionServiceServicer,  # type: ignore[misc]
    model_service_pb2_grpc.ModelServiceServicer,  # type: ignore[misc]
):
    """A model of version 3, label ``stable``, that sees cats; pictures that are no JPEG fail their request.

    Attributes:
        faults: what the next calls of Predict end in: code, words and trailing metadata.
        signatures: the names of its signatures for ``image_bytes``; none: it describes nothing.
        in_content: whether numbers are sent in ``tensor_content``.
        requests: the requests of Predict.
        metadata: what came along with them.
        delay: seconds before an answer of Predict.
    """

    def __init__(self) -> None:
        self.faults: list[tuple[Any, str, tuple[tuple[str, str], ...]]] = []
        self.signatures = ["serving_default", "ranked"]
        self.in_content = False
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.delay = 0.0
        self.url = ""

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        end = time.monotonic() + self.delay
        while time.monotonic() < end and context.is_active():
            time.sleep(0.02)
        self._check(request.model_spec, context)
        if self.faults:
            code, words, trailing = self.faults.pop(0)
            context.set_trailing_metadata(trailing)
            context.abort(code, words)
        signature = request.model_spec.signature_name
        response = predict_pb2.PredictResponse()
        if signature == "echo":
            for name, proto in request.inputs.items():
                response.outputs[name].CopyFrom(self._tensor(tf.make_ndarray(proto)))
            return response
        if signature not in (self.signatures or ["ranked"]):
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.'
            )
        images = tf.make_ndarray(request.inputs["image_bytes"])
        if not all(image.startswith(b"\xff\xd8\xff") for image in images):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Unknown image file format.")
        scores = np.array([[0.75, 0.25]] * len(images), np.float32)
        if signature == "ranked":
            response.outputs["classes"].CopyFrom(self._tensor(np.array([CLASSES] * len(images), object)))
            response.outputs["scores"].CopyFrom(self._tensor(scores))
        else:
            response.outputs["probabilities"].CopyFrom(self._tensor(scores))
            response.outputs["label"].CopyFrom(self._tensor(np.array([b"cat"] * len(images), object)))
        return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(request.model_spec, context)
        if not self.signatures:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        described = get_model_metadata_pb2.SignatureDefMap()
        for signature in self.signatures:
            described.signature_def[signature].inputs["image_bytes"].dtype = tf.string.as_datatype_enum
        for name, dtype in {"numbers": tf.float32, "counts": tf.int32, "texts": tf.string}.items():
            described.signature_def["echo"].inputs[name].dtype = dtype.as_datatype_enum
        packed = AnyMessage()
        packed.Pack(described)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.metadata["signature_def"].CopyFrom(packed)
        return response

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(request.model_spec, context)
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state in ((3, "AVAILABLE"), (2, "END")):
            response.model_version_status.add(
                version=version, state=get_model_status_pb2.ModelVersionStatus.State.Value(state)
            )
        return response

    def _check(self, spec: Any, context: Any) -> None:
        choice = spec.WhichOneof("version_choice")
        if spec.name != "pets" or (choice == "version" and spec.version.value != 3):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        if choice == "version_label" and spec.version_label != "stable":
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Unrecognized servable version label: {spec.version_label}",
            )

    def _tensor(self, values: Any) -> Any:
        return tf.make_tensor_proto(values) if self.in_content else write(values)


@contextmanager
def grpc_double(credentials: Any = None) -> Iterator[Double]:
    """Serve on a free port of the loopback until the block ends."""
    double = Double()
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 64 * 2**20)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(double, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(double, server)
    if credentials is None:
        double.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        double.url = f"grpcs://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    try:
        yield double
    finally:
        server.stop(0).wait()
