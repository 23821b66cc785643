"""Requests to a server's gRPC services, as a client of TensorFlow Serving makes them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

SECONDS = 20  # enough for any answer, so that no test hangs
TYPED_FIELDS = {
    "bool": "bool_val", "int8": "int_val", "int16": "int_val", "int32": "int_val", "int64": "int64_val",
    "uint8": "int_val", "uint16": "int_val", "uint32": "uint32_val", "uint64": "uint64_val",
    "float16": "half_val", "bfloat16": "half_val", "float32": "float_val", "float64": "double_val",
    "complex64": "scomplex_val", "complex128": "dcomplex_val", "string": "string_val",
}  # fmt: skip


class Stubs:
    """The stubs of a server's services over one channel."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)

    def predict(
        self,
        inputs: Mapping[str, Any],
        signature: str = "",
        *outputs: str,
        timeout: float = SECONDS,
        **spec: Any,
    ) -> dict[str, Any]:
        """Predict with numpy arrays (or ready ``TensorProto``), and return numpy arrays."""
        import tensorflow as tf

        request = predict_request(inputs, signature, *outputs, **spec)
        answer = self.prediction.Predict(request, timeout=timeout)
        return {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}

    def status(self, **spec: Any) -> list[tuple[int, str, int, str]]:
        """Version, state, code and message of every version."""
        request = get_model_status_pb2.GetModelStatusRequest()
        fill_spec(request.model_spec, **spec)
        name = get_model_status_pb2.ModelVersionStatus.State.Name
        return [
            (s.version, name(s.state), s.status.error_code, s.status.error_message)
            for s in self.models.GetModelStatus(request, timeout=SECONDS).model_version_status
        ]

    def metadata(self, *fields: str, **spec: Any) -> Any:
        """A ``GetModelMetadataResponse``."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        fill_spec(request.model_spec, **spec)
        return self.prediction.GetModelMetadata(request, timeout=SECONDS)

    def reload(self, text: str, timeout: float = 60) -> None:
        """Ask for the models that a text lists."""
        from google.protobuf import text_format

        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(text, request.config)
        self.models.HandleReloadConfigRequest(request, timeout=timeout)


@contextmanager
def connected(address: str, credentials: Any = None) -> Iterator[Stubs]:
    """Open a channel to a server; its messages may be larger than gRPC's own limit."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = (
        grpc.secure_channel(address, credentials, options)
        if credentials
        else grpc.insecure_channel(address, options)
    )
    with channel:
        yield Stubs(channel)


def fill_spec(
    spec: Any, name: str = "toy", version: int | None = None, label: str | None = None, signature: str = ""
) -> None:
    """Fill in a ``ModelSpec``."""
    spec.name, spec.signature_name = name, signature
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label


def predict_request(inputs: Mapping[str, Any], signature: str = "", *outputs: str, **spec: Any) -> Any:
    """A ``PredictRequest`` of numpy arrays (or ready ``TensorProto``)."""
    import tensorflow as tf

    request = predict_pb2.PredictRequest(output_filter=outputs)
    fill_spec(request.model_spec, signature=signature, **spec)
    for name, value in inputs.items():
        proto = tf.make_tensor_proto(value) if isinstance(value, np.ndarray | list) else value
        request.inputs[name].CopyFrom(proto)
    return request


def example_input(records: list[Mapping[str, float]]) -> Any:
    """An ``Input`` of examples with float features."""
    given = input_pb2.Input()
    given.example_list.SetInParent()
    for record in records:
        example = given.example_list.examples.add()
        for name, value in record.items():
            example.features.feature[name].float_list.value.append(value)
    return given


def classify_request(records: list[Mapping[str, float]], signature: str = "classify", **spec: Any) -> Any:
    """A ``ClassificationRequest`` of examples."""
    request = classification_pb2.ClassificationRequest(input=example_input(records))
    fill_spec(request.model_spec, signature=signature, **spec)
    return request


def regress_request(records: list[Mapping[str, float]], signature: str = "regress", **spec: Any) -> Any:
    """A ``RegressionRequest`` of examples."""
    request = regression_pb2.RegressionRequest(input=example_input(records))
    fill_spec(request.model_spec, signature=signature, **spec)
    return request


def fill_typed_field(proto: Any, row: Any) -> None:
    """Put numbers into the field of their dtype, as the clients of other languages do."""
    field = TYPED_FIELDS["string" if row.dtype == object else row.dtype.name]
    if row.dtype.kind == "c":
        row = row.view(row.real.dtype)  # real and imaginary parts in turn
    getattr(proto, field).extend((row.view(np.uint16) if field == "half_val" else row).tolist())


def multi_request(records: list[Mapping[str, float]], *tasks: tuple[str, int | None, str, str]) -> Any:
    """A ``MultiInferenceRequest`` of tasks: model, version, signature and method."""
    request = inference_pb2.MultiInferenceRequest(input=example_input(records))
    for name, version, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        fill_spec(task.model_spec, name, version, signature=signature)
    return request


def failure(call: Any, *arguments: Any, **keywords: Any) -> tuple[str, str]:
    """The status that a call ends with: the code's name and the message."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **keywords)
    return caught.value.code().name, caught.value.details()


def models_config(**models: str) -> str:
    """A ``ModelServerConfig`` in text form; each model's name with the rest of its entry."""
    entries = " ".join(
        f'config {{ name: "{name}" model_platform: "tensorflow" {rest} }}' for name, rest in models.items()
    )
    return f"model_config_list {{ {entries} }}"
