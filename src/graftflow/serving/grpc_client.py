"""A model over gRPC: TensorFlow Serving's PredictionService and ModelService, without TensorFlow."""

import threading
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from graftflow.errors import InputError
from graftflow.serving import messages, refusals, tensor_values
from graftflow.serving.refusals import PassingError, RefusedError, ServerUnreachableError
from graftflow.serving.retries import Deadline
from graftflow.serving.targets import MESSAGE_BYTES, Target

# What gRPC's core says, all under UNAVAILABLE, where trying again would not help.
_TLS_WORDS = ("ssl", "tls", "certificate", "handshake", "peer name")
_NOT_HTTP2_WORDS = (
    "http1",
    "http/1",
    "http2 connection",
    "settings frame",
    "http status",
    "http response code",
)
_REFUSED_WORDS = ("connection refused", "failed to connect to all addresses")
_NO_HOST_WORDS = ("dns resolution failed", "name resolution", "domain name not found")

_STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_Inputs = dict[str, int]  # name → dtype, as types.proto numbers it


class GrpcTransport:
    """Asks over one HTTP/2 connection; may be used by several threads at a time.

    Args:
        target: the model.

    Raises:
        InputError: where the CA file holds no certificate.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        headers = {name.lower(): value for name, value in target.headers.items()}
        host = headers.pop("host", "")
        self._metadata = tuple(headers.items())
        self._channel = _open(target, host)
        self._predict = self._method(
            "PredictionService/Predict", messages.PredictRequest, messages.PredictResponse
        )
        self._get_metadata = self._method(
            "PredictionService/GetModelMetadata",
            messages.GetModelMetadataRequest,
            messages.GetModelMetadataResponse,
        )
        self._get_status = self._method(
            "ModelService/GetModelStatus", messages.GetModelStatusRequest, messages.GetModelStatusResponse
        )
        self._signatures: dict[str, _Inputs] | None = None
        self._asking = threading.Lock()

    def predict(self, instances: list[Any], signature: str, deadline: Deadline) -> list[Any]:
        """Ask once; see :meth:`graftflow.serving.client.Client.predict`."""
        request = messages.PredictRequest()
        self._fill(request.model_spec, signature)
        for name, (values, dtype) in self._columns(instances, signature, deadline).items():
            request.inputs[name].CopyFrom(tensor_values.write(values, dtype))
        if request.ByteSize() > MESSAGE_BYTES:
            raise RefusedError(
                f"a request must have at most {MESSAGE_BYTES} bytes. Received: {request.ByteSize()}",
                "RESOURCE_EXHAUSTED",
            )
        try:
            response = self._ask(self._predict, request, deadline)
        except RefusedError:
            self._signatures = None  # another version may have come since, with other inputs
            raise
        return _rows(response.outputs, len(instances))

    def status(self, deadline: Deadline, *, of_any: bool = False) -> list[dict[str, Any]]:
        """Ask once for the versions, in the REST API's form."""
        request = messages.GetModelStatusRequest()
        if of_any:
            request.model_spec.name = self._target.model
        else:
            self._fill(request.model_spec, "")
        response = self._ask(self._get_status, request, deadline)
        return [
            {
                "version": str(status.version),
                "state": messages.STATES.get(status.state, "UNKNOWN"),
                "status": {
                    "error_code": _STATUS_NAMES.get(status.status.error_code, "UNKNOWN"),
                    "error_message": status.status.error_message,
                },
            }
            for status in response.model_version_status
        ]

    def close(self) -> None:
        """Close the connection; requests under way end."""
        self._channel.close()

    def _method(self, name: str, request: Any, response: Any) -> Callable[..., Any]:
        method: Callable[..., Any] = self._channel.unary_unary(
            f"/tensorflow.serving.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return method

    def _fill(self, spec: Any, signature: str) -> None:
        spec.name, spec.signature_name = self._target.model, signature
        if self._target.version is not None:
            spec.version.value = self._target.version
        elif self._target.label is not None:
            spec.version_label = self._target.label

    def _columns(
        self, instances: list[Any], signature: str, deadline: Deadline
    ) -> dict[str, tuple[list[Any], int | None]]:
        """Each input's values and dtype: gRPC wants columns, and says no word about what it was not told."""
        with self._asking:
            if self._signatures is None:
                self._signatures = self._described(deadline)
            signatures = self._signatures
        # A server that describes nothing gets what the values look like.
        inputs = signatures.get(signature or "serving_default")
        if signatures and inputs is None:
            raise RefusedError(
                f"The server refuses: signature '{signature}' not found. It has: {', '.join(sorted(signatures))}",
                "FAILED_PRECONDITION",
                f"signature '{signature}' not found",
            )
        if not all(isinstance(instance, dict) for instance in instances):
            names = list(inputs or {"image_bytes": 0})
            if len(names) != 1:
                raise InputError(
                    f"instances must name the inputs {', '.join(sorted(names))}. Received: values without a name"
                )
            return {names[0]: (list(instances), inputs[names[0]] if inputs else None)}
        names = list(instances[0]) if instances else []
        if any(set(instance) != set(names) for instance in instances):
            raise InputError("instances must all have the same inputs. Received: unlike ones")
        return {
            name: ([instance[name] for instance in instances], inputs.get(name) if inputs else None)
            for name in names
        }

    def _described(self, deadline: Deadline) -> dict[str, _Inputs]:
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill(request.model_spec, "")
        try:
            response = self._ask(self._get_metadata, request, deadline)
        except ServerUnreachableError as error:
            if error.code == "UNIMPLEMENTED":
                return {}
            raise
        try:
            described = messages.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        except DecodeError as error:
            raise refusals.not_a_model_server(self._target.url, "unreadable signatures", "OK") from error
        return {
            key: {name: info.dtype for name, info in definition.inputs.items()}
            for key, definition in described.signature_def.items()
        }

    def _ask(self, method: Callable[..., Any], request: Any, deadline: Deadline) -> Any:
        try:
            return method(request, timeout=deadline.left(), metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._error(error, deadline) from error
        except ValueError as error:  # of a channel that was closed meanwhile
            raise ServerUnreachableError(f"Cannot ask {self._target.url}: {error}.", "CANCELLED") from error

    def _error(self, error: Any, deadline: Deadline) -> Exception:
        url, code = self._target.url, error.code().name
        words = refusals.said_of(error.details() or code)
        low = words.lower()
        if code == "DEADLINE_EXCEEDED":
            return refusals.late(url, deadline.timeout, code)
        if code == "UNAVAILABLE":
            if any(word in low for word in _TLS_WORDS):
                return refusals.untrusted(url, words)
            if any(word in low for word in _NO_HOST_WORDS):
                return ServerUnreachableError(f"The connection to {url} failed: no such host.", code)
            if any(word in low for word in _NOT_HTTP2_WORDS):
                return refusals.not_a_model_server(url, words, code)
            if any(word in low for word in _REFUSED_WORDS):
                return PassingError(refusals.nobody_there(url, code))
            pause = _pushback(error)
            final = ServerUnreachableError(
                f"The server at {url} is unavailable: {words}. Try again later.", code
            )
            return final if pause is not None and pause < 0 else PassingError(final, pause)
        if code in ("UNIMPLEMENTED", "CANCELLED") or "http status" in low:
            return refusals.not_a_model_server(url, words, code)
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return ServerUnreachableError(f"The server at {url} lets nobody in like this: {words}", code)
        return RefusedError(f"The server refuses: {words}", code, words)


def _open(target: Target, authority: str) -> Any:
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        # A connection that died without a word is noticed. Only while a request is under way, and by at most two
        # pings without data: servers cut off who sends more.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 2),
        # Trying again is ours (graftflow.serving.retries).
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A proxy that the environment names cannot reach this machine's own loopback.
        ("grpc.enable_http_proxy", 0 if target.is_local else 1),
        # Two clients of one process must not share a connection: closing one would end the other.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if authority:
        options.append(("grpc.default_authority", authority))
    host = f"[{target.host}]" if ":" in target.host else target.host
    address = f"{host}:{target.port}"
    if target.scheme == "grpc":
        return grpc.insecure_channel(address, options)
    roots = None
    if target.ca_file is not None:
        roots = target.ca_file.read_bytes()
        if b"BEGIN CERTIFICATE" not in roots:
            raise InputError(f"ca_file must be a file of PEM certificates. Received: {target.ca_file}")
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots), options)


def _pushback(error: Any) -> float | None:
    """The seconds after which the server wants to be asked again; negative: not at all (gRFC A6)."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-retry-pushback-ms":
            try:
                return max(-1.0, int(value) / 1000)
            except ValueError:
                return -1.0
    return None


def _rows(outputs: Any, count: int) -> list[Any]:
    columns = {}
    for name, proto in outputs.items():
        column = tensor_values.read(proto, as_bytes=name.endswith("_bytes"))
        if not isinstance(column, list) or len(column) != count:
            shape = [dim.size for dim in proto.tensor_shape.dim]
            raise InputError(
                f"output '{name}' must have a row for each of {count} instances. Received: shape {shape}"
            )
        columns[name] = column
    if not columns:
        raise InputError("an answer must have an output. Received: none")
    if len(columns) == 1:
        return list(next(iter(columns.values())))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
