"""TensorFlow Serving's configuration files, in protobuf's text form, as plain settings.

The package tensorflow-serving-api holds the message of the models' file only. Those of batching, monitoring
and TLS are built here from their public field numbers, so that protobuf's own parser reads them.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from graftflow.errors import InputError

MONITORING_PATH = "/monitoring/prometheus/metrics"  # TensorFlow Serving's own default


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions under a base path are served.

    Attributes:
        kind: ``"latest"``, ``"all"`` or ``"specific"``.
        count: how many of the newest, for ``"latest"``.
        versions: their numbers, for ``"specific"``.
    """

    kind: str = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelSettings:
    """One model to serve.

    Attributes:
        name: as requests give it.
        base_path: the folder of its numbered versions.
        policy: which of them are served.
        labels: names for versions, e.g. ``{"stable": 3}``.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchingParameters:
    """How requests that come at the same time are joined (``batching_parameters_file``).

    Attributes:
        max_batch_size: largest number of examples in a batch.
        batch_timeout_micros: microseconds that the first request of a batch waits for others where a thread
            is free; 0 waits for none, and requests then gather while all threads work.
        max_enqueued_batches: full batches that may wait; more requests are UNAVAILABLE.
        num_batch_threads: batches that run at a time.
        allowed_batch_sizes: sizes that batches are filled up to, ascending; none for any size.
        pad_variable_length_inputs: whether inputs of unequal shape are filled up with their first value.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False


@dataclass(frozen=True)
class TlsSettings:
    """The certificates of the gRPC port (``ssl_config_file``), all PEM.

    Attributes:
        key: the server's private key.
        certificate: the server's certificate.
        custom_ca: the authority of the clients' certificates, or empty.
        client_verify: whether clients must show a certificate.
    """

    key: bytes
    certificate: bytes
    custom_ca: bytes = b""
    client_verify: bool = False


_INT64 = ".google.protobuf.Int64Value"
_BOOL = ".google.protobuf.BoolValue"
# Message → field → (number, type); a type of two is repeated. From TensorFlow Serving's
# session_bundle_config.proto, monitoring_config.proto and ssl_config.proto.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "BatchingParameters": {
        "max_batch_size": (1, _INT64),
        "batch_timeout_micros": (2, _INT64),
        "max_enqueued_batches": (3, _INT64),
        "num_batch_threads": (4, _INT64),
        "thread_pool_name": (5, ".google.protobuf.StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, _BOOL),
        "max_execution_batch_size": (9, _INT64),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, ".graftflow.serving.PrometheusConfig")},
    "SSLConfig": {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
}


def _build_messages() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="graftflow/serving/configs.proto",
        package="graftflow.serving",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, text) in fields.items():
            kind = text.removeprefix("repeated ")
            added = message.field.add(
                name=field_name,
                number=number,
                label=kinds.LABEL_OPTIONAL if kind == text else kinds.LABEL_REPEATED,
            )
            if kind.startswith("."):
                added.type, added.type_name = kinds.TYPE_MESSAGE, kind
            else:
                added.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _build_messages()


def read_models(file: Path) -> list[ModelSettings]:
    """Read ``--model_config_file``, a ``ModelServerConfig``.

    Raises:
        InputError: where the file cannot be read or breaks a rule.
    """
    from tensorflow_serving.config import model_server_config_pb2

    return model_settings(_parse(file, "--model_config_file", model_server_config_pb2.ModelServerConfig()))


def model_settings(config: Any) -> list[ModelSettings]:
    """Return the models that a ``ModelServerConfig`` lists.

    Raises:
        InputError: where it has no ``model_config_list``, or one of its models breaks a rule.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise InputError(
            "The configuration of models must hold a model_config_list, as in model_config_list { }"
        )
    found: dict[str, ModelSettings] = {}
    for entry in config.model_config_list.config:
        if not entry.name or not entry.base_path:
            raise InputError(
                "Every config of a model_config_list must have a name and a base_path. "
                f"Received: name '{entry.name}', base_path '{entry.base_path}'"
            )
        if entry.name in found:
            raise InputError(f"Illegal to list model {entry.name} multiple times in config list")
        if entry.model_platform not in ("tensorflow", ""):
            raise InputError(
                f"model_platform of '{entry.name}' must be \"tensorflow\". Received: '{entry.model_platform}'"
            )
        found[entry.name] = ModelSettings(
            entry.name,
            base_path(entry.base_path),
            _policy(entry),
            {label: int(number) for label, number in entry.version_labels.items()},
        )
    return list(found.values())


def base_path(text: str) -> Path:
    """Return the folder that a base path names.

    Raises:
        InputError: where it is the address of an object store or a file.
    """
    text = text.removeprefix("file://")
    if "://" in text:
        raise InputError(
            f"A base path of the embedded server must be a folder (TensorFlow Serving reads stores). Received: '{text}'"
        )
    path = Path(text).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise InputError(f"A base path must be a folder. Received: {path}")
    return path


def _policy(entry: Any) -> VersionPolicy:
    kind = entry.model_version_policy.WhichOneof("policy_choice") or "latest"
    if kind == "specific":
        versions = tuple(sorted(set(entry.model_version_policy.specific.versions)))
        if not versions:
            raise InputError(
                f"The specific policy of '{entry.name}' must list versions: specific {{ versions: 3 }}"
            )
        return VersionPolicy("specific", versions=versions)
    if kind == "all":
        return VersionPolicy("all")
    return VersionPolicy("latest", count=entry.model_version_policy.latest.num_versions or 1)


def read_batching(file: Path | None) -> BatchingParameters:
    """Read ``--batching_parameters_file``; ``None`` gives the defaults.

    Raises:
        InputError: where the file cannot be read or a value breaks a rule.
    """
    if file is None:
        return BatchingParameters()
    flag = "--batching_parameters_file"
    message = _parse(file, flag, _CLASSES["BatchingParameters"]())
    given: dict[str, Any] = {
        name: getattr(message, name).value
        for name in ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
        if message.HasField(name)
    }
    given["allowed_batch_sizes"] = tuple(message.allowed_batch_sizes)
    given["pad_variable_length_inputs"] = message.pad_variable_length_inputs
    read = BatchingParameters(**given)
    for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
        if getattr(read, name) < 1:
            raise InputError(f"{flag}: {name} must be 1 or more. Received: {getattr(read, name)}")
    if read.batch_timeout_micros < 0:
        raise InputError(
            f"{flag}: batch_timeout_micros must be 0 or more. Received: {read.batch_timeout_micros}"
        )
    sizes = read.allowed_batch_sizes
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != read.max_batch_size):
        raise InputError(
            f"{flag}: allowed_batch_sizes must ascend and end with max_batch_size ({read.max_batch_size}). "
            f"Received: {list(sizes)}"
        )
    return read


def read_monitoring(file: Path | None) -> str | None:
    """Read ``--monitoring_config_file``; returns the path of the metrics, or ``None`` where they are off.

    Raises:
        InputError: where the file cannot be read or its path does not begin with ``/``.
    """
    if file is None:
        return None
    config = _parse(file, "--monitoring_config_file", _CLASSES["MonitoringConfig"]()).prometheus_config
    path = str(config.path or MONITORING_PATH)
    if not path.startswith("/") or path.startswith("/v1/"):
        raise InputError(
            f"--monitoring_config_file: path must begin with '/', but not with '/v1/'. Received: '{path}'"
        )
    return path if config.enable else None


def read_tls(file: Path | None) -> TlsSettings | None:
    """Read ``--ssl_config_file``; ``None`` stays ``None``.

    Raises:
        InputError: where the file cannot be read or lacks the key, the certificate or, with
            ``client_verify``, the authority.
    """
    if file is None:
        return None
    message = _parse(file, "--ssl_config_file", _CLASSES["SSLConfig"]())
    needed = ["server_key", "server_cert"] + (["custom_ca"] if message.client_verify else [])
    if missing := [name for name in needed if not getattr(message, name)]:
        raise InputError(f"--ssl_config_file must hold {', '.join(needed)}. Missing: {', '.join(missing)}")
    return TlsSettings(
        message.server_key.encode(),
        message.server_cert.encode(),
        message.custom_ca.encode(),
        message.client_verify,
    )


Parsed = TypeVar("Parsed")


def _parse(file: Path, flag: str, message: Parsed) -> Parsed:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{flag} must be a text file. Received: {file} ({reason})") from error
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise InputError(f"{flag}: {file} does not parse: {error}") from error
    return message
