"""Reloads of the configuration over gRPC, and TLS, on real server processes."""

import asyncio
import socket

import grpc
import numpy as np
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_management_pb2

from graftflow.errors import InputError
from graftflow.serving.config_texts import TlsSettings
from graftflow.serving.grpc_api import GrpcServer
from tests.unit.certificates import self_signed
from tests.unit.grpc_calls import SECONDS, connected, failure, models_config
from tests.unit.serving_model import free_port, running_server
from tests.unit.tensor_models import install, save_versions

X = np.array([[1.0, 2.0], [3.0, 4.5]], np.float32)


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    return save_versions(tmp_path_factory.getbasetemp() / "tensor_models")


class TestReload:
    """HandleReloadConfigRequest, on a server of its own that speaks gRPC alone."""

    @pytest.fixture(scope="class")
    def store(self, exports, tmp_path_factory):
        folder = tmp_path_factory.mktemp("reload")
        for name, numbers in (("toy", (1, 2)), ("second", (1,))):
            for number in numbers:
                install(exports / str(number), folder / name, number)
        (folder / "broken" / "1").mkdir(parents=True)
        return folder

    @pytest.fixture(scope="class")
    def stubs(self, store, tmp_path_factory):
        log = tmp_path_factory.mktemp("log") / "log"
        flags = ("--rest_api_port=0", "--max_num_load_retries=0")
        with running_server(store / "toy", log, *flags) as server, connected(server.address) as found:
            assert "http:" not in server.log()
            with pytest.raises(requests.ConnectionError):
                requests.get(f"{server.url}/v1/models/toy", timeout=5)
            yield found

    @staticmethod
    def entry(store, name, rest=""):
        return f'base_path: "{store / name}" {rest}'

    def test_models_come_and_go_as_listed(self, store, stubs):
        assert failure(stubs.predict, {"x": X}, name="second")[0] == "NOT_FOUND"
        stubs.reload(models_config(toy=self.entry(store, "toy"), second=self.entry(store, "second")))
        assert stubs.predict({"x": X}, name="second")["y"].tolist() == X.tolist()  # at once
        stubs.reload(models_config(second=self.entry(store, "second")))
        assert failure(stubs.predict, {"x": X})[0] == "NOT_FOUND"
        stubs.reload(models_config(toy=self.entry(store, "toy")))
        assert stubs.predict({"x": X})["y"].tolist() == (2 * X).tolist()
        assert failure(stubs.predict, {"x": X}, name="second")[0] == "NOT_FOUND"

    def test_labels_name_available_versions_only(self, store, stubs):
        every = "model_version_policy { all {} } "
        label = 'version_labels { key: "stable" value: %d }'
        stubs.reload(models_config(toy=self.entry(store, "toy", every)))
        stubs.reload(models_config(toy=self.entry(store, "toy", every + label % 1)))
        assert stubs.predict({"x": X}, label="stable")["y"].tolist() == X.tolist()
        code, said = failure(stubs.reload, models_config(toy=self.entry(store, "toy", every + label % 3)))
        assert code == "FAILED_PRECONDITION"
        assert "version 3 of model toy, which is not currently available for inference" in said
        assert stubs.predict({"x": X}, label="stable")["y"].tolist() == X.tolist()
        stubs.reload(models_config(toy=self.entry(store, "toy", every + label % 2)))
        assert stubs.predict({"x": X}, label="stable")["y"].tolist() == (2 * X).tolist()

    def test_a_new_model_that_does_not_load_is_unavailable(self, store, stubs):
        text = models_config(toy=self.entry(store, "toy"), broken=self.entry(store, "broken"))
        code, said = failure(stubs.reload, text)
        assert (code, "broken" in said) == ("UNAVAILABLE", True)
        assert stubs.predict({"x": X})["y"].tolist() == (2 * X).tolist()
        (version, state, number, reason), = stubs.status(name="broken")  # fmt: skip
        assert (version, state, number) == (1, "END", grpc.StatusCode.NOT_FOUND.value[0])
        assert "Could not find SavedModel" in reason

    def test_a_config_that_is_no_list_changes_nothing(self, stubs):
        code, said = failure(
            stubs.models.HandleReloadConfigRequest,
            model_management_pb2.ReloadConfigRequest(),
            timeout=SECONDS,
        )
        assert (code, "ModelConfigList" in said) == ("INVALID_ARGUMENT", True)
        for text in ('model_config_list { config { name: "a" } }', models_config(a='base_path: "gs://x"')):
            code, said = failure(stubs.reload, text)
            assert code == "INVALID_ARGUMENT"
            assert said
        assert stubs.predict({"x": X})["y"].tolist() == (2 * X).tolist()


class TestTls:
    """``--ssl_config_file``: the gRPC port speaks TLS, and asks for certificates where it is told to."""

    @pytest.fixture(scope="class")
    def pair(self):
        return self_signed()

    @pytest.fixture(scope="class")
    def address(self, exports, pair, tmp_path_factory):
        """A server that wants the clients' certificates too."""
        folder = tmp_path_factory.mktemp("tls")
        install(exports / "1", folder / "toy", 1)
        key, certificate = (text.decode().replace("\n", "\\n") for text in pair)
        (folder / "ssl.config").write_text(
            f'server_key: "{key}" server_cert: "{certificate}" custom_ca: "{certificate}" client_verify: true'
        )
        flags = (f"--ssl_config_file={folder / 'ssl.config'}",)
        with running_server(folder / "toy", folder / "log", *flags) as server:
            assert f"grpcs://{server.address}" in server.log()
            yield server.address

    def test_a_client_with_a_known_certificate_is_answered(self, address, pair):
        key, certificate = pair
        with connected(address, grpc.ssl_channel_credentials(certificate, key, certificate)) as stubs:
            assert stubs.predict({"x": X})["y"].tolist() == X.tolist()

    def test_a_pair_that_does_not_fit_is_told_as_such_and_not_as_a_port_in_use(self, pair):
        for key, certificate in ((b"junk", b"junk"), (pair[0], self_signed()[1]), (b"junk", pair[1])):
            with pytest.raises(
                InputError, match="--ssl_config_file must hold a private key, its certificate"
            ):
                listen_once("127.0.0.1", free_port(), TlsSettings(key, certificate))

    def test_without_client_verify_a_client_needs_no_certificate(self, pair):
        async def check():
            port = free_port()
            server = GrpcServer(None, "127.0.0.1", port, TlsSettings(*pair))
            await server.start()
            try:
                credentials = grpc.ssl_channel_credentials(pair[1])
                async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
                    health = health_pb2_grpc.HealthStub(channel)
                    return await health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            finally:
                await server.stop(0)

        assert asyncio.run(check()).status == health_pb2.HealthCheckResponse.SERVING

    def test_others_are_not(self, address, pair):
        other_key, other = self_signed()
        for credentials in (
            None,
            grpc.ssl_channel_credentials(pair[1]),
            grpc.ssl_channel_credentials(pair[1], other_key, other),
            grpc.ssl_channel_credentials(other, *pair),
        ):
            with connected(address, credentials) as stubs:
                assert failure(stubs.predict, {"x": X}, timeout=5)[0] == "UNAVAILABLE"


def listen_once(host, port, tls=None):
    async def listen():
        GrpcServer(None, host, port, tls)

    asyncio.run(listen())


def test_a_port_that_cannot_be_had_is_told_with_its_reason():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Cannot listen on 127.0.0.1:{port}: Address already in use"):
            listen_once("127.0.0.1", port)
    with pytest.raises(
        InputError, match="Cannot listen on 203.0.113.5:8500: Cannot assign requested address"
    ):
        listen_once("203.0.113.5", 8500)
