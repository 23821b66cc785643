"""The life of the real server process: configuration, versions, warm-up, take-over, drain and memory."""

import shutil
import signal
import threading
import time

import grpc
import numpy as np
import psutil
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.unit.grpc_calls import (
    SECONDS,
    classify_request,
    connected,
    example_input,
    failure,
    fill_spec,
    models_config,
    predict_request,
    regress_request,
)
from tests.unit.serving_model import running_server
from tests.unit.tensor_models import RECORDS, install, save_versions

X = np.array([[1.0, 2.0]], np.float32)
ALL = "model_version_policy { all {} }"


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    return save_versions(tmp_path_factory.getbasetemp() / "tensor_models")


class Life:
    """A server that follows a configuration file which is not there yet; tests add and remove models."""

    def __init__(self, folder):
        self.folder, self.models = folder, {}

    @property
    def config(self):
        return self.folder / "models.config"

    def list(self, **models):
        """Write the configuration: each model's name with the rest of its entry, its base path aside."""
        entries = {name: f'base_path: "{self.folder / name}" {rest}' for name, rest in models.items()}
        self.write(models_config(**entries))

    def write(self, text):
        aside = self.config.with_suffix(".tmp")
        aside.write_text(text)
        aside.rename(self.config)

    def states(self, name):
        answer = requests.get(f"{self.server.url}/v1/models/{name}", timeout=SECONDS).json()
        return {int(s["version"]): s["state"] for s in answer.get("model_version_status", [])}

    def until(self, name, states):
        self.server.wait(lambda: self.states(name) == states)

    def answers(self, name="toy", **spec):
        """The version that answers, by its factor."""
        return int(self.stubs.predict({"x": X}, "", "y", name=name, **spec)["y"][0, 0])


def code_of(life, name, **spec):
    """How a request ends."""
    try:
        life.answers(name, **spec)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    life = Life(tmp_path_factory.mktemp("life"))
    flags = (
        f"--model_config_file={life.config}",
        "--model_config_file_poll_wait_seconds=0.1",
        "--max_num_load_retries=2",
        "--load_retry_interval_micros=200000",
    )
    with running_server(None, life.folder / "log", *flags) as life.server:
        with connected(life.server.address) as life.stubs:
            yield life
        assert "Traceback" not in life.server.log()


def test_a_configuration_may_come_after_the_server(life, exports):
    assert f"waiting for {life.config}" in life.server.log()
    assert failure(life.answers) == ("NOT_FOUND", "Servable not found for request: Latest(toy)")
    install(exports / "1", life.folder / "toy", 1)
    life.list(toy="")
    life.until("toy", {1: "AVAILABLE"})
    assert life.answers() == 1


def test_policies_say_which_versions_serve(life, exports):
    for number in (1, 2, 10):
        install(exports / ("2" if number == 2 else "1"), life.folder / "policy", number)
    specific = "model_version_policy { specific { versions: 1 versions: 2 } }"
    for rest, available in (
        ("", {10}),  # by number, not by name
        ("model_version_policy { latest { num_versions: 2 } }", {2, 10}),
        (ALL, {1, 2, 10}),
        (specific, {1, 2}),
        ("model_version_policy { specific { versions: 2 } }", {2}),
    ):
        life.list(toy="", policy=rest)

        def settled(available=available):
            states = life.states("policy")
            return {n for n, state in states.items() if state == "AVAILABLE"} == available

        life.server.wait(settled)
    assert life.states("policy") == {1: "END", 2: "AVAILABLE", 10: "END"}
    assert life.answers("policy") == 2
    assert failure(life.answers, "policy", version=10)[0] == "NOT_FOUND"
    life.list(toy="", policy="model_version_policy { specific { versions: 2 versions: 3 } }")
    life.server.wait(lambda: "waiting for 3 of policy" in life.server.log())
    assert life.answers("policy") == 2


def test_labels_move_with_the_configuration(life, exports):
    for number in (1, 2):
        install(exports / str(number), life.folder / "labelled", number)
    label = 'version_labels {{ key: "stable" value: {} }}'
    for number in (1, 2, 1):
        life.list(toy="", labelled=f"{ALL} {label.format(number)}")
        life.server.wait(
            lambda number=number: (
                code_of(life, "labelled", label="stable") == "OK"
                and life.answers("labelled", label="stable") == number
            )
        )


def test_a_text_that_breaks_a_rule_changes_nothing_and_a_model_no_longer_listed_goes(life, exports):
    install(exports / "2", life.folder / "leaving", 1)
    life.list(toy="", leaving="")
    life.until("leaving", {1: "AVAILABLE"})
    for text, reason in (
        ("model_config_list { config {", "does not parse"),
        ('model_config_list { config { name: "a" } }', "must have a name and a base_path"),
        ("", "must hold a model_config_list"),
    ):
        before = life.server.log().count("changes nothing")
        life.write(text)
        life.server.wait(lambda before=before: life.server.log().count("changes nothing") > before)
        assert reason in life.server.log().splitlines()[-1]
        assert (life.answers(), life.answers("leaving")) == (1, 2)
    life.config.unlink()
    life.server.wait(lambda: "is gone: what it listed stays" in life.server.log())
    assert life.answers("leaving") == 2
    life.list(toy="")
    life.server.wait(lambda: code_of(life, "leaving") == "NOT_FOUND")
    assert failure(life.stubs.status, name="leaving")[0] == "NOT_FOUND"
    assert life.answers() == 1


def test_a_version_that_does_not_load_is_tried_again_and_says_why(life, exports):
    store = life.folder / "retried"
    install(exports / "1", store, 1)
    life.list(toy="", retried="")
    life.until("retried", {1: "AVAILABLE"})
    aside = life.folder / "broken.tmp"
    shutil.copytree(exports / "2", aside)
    index = aside / "variables" / "variables.index"
    content = index.read_bytes()
    index.write_bytes(b"broken")
    aside.rename(store / "2")
    tried = "loading version 2 of retried"
    life.server.wait(lambda: life.server.log().count(tried) == 3)
    time.sleep(0.6)
    assert life.server.log().count(tried) == 3  # once and two retries
    assert life.answers("retried") == 1
    (version, state, code, reason), old = life.stubs.status(name="retried")
    assert (version, state) == (2, "END")
    assert code != 0
    assert reason
    assert "Traceback" not in reason
    assert old == (1, "AVAILABLE", 0, "")
    (store / "2" / "variables" / "variables.index").write_bytes(content)  # mended: tried at once
    life.until("retried", {1: "END", 2: "AVAILABLE"})
    assert life.answers("retried") == 2


def write_log(version, *entries):
    """Write warm-up requests of every kind into a version's folder."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    folder = version / "assets.extra"
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for kind, request in entries:
            log = prediction_log_pb2.PredictionLog()
            getattr(log, kind).request.CopyFrom(request)
            writer.write(log.SerializeToString())


def test_warm_up_requests_of_every_kind_are_replayed(life, exports):
    from tensorflow_serving.apis import inference_pb2

    tasks = inference_pb2.MultiInferenceRequest(input=example_input(RECORDS))
    task = tasks.tasks.add(method_name="tensorflow/serving/regress")
    fill_spec(task.model_spec, signature="regress")
    version = life.folder / "warm.tmp"
    shutil.copytree(exports / "1", version)
    good = (
        ("predict_log", predict_request({"x": X})),
        ("predict_log", predict_request({"x": X}, "", "total")),
        ("classify_log", classify_request(RECORDS)),
        ("regress_log", regress_request(RECORDS)),
        ("multi_inference_log", tasks),
    )
    write_log(version, *good)
    install(version, life.folder / "warm", 1)
    life.list(toy="", warm="")
    life.until("warm", {1: "AVAILABLE"})
    assert "version 1: replayed 5 warm-up requests" in life.server.log()
    for number, (kind, request), said in (
        (2, ("predict_log", predict_request({"x": X}, "no")), 'signature name: "no" not found'),
        (
            3,
            ("predict_log", predict_request({"a": X[0], "b": X[0]}, "divide")),
            "int32 but float is provided",
        ),
        (4, ("predict_log", predict_request({"x": X, "extra": X})), "Inputs expected: x. Received: "),
        (5, ("classify_log", classify_request(RECORDS, "no")), 'signature name: "no" not found'),
    ):
        write_log(version, good[0], (kind, request))
        install(version, life.folder / "warm", number)
        life.server.wait(lambda number=number: life.states("warm").get(number) == "END")
        (_, state, code, reason), *_ = life.stubs.status(name="warm", version=number)
        assert state == "END"
        assert code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert reason.startswith("warm-up request 2 failed: ")
        assert said in reason
        assert life.states("warm")[1] == "AVAILABLE"
    (version / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"junk" * 50)
    install(version, life.folder / "warm", 6)
    life.server.wait(lambda: life.states("warm").get(6) == "END")
    assert life.answers("warm") == 1


def test_a_version_that_is_loading_is_told_so_while_the_old_one_answers(life, exports):
    install(exports / "1", life.folder / "slow", 1)
    life.list(toy="", slow="")
    life.until("slow", {1: "AVAILABLE"})
    version = life.folder / "slow.tmp"
    shutil.copytree(exports / "2", version)
    write_log(version, ("predict_log", predict_request({"turns": turns_of(life.stubs, 2.0)}, "spin")))
    install(version, life.folder / "slow", 2)
    life.until("slow", {1: "AVAILABLE", 2: "LOADING"})
    assert life.answers("slow") == 1
    assert life.stubs.status(name="slow", version=2) == [(2, "LOADING", 0, "")]
    assert failure(life.answers, "slow", version=2)[0] == "NOT_FOUND"
    life.until("slow", {1: "END", 2: "AVAILABLE"})
    assert life.answers("slow") == 2


def large_version(folder):
    """A model with a variable of 50 MB."""
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self):
            self.table = tf.Variable(tf.zeros((12_500_000,)))

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
        def look(self, x):
            return {"y": x + self.table[0]}

    module = Module()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.look})
    return folder


def test_the_memory_of_unloaded_versions_is_given_back(life, tmp_path):
    version = large_version(tmp_path / "large")
    process = psutil.Process(life.server.process.pid)
    resident = []
    for number in range(1, 13):
        install(version, life.folder / "large", number)
        life.list(toy="", large="")
        life.server.wait(lambda number=number: life.states("large").get(number) == "AVAILABLE")
        life.server.wait(lambda number=number: list(life.states("large").values()).count("AVAILABLE") == 1)
        life.answers("large")
        resident.append(process.memory_info().rss / 1e6)
        if number > 2:
            shutil.rmtree(life.folder / "large" / str(number - 2))
    assert resident[-1] - resident[1] < 100, resident


class Load:
    """Clients that ask one server all the time, and what came of it."""

    def __init__(self, stubs, clients=3):
        self.versions, self.failures, self.stop = [], [], threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(stubs,)) for _ in range(clients)]

    def _ask(self, stubs):
        while not self.stop.is_set():
            try:
                answer = stubs.prediction.Predict(predict_request({"x": X}, "", "y"), timeout=SECONDS)
                self.versions.append(answer.model_spec.version.value)
                assert answer.outputs["y"].float_val[0] == answer.model_spec.version.value
            except Exception as error:
                self.failures.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("batching", [(), ("--enable_batching",)], ids=["plain", "batching"])
def test_a_new_version_takes_over_under_load_and_a_drain_answers_what_runs(exports, tmp_path, batching):
    store = tmp_path / "toy"
    install(exports / "1", store, 1)
    with running_server(store, tmp_path / "log", *batching) as server, connected(server.address) as stubs:
        with Load(stubs) as load:
            server.wait(lambda: len(load.versions) > 50)
            install(exports / "2", store, 2)
            server.wait(lambda: 2 in load.versions)
            after = len(load.versions)
            server.wait(lambda: len(load.versions) > after + 50)
        assert load.failures == []
        first = load.versions.index(2)
        assert set(load.versions[first + 3 :]) == {2}  # answers of three clients may cross

        turns = turns_of(stubs, 1.5)
        health = health_pb2_grpc.HealthStub(stubs.channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        serving = health_pb2.HealthCheckResponse.SERVING
        assert next(watched).status == serving
        by_grpc = stubs.prediction.Predict.future(predict_request({"turns": turns}, "spin"), timeout=60)
        by_rest = []
        # The same number: on a busy machine both may go in one batch, which turns until its last one has done.
        body = {"inputs": turns.tolist(), "signature_name": "spin"}
        rest = threading.Thread(
            target=lambda: by_rest.append(
                requests.post(f"{server.url}/v1/models/toy:predict", json=body, timeout=60)
            )
        )
        rest.start()
        time.sleep(0.5)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert list(watched) == []  # and the stream ends, without an error
        assert by_grpc.result().outputs["count"].int64_val[0] == turns[0]
        rest.join()
        assert by_rest[0].json()["outputs"]["count"] == [int(turns[0])]
        assert server.process.wait(25) == 0
        assert time.monotonic() - started < 25
        assert "Traceback" not in server.log()
        assert failure(stubs.predict, {"x": X}, timeout=5)[0] == "UNAVAILABLE"


def turns_of(stubs, seconds):
    """How often the signature ``spin`` must turn to take so long here and now."""
    for _ in range(2):  # the first one also loads
        started = time.monotonic()
        stubs.predict({"turns": np.array([100_000])}, "spin", timeout=60)
        taken = time.monotonic() - started
    return np.array([int(100_000 * seconds / taken)])
