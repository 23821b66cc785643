"""The few messages of TensorFlow Serving's gRPC protocol that the client needs, without TensorFlow's modules.

tensorflow-serving-api imports TensorFlow, which takes seconds. These are built from their field numbers
(``tensorflow_serving/apis/*.proto``, ``tensorflow/core/framework/tensor.proto``) in a pool of their own, so that they
do not meet the originals in one process. Enumerations are plain ``int32``, which has the same form on the wire.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_INT64 = ".google.protobuf.Int64Value"
_SPEC = "ModelSpec"
# Message → field → (number, type). A type of two words is "repeated", "map" (from string) or "oneof" and its type.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Dim": {"size": (1, "int64"), "name": (2, "string")},
    "TensorShapeProto": {"dim": (2, "repeated Dim"), "unknown_rank": (3, "bool")},
    "TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShapeProto"),
        "version_number": (3, "int32"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "repeated float"),
        "double_val": (6, "repeated double"),
        "int_val": (7, "repeated int32"),
        "string_val": (8, "repeated bytes"),
        "int64_val": (10, "repeated int64"),
        "bool_val": (11, "repeated bool"),
        "half_val": (13, "repeated int32"),
        "uint32_val": (16, "repeated uint32"),
        "uint64_val": (17, "repeated uint64"),
    },
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, f"oneof {_INT64}"),
        "signature_name": (3, "string"),
        "version_label": (4, "oneof string"),
    },
    "PredictRequest": {
        "model_spec": (1, _SPEC),
        "inputs": (2, "map TensorProto"),
        "output_filter": (3, "repeated string"),
    },
    "PredictResponse": {"outputs": (1, "map TensorProto"), "model_spec": (2, _SPEC)},
    "GetModelStatusRequest": {"model_spec": (1, _SPEC)},
    "StatusProto": {"error_code": (1, "int32"), "error_message": (2, "string")},
    "ModelVersionStatus": {"version": (1, "int64"), "state": (2, "int32"), "status": (3, "StatusProto")},
    "GetModelStatusResponse": {"model_version_status": (1, "repeated ModelVersionStatus")},
    "TensorInfo": {"name": (1, "string"), "dtype": (2, "int32"), "tensor_shape": (3, "TensorShapeProto")},
    "SignatureDef": {"inputs": (1, "map TensorInfo"), "outputs": (2, "map TensorInfo")},
    "SignatureDefMap": {"signature_def": (1, "map SignatureDef")},
    "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "GetModelMetadataRequest": {"model_spec": (1, _SPEC), "metadata_field": (2, "repeated string")},
    "GetModelMetadataResponse": {"model_spec": (1, _SPEC), "metadata": (2, "map Any")},
}
_PACKAGE = "graftflow.serving.client"


def _add_field(message: Any, name: str, number: int, text: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    rule, _, kind = text.rpartition(" ")
    repeated = rule in ("repeated", "map")
    added = message.field.add(
        name=name, number=number, label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
    )
    if rule == "map":
        entry = message.nested_type.add(name="".join(w.title() for w in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, kind)
        kind = f".{_PACKAGE}.{message.name}.{entry.name}"
    elif rule == "oneof":
        if not message.oneof_decl:
            message.oneof_decl.add(name="version_choice")
        added.oneof_index = 0
    if kind in _MESSAGES:
        kind = f".{_PACKAGE}.{kind}"
    if kind.startswith("."):
        added.type, added.type_name = kinds.TYPE_MESSAGE, kind
    else:
        added.type = kinds.Type.Value(f"TYPE_{kind.upper()}")


def _build() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="graftflow/serving/client.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, text) in fields.items():
            _add_field(message, field, number, text)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _build()

TensorProto = _CLASSES["TensorProto"]
PredictRequest = _CLASSES["PredictRequest"]
PredictResponse = _CLASSES["PredictResponse"]
GetModelStatusRequest = _CLASSES["GetModelStatusRequest"]
GetModelStatusResponse = _CLASSES["GetModelStatusResponse"]
GetModelMetadataRequest = _CLASSES["GetModelMetadataRequest"]
GetModelMetadataResponse = _CLASSES["GetModelMetadataResponse"]
SignatureDefMap = _CLASSES["SignatureDefMap"]

# ModelVersionStatus.State of get_model_status.proto.
STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
