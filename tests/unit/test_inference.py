"""The server's operations without its ports: what ends work that would not end."""

import asyncio
import threading
import time

import numpy as np
import pytest

from graftflow.serving.config_texts import BatchingParameters
from graftflow.serving.inference import Inference
from graftflow.serving.model_sets import ModelSet, ModelSpec
from graftflow.serving.status import Code, ServingError
from tests.unit.tensor_models import save_versions

FOREVER = {"turns": np.array([2**62])}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_versions(tmp_path_factory.getbasetemp() / "tensor_models") / "1"


@pytest.mark.parametrize("batching", [None, BatchingParameters()], ids=["plain", "batching"])
def test_closing_ends_a_graph_that_runs_for_ever(path, batching):
    from graftflow.serving.saved_models import LoadedVersion

    version = LoadedVersion(1, path)
    inference = Inference(ModelSet(LoadedVersion), 1, batching)
    errors = []

    async def ask():
        try:
            await inference.predict(ModelSpec("toy", signature_name="spin"), version, FOREVER)
        except ServingError as error:
            errors.append(error.code)

    asking = threading.Thread(target=asyncio.run, args=(ask(),))
    asking.start()
    time.sleep(0.5)
    assert asking.is_alive()
    started = time.monotonic()
    inference.close()
    asking.join(10)
    assert time.monotonic() - started < 5
    assert errors == [Code.CANCELLED]


def test_time_spent_in_waiting_for_a_thread_counts(path):
    """Two requests of half a second each on one thread: the second never runs."""
    from graftflow.serving.saved_models import LoadedVersion

    version = LoadedVersion(1, path)
    inference = Inference(ModelSet(LoadedVersion), 1, None)
    spec = ModelSpec("toy", signature_name="spin")

    async def ask():
        started = time.monotonic()
        calls = (inference.predict(spec, version, FOREVER, timeout=0.5) for _ in range(2))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return answers, time.monotonic() - started

    answers, taken = asyncio.run(ask())
    inference.close()
    assert [answer.code for answer in answers] == [Code.DEADLINE_EXCEEDED] * 2
    assert taken < 0.9
