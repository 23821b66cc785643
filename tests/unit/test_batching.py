"""Dynamic batching: on the real server process, and the joining itself."""

import asyncio
import time

import numpy as np
import pytest

from graftflow.serving.batching import Batcher
from graftflow.serving.config_texts import BatchingParameters
from graftflow.serving.status import Code, ServingError
from tests.unit.grpc_calls import (
    SECONDS,
    classify_request,
    connected,
    failure,
    models_config,
    predict_request,
)
from tests.unit.serving_model import picture, running_server
from tests.unit.tensor_models import RECORDS, install, save_versions

FOREVER = np.array([2**62])
WAIT = 0.4  # seconds that the server's batches wait for more
MAX = 8


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    return save_versions(tmp_path_factory.getbasetemp() / "tensor_models")


@pytest.fixture(scope="module")
def server(exports, tmp_path_factory):
    """Versions 1 and 2; batches of 4 or 8 on one thread, and one batch that may wait."""
    folder = tmp_path_factory.mktemp("batching")
    for number in (1, 2):
        install(exports / str(number), folder / "toy", number)
    (folder / "models.config").write_text(
        models_config(toy=f'base_path: "{folder / "toy"}" model_version_policy {{ all {{}} }}')
    )
    (folder / "batching.config").write_text(
        f"max_batch_size {{ value: {MAX} }} batch_timeout_micros {{ value: {int(1e6 * WAIT)} }} "
        "max_enqueued_batches { value: 1 } num_batch_threads { value: 1 } "
        "allowed_batch_sizes: 4 allowed_batch_sizes: 8 pad_variable_length_inputs: true"
    )
    flags = (
        f"--model_config_file={folder / 'models.config'}",
        "--enable_batching",
        f"--batching_parameters_file={folder / 'batching.config'}",
    )
    with running_server(None, folder / "log", *flags) as running:
        with connected(running.address) as stubs:
            stubs.predict({"x": rows(1)})
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def stubs(server):
    with connected(server.address) as found:
        yield found


def rows(count, first=0):
    """``count`` rows for the default signature, each another."""
    return np.arange(first, first + 2 * count, dtype=np.float32).reshape(-1, 2)


def together(stubs, *requests_):
    """Send requests at the same time; their answers as lists by output, or their errors."""
    import tensorflow as tf

    calls = [stubs.prediction.Predict.future(request, timeout=SECONDS) for request in requests_]
    return [
        call.exception(SECONDS)
        or {name: tf.make_ndarray(proto).tolist() for name, proto in call.result().outputs.items()}
        for call in calls
    ]


def test_requests_join_and_each_gets_its_own_rows(stubs):
    given = [rows(2, first) for first in (0, 10, 20, 30)]
    answers = together(stubs, *(predict_request({"x": x}, version=1) for x in given))
    for x, answer in zip(given, answers, strict=True):
        assert answer["y"] == x.tolist()
        assert answer["total"] == x.sum(1).tolist()
        assert answer["size"] == [MAX, MAX]


def test_rest_and_grpc_join(server, stubs):
    import requests

    call = stubs.prediction.Predict.future(predict_request({"x": rows(4)}), timeout=SECONDS)
    body = {"instances": rows(4, 100).tolist()}
    answer = requests.post(f"{server.url}/v1/models/toy:predict", json=body, timeout=SECONDS).json()
    assert [row["size"] for row in answer["predictions"]] == [MAX] * 4
    assert [row["y"] for row in answer["predictions"]] == (2 * rows(4, 100)).tolist()
    assert list(call.result().outputs["size"].int_val) == [MAX] * 4


def test_filling_up_to_an_allowed_size_is_not_seen(stubs):
    for count, ran in ((1, 4), (3, 4), (4, 4), (5, 8), (8, 8)):
        answer = stubs.predict({"x": rows(count)}, version=1)
        np.testing.assert_array_equal(answer["y"], rows(count))
        assert answer["size"].tolist() == [ran] * count


def test_what_differs_is_not_mixed(stubs):
    """Versions, signatures and output filters: four rows each, which two would fill a batch."""
    x, numbers = rows(4), np.ones((4, 3), np.int32)
    answers = together(
        stubs,
        predict_request({"x": x}, "", "size", version=1),
        predict_request({"x": x}, "", "size", version=2),
        predict_request({"x": x}, "", "size", "y", version=2),
        predict_request({"row": numbers}, "widths", version=2),
    )
    assert [answer["size"] for answer in answers] == [[4] * 4] * 4
    assert [sorted(answer) for answer in answers[:3]] == [["size"], ["size"], ["size", "y"]]
    assert answers[2]["y"] == (2 * x).tolist()


def test_rows_of_unequal_length_are_filled_up_with_their_first_value(stubs):
    narrow, wide = np.array([[7, 2], [3, 4]], np.int32), np.full((2, 4), 5, np.int32)
    answers = together(
        stubs, predict_request({"row": narrow}, "widths"), predict_request({"row": wide}, "widths")
    )
    assert [answer["width"] for answer in answers] == [[4, 4], [4, 4]]
    assert [answer["sum"] for answer in answers] == [[7 + 2 + 14, 3 + 4 + 14], [20, 20]]
    assert [answer["size"] for answer in answers] == [[4, 4], [4, 4]]


def test_a_bad_picture_is_its_own_requests_error(stubs):
    images = [picture((10 * i, 0, 0), "PNG") for i in range(MAX)]
    good = [stubs.predict({"image": [image]}, "decode", "mean")["mean"].tolist() for image in images[:2]]
    images[5] = b"junk"
    answers = together(stubs, *(predict_request({"image": [i]}, "decode", "mean", "size") for i in images))
    bad = answers.pop(5)
    assert bad.code().name == "INVALID_ARGUMENT"
    assert "Unknown image file format" in bad.details()
    assert [answer["mean"] for answer in answers[:2]] == good
    assert [len(answer["mean"]) for answer in answers] == [1] * (MAX - 1)


def test_a_request_that_does_not_fit_a_batch_is_told(stubs):
    assert failure(stubs.predict, {"x": rows(MAX + 1)}) == (
        "INVALID_ARGUMENT",
        f"Task size {MAX + 1} is larger than maximum input batch size {MAX}",
    )
    numbers = {"a": np.ones(2, np.int32), "b": np.ones(3, np.int32)}
    assert failure(stubs.predict, numbers, "divide") == (
        "INVALID_ARGUMENT",
        "Batching Run() input tensors must have equal 0th-dimension size",
    )
    assert failure(stubs.predict, {"x": np.array(1, np.float32)}, "scalar") == (
        "INVALID_ARGUMENT",
        "Batching Run() input tensors must have at least one dimension",
    )


def test_an_output_without_the_batchs_rows_cannot_be_split(stubs):
    code, said = failure(stubs.predict, {"x": np.ones(3, np.float32)}, "scalar")
    assert (code, "Batched output tensor sum" in said) == ("FAILED_PRECONDITION", True)


def test_examples_go_through_batches_too(stubs):
    calls = [
        stubs.prediction.Classify.future(classify_request(RECORDS[:2], version=1), timeout=SECONDS)
        for _ in range(4)
    ]
    for call in calls:
        scores = [c.classes[1].score for c in call.result().result.classifications]
        assert scores == [2.0, 0.0]


def test_a_full_queue_is_unavailable_and_deadlines_hold_while_it_waits(stubs):
    busy = stubs.prediction.Predict.future(predict_request({"turns": FOREVER}, "spin"), timeout=WAIT + 3)
    time.sleep(WAIT + 0.5)  # it waits for others, then runs
    started = time.monotonic()
    request = predict_request({"x": rows(MAX)}, version=1)
    waiting = stubs.prediction.Predict.future(request, timeout=0.5)
    time.sleep(0.1)
    code, said = failure(stubs.predict, {"x": rows(1)}, version=1)
    assert (code, "queue" in said) == ("UNAVAILABLE", True)
    assert waiting.exception(SECONDS).code().name == "DEADLINE_EXCEEDED"
    assert 0.4 < time.monotonic() - started < 2
    time.sleep(0.1)
    # What was given up keeps nobody out, though the thread is still busy.
    again = stubs.prediction.Predict.future(request, timeout=SECONDS)
    assert busy.exception(SECONDS).code().name == "DEADLINE_EXCEEDED"
    assert again.result().outputs["size"].int_val[0] == MAX


def test_a_batch_waits_for_others_unless_it_is_full(stubs):
    def seconds(count):
        started = time.monotonic()
        stubs.predict({"x": rows(count)})
        return time.monotonic() - started

    assert seconds(1) >= WAIT
    assert min(seconds(MAX) for _ in range(5)) < WAIT
    first = stubs.prediction.Predict.future(predict_request({"x": rows(2)}), timeout=SECONDS)
    time.sleep(WAIT / 4)
    assert stubs.predict({"x": rows(3)})["size"].tolist() == [MAX] * 3
    assert list(first.result().outputs["size"].int_val) == [MAX] * 2


class Recorder:
    """Stands for a loaded version whose signature takes ``x`` and refuses the value 13."""

    def __init__(self, seconds=0.0):
        self.batches, self.seconds = [], seconds

    def run(self, signature, inputs, outputs=None, timeout=None):
        self.batches.append(inputs["x"].shape)
        time.sleep(self.seconds)
        if (inputs["x"] == 13).any():
            raise ServingError(Code.INVALID_ARGUMENT, "thirteen")
        return {"x": inputs["x"]}


def run_all(given, version, **parameters):
    """Run requests at once through a batcher of one thread; answers and errors in their order."""

    async def work():
        batcher = Batcher(BatchingParameters(num_batch_threads=1, **parameters))
        try:
            calls = (batcher.run("toy", version, "default", {"x": x}) for x in given)
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await asyncio.to_thread(batcher.close)

    return asyncio.run(work())


def test_one_bad_request_of_many_costs_few_runs():
    version = Recorder()
    given = [np.array([float(i)]) for i in range(64)]
    answers = run_all(given, version, max_batch_size=64, batch_timeout_micros=10**7)
    assert isinstance(answers[13], ServingError)
    del answers[13], given[13]
    assert [answer["x"].tolist() for answer in answers] == [x.tolist() for x in given]
    assert version.batches[0] == (64,)
    assert len(version.batches) <= 1 + 2 * 6


def test_shapes_are_joined_where_they_are_filled_up_and_only_within_bounds():
    shapes = [(1, 3), (1, 5), (1, 3)]
    for pads, expected in ((True, [(3, 5)]), (False, [(2, 3), (1, 5)])):
        version = Recorder()
        run_all(
            [np.zeros(shape) for shape in shapes], version,
            batch_timeout_micros=10**4, pad_variable_length_inputs=pads,
        )  # fmt: skip
        assert version.batches == expected
    far = [np.zeros((10_000, 1), np.float32), np.zeros((1, 2_000_000), np.float32)]  # 80 GB together
    version = Recorder()
    answers = run_all(
        far, version, max_batch_size=20_000, batch_timeout_micros=10**4, pad_variable_length_inputs=True
    )
    assert [answer["x"].shape for answer in answers] == [(10_000, 1), (1, 2_000_000)]
    empty = [np.zeros((1, 0), np.float32), np.ones((1, 2), np.float32)]
    answers = run_all(empty, Recorder(), batch_timeout_micros=10**4, pad_variable_length_inputs=True)
    assert [answer["x"].shape for answer in answers] == [(1, 0), (1, 2)]


def test_the_oldest_waits_shortest_and_nothing_is_lost():
    """Two hundred requests of random sizes and shapes: each gets its own, in batches within the limit."""
    random = np.random.default_rng(0)
    given = [
        np.full((size, width), float(20 + i))
        for i, (size, width) in enumerate(
            zip(random.integers(1, 9, 200), random.integers(1, 4, 200), strict=True)
        )
    ]
    version = Recorder()
    answers = run_all(given, version, max_batch_size=16, max_enqueued_batches=100)
    for x, answer in zip(given, answers, strict=True):
        np.testing.assert_array_equal(answer["x"], x)
    assert max(size for size, _ in version.batches) <= 16
    assert len(version.batches) < 120
    assert {width for _, width in version.batches} == {1, 2, 3}
    assert sum(size for size, _ in version.batches) == sum(len(x) for x in given)


def test_a_queue_forgets_what_was_given_up():
    async def work():
        version = Recorder(seconds=0.3)
        batcher = Batcher(BatchingParameters(num_batch_threads=1, max_batch_size=2, max_enqueued_batches=1))
        x = {"x": np.zeros(2)}
        first = asyncio.create_task(batcher.run("toy", version, "default", x))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(batcher.run("toy", version, "default", x))
        await asyncio.sleep(0)
        with pytest.raises(ServingError, match="queue"):
            await batcher.run("toy", version, "default", x)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        with pytest.raises(ServingError) as caught:
            await batcher.run("toy", version, "default", x, timeout=0.05)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        third = asyncio.create_task(batcher.run("toy", version, "default", x))
        await asyncio.gather(first, third)
        await asyncio.to_thread(batcher.close)
        return version.batches

    assert asyncio.run(work()) == [(2,), (2,)]
