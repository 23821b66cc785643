"""TensorFlow Serving's gRPC services over a set of models: PredictionService, ModelService and health."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from graftflow.errors import InputError
from graftflow.serving import bodies, classifications, config_texts, tensor_protos
from graftflow.serving.config_texts import TlsSettings
from graftflow.serving.inference import Inference, check_inputs, counted, signature_key
from graftflow.serving.json_inputs import Tensor
from graftflow.serving.model_sets import ModelSpec
from graftflow.serving.status import Code, ServingError, invalid

log = logging.getLogger("graftflow.serving")

MESSAGE_LIMIT = 64 * 2**20  # bytes of a request, as of one over REST; answers may be larger
_HANDSHAKE_SECONDS = 10  # in which a new connection speaks HTTP/2
_MESSAGE_BYTES = 4096  # of an error; clients refuse 8 KiB of headers
_SERVICES = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)
Context = Any  # grpc.aio.ServicerContext
Handler = Callable[[Any, Any, Context], Awaitable[Any]]


def model_spec(message: Any) -> ModelSpec:
    """Return a request's ``ModelSpec`` message as ours."""
    choice = message.WhichOneof("version_choice")
    return ModelSpec(
        message.name,
        message.version.value if choice == "version" else None,
        message.version_label if choice == "version_label" else None,
        message.signature_name,
    )


def _answered(handler: Handler) -> Handler:
    """Turn a ServingError into its status; anything else into INTERNAL, with a line in the log."""

    async def answer(self: Any, request: Any, context: Context) -> Any:
        try:
            return await handler(self, request, context)
        except ServingError as error:
            code, message = error.code, error.message
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s failed", handler.__name__)
            code, message = Code.INTERNAL, "Internal error; the server's log says more"
        del request  # the aborted call refers to this frame, until the garbage collector comes
        return await context.abort(grpc.StatusCode[code.name], _cut(message))

    return answer


def _cut(message: str) -> str:
    """Return what of a message fits into gRPC's trailer: a longer one takes the status' place.

    There every character that is no printable ASCII takes three bytes for each of its own.
    """
    size = 0
    for place, character in enumerate(message):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if size > _MESSAGE_BYTES:
            return message[:place]
    return message


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """Predict, Classify, Regress, MultiInference and GetModelMetadata.

    Args:
        inference: what runs the models.
    """

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def _counted(self, spec: ModelSpec, api: str) -> AbstractContextManager[None]:
        return counted(self._inference.known(spec.name), api, "GRPC")

    @_answered
    async def Predict(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Run a signature on tensors."""
        _need_spec(request)
        spec = model_spec(request.model_spec)
        with self._counted(spec, "Predict"):
            version = self._inference.models.get(spec)
            key = signature_key(spec)
            if key not in version.signatures:
                raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
            wanted = version.signatures[key].inputs
            check_inputs(request.inputs, wanted)

            def read() -> dict[str, Tensor]:
                return {
                    name: tensor_protos.read(name, proto, wanted[name], position)
                    for position, (name, proto) in enumerate(sorted(request.inputs.items()))
                }

            slow = any(map(tensor_protos.is_slow, request.inputs.values()))
            inputs = await self._inference.elsewhere(read, size=request.ByteSize()) if slow else read()
            outputs = await self._inference.predict(
                spec, version, inputs, request.output_filter, context.time_remaining()
            )
            response = predict_pb2.PredictResponse()
            _answer_spec(response, spec, version.number)
            for name, tensor in outputs.items():
                response.outputs[name].CopyFrom(tensor_protos.write(tensor))
            return response

    @_answered
    async def Classify(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Run a signature on examples; labels and scores."""
        _need_spec(request)
        spec = model_spec(request.model_spec)
        with self._counted(spec, "Classify"):
            version = self._inference.models.get(spec)
            result = await self._inference.classify(spec, version, request.input, context.time_remaining())
            response = classification_pb2.ClassificationResponse(result=result)
            _answer_spec(response, spec, version.number)
            return response

    @_answered
    async def Regress(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Run a signature on examples; one number each."""
        _need_spec(request)
        spec = model_spec(request.model_spec)
        with self._counted(spec, "Regress"):
            version = self._inference.models.get(spec)
            result = await self._inference.regress(spec, version, request.input, context.time_remaining())
            response = regression_pb2.RegressionResponse(result=result)
            _answer_spec(response, spec, version.number)
            return response

    @_answered
    async def MultiInference(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Run several signatures on the same examples."""
        spec = model_spec(classifications.multi_inference_model(request))
        with self._counted(spec, "MultiInference"):
            version = self._inference.models.get(spec)
            return await self._inference.multi_inference(spec, version, request, context.time_remaining())

    @_answered
    async def GetModelMetadata(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Tell a version's signatures."""
        _need_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        spec = model_spec(request.model_spec)
        version = self._inference.models.get(spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = version.number
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in version.signature_defs.items():
            signatures.signature_def[key].CopyFrom(definition)
        packed = AnyMessage()
        packed.Pack(signatures)
        response.metadata["signature_def"].CopyFrom(packed)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
        inference: what runs the models.
    """

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    @_answered
    async def GetModelStatus(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Tell where a model's versions stand."""
        _need_spec(request)
        statuses = self._inference.models.statuses(model_spec(request.model_spec))
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in statuses:
            said = response.model_version_status.add(version=status.number)
            said.state = get_model_status_pb2.ModelVersionStatus.State.Value(status.state)
            said.status.error_code = grpc.StatusCode[status.code.name].value[0]
            said.status.error_message = status.message
        return response

    @_answered
    async def HandleReloadConfigRequest(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Serve other models; answers when the new ones are loaded."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        try:
            models = config_texts.model_settings(request.config)
        except InputError as error:
            raise invalid(str(error)) from None
        log.info("reloading: %s", ", ".join(model.name for model in models) or "no model")
        # On a thread of its own: loading takes seconds, and the models that serve need theirs.
        await asyncio.to_thread(self._inference.models.reload, models)
        return model_management_pb2.ReloadConfigResponse()


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Health checking: every service serves until the server drains; who watches is then told and let go.

    The servicer of grpc_health never ends a Watch: one open stream would hold up the drain to its end.
    """

    def __init__(self) -> None:
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Report from now on that nothing serves."""
        self._draining.set()

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Tell whether a service serves; the empty name is the server."""
        if request.service not in ("", *_SERVICES):
            return await context.abort(grpc.StatusCode.NOT_FOUND, f"Unknown service: {request.service[:100]}")
        return self._status()

    async def Watch(self, request: Any, context: Context) -> None:  # noqa: N802
        """Tell it now and when it changes."""
        if request.service in ("", *_SERVICES):
            await context.write(self._status())
        else:
            await context.write(
                health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            )
        if not self._draining.is_set():
            await self._draining.wait()
            await context.write(self._status())

    def _status(self) -> Any:
        states = health_pb2.HealthCheckResponse
        return states(status=states.NOT_SERVING if self._draining.is_set() else states.SERVING)


def _need_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _answer_spec(response: Any, spec: ModelSpec, number: int) -> None:
    response.model_spec.name = spec.name
    response.model_spec.signature_name = signature_key(spec)
    response.model_spec.version.value = number


class _Admission:
    """Registers services so that their large requests wait for room before they are parsed.

    Args:
        server: the ``grpc.aio`` server.
    """

    def __init__(self, server: Any) -> None:
        self._server, self._room = server, bodies.Room()

    def add_generic_rpc_handlers(self, services: Sequence[Any]) -> None:
        """Register, as the generated functions ask of a server."""
        self._server.add_generic_rpc_handlers([_AdmittingService(s, self._room) for s in services])


class _AdmittingService(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, service: Any, room: bodies.Room) -> None:
        self._service, self._room = service, room
        self._methods: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method
        if name not in self._methods:
            method = self._service.service(handler_call_details)
            if method is None:
                return None
            self._methods[name] = self._admitting(method)
        return self._methods[name]

    def _admitting(self, method: Any) -> Any:
        async def answer(content: bytes, context: Context) -> Any:
            async with self._room.taken(len(content)):
                try:
                    request = [method.request_deserializer(content)]
                except DecodeError:
                    return await context.abort(grpc.StatusCode.INTERNAL, "Error parsing request proto")
                return await method.unary_unary(request.pop(), context)

        return grpc.unary_unary_rpc_method_handler(answer, None, method.response_serializer)


class GrpcServer:
    """The gRPC port.

    Args:
        inference: what runs the models.
        host: the address to listen on.
        port: its port.
        tls: certificates; ``None`` for plain text.
    """

    def __init__(self, inference: Inference, host: str, port: int, tls: TlsSettings | None = None) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on this port is an error, not a silent half
                ("grpc.http2.max_ping_strikes", 0),
                # A connection that says nothing would hold up the end of the server as long as this.
                ("grpc.server_handshake_timeout_ms", 1000 * _HANDSHAKE_SECONDS),
            ],
            maximum_concurrent_rpcs=512,
        )
        services = _Admission(self._server)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(inference), services
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(inference), services)
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError as error:
            raise InputError(_why_not(host, port, address)) from error

    async def start(self) -> None:
        """Accept requests."""
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Refuse new requests and wait for those that run, at most so many seconds."""
        self._health.drain()
        await self._server.stop(seconds)


def _why_not(host: str, port: int, address: str) -> str:
    """Return why gRPC could not have a port: it does not say itself."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        return (
            f"Cannot listen on {address}: {error.strerror}. Choose another --port, "
            "or stop the server that has this one."
        )
    return (
        "--ssl_config_file must hold a private key, its certificate and the clients' authority in PEM. "
        f"Received: what TLS on {address} cannot be made of"
    )


def _credentials(tls: TlsSettings) -> Any:
    try:
        return grpc.ssl_server_credentials(
            [(tls.key, tls.certificate)],
            root_certificates=tls.custom_ca or None,
            require_client_auth=tls.client_verify,
        )
    except ValueError as error:
        raise InputError(f"--ssl_config_file: {error}") from error
