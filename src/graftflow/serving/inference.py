"""The operations of TensorFlow Serving's PredictionService on a set of models, for REST and gRPC alike."""

import asyncio
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from graftflow.serving import classifications, examples, monitoring
from graftflow.serving.batching import Batcher
from graftflow.serving.config_texts import BatchingParameters
from graftflow.serving.json_inputs import Tensor
from graftflow.serving.model_sets import ModelSet, ModelSpec
from graftflow.serving.status import Code, ServingError, invalid

if TYPE_CHECKING:
    from graftflow.serving.saved_models import LoadedVersion

_LARGE = 4 * 2**20  # bytes of a request


class Inference:
    """Runs models on threads of its own; the event loop only waits.

    Args:
        models: what is served.
        threads: how many requests run at a time without batching.
        batching: how requests are joined; ``None`` for not at all.
    """

    def __init__(self, models: ModelSet, threads: int, batching: BatchingParameters | None) -> None:
        self.models = models
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="run")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._batcher = Batcher(batching) if batching is not None else None
        self._used: weakref.WeakSet[LoadedVersion] = weakref.WeakSet()

    def known(self, name: str) -> str:
        """Return a model's name, or an empty one where it is not configured.

        For the metrics: a series of any name that is sent would fill the memory.
        """
        return name if name in self.models.names() else ""

    async def predict(
        self,
        spec: ModelSpec,
        version: "LoadedVersion",
        inputs: Mapping[str, Tensor],
        output_filter: Sequence[str] = (),
        timeout: float | None = None,
        api: str = "Predict",
    ) -> dict[str, Tensor]:
        """Run a signature.

        Args:
            spec: what was asked for.
            version: the version that answers, of :meth:`ModelSet.get`.
            inputs: tensors by input name.
            output_filter: names of the outputs wanted; none for all.
            timeout: seconds that it may take.
            api: the call's name, for the metrics.

        Returns:
            Outputs by name.

        Raises:
            ServingError: INVALID_ARGUMENT where names do not fit the signature, DEADLINE_EXCEEDED, else
                what the graph raised.
        """
        name = signature_key(spec)
        wanted = version.signature(name)
        check_inputs(inputs, wanted.inputs)
        outputs = _outputs(output_filter, wanted.outputs)
        self._used.add(version)
        started = time.perf_counter()
        try:
            if self._batcher is not None:
                return await self._batcher.run(spec.name, version, name, inputs, outputs, timeout)
            end = None if timeout is None else time.monotonic() + timeout
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._threads, _run_until, end, version, name, inputs, outputs)
            # The graph gives up by itself; waiting for a free thread does not.
            return await asyncio.wait_for(running, None if timeout is None else timeout + 1)
        except TimeoutError:
            raise ServingError(
                Code.DEADLINE_EXCEEDED, "The request waited too long for a free thread"
            ) from None
        finally:
            monitoring.GRAPH_RUNS.inc()
            monitoring.RUNTIME_LATENCY.labels(spec.name, api, "TF1").observe(
                1e6 * (time.perf_counter() - started)
            )

    async def classify(
        self, spec: ModelSpec, version: "LoadedVersion", given: Any, timeout: float | None = None
    ) -> Any:
        """Answer Classify for a ``tensorflow.serving.Input``; returns a ``ClassificationResult``.

        Raises:
            ServingError: as :meth:`predict`; INVALID_ARGUMENT where the signature is none for Classify.
        """
        definition = classifications.find_signature(version.signature_defs, spec.signature_name)
        call = classifications.classification_request(definition)
        serialized = examples.serialized_examples(given)
        outputs = await self._on_examples(spec, version, call, serialized, timeout, "Classify")
        return classifications.classification_result(outputs, len(serialized))

    async def regress(
        self, spec: ModelSpec, version: "LoadedVersion", given: Any, timeout: float | None = None
    ) -> Any:
        """Answer Regress for a ``tensorflow.serving.Input``; returns a ``RegressionResult``.

        Raises:
            ServingError: as :meth:`predict`; INVALID_ARGUMENT where the signature is none for Regress.
        """
        definition = classifications.find_signature(version.signature_defs, spec.signature_name)
        call = classifications.regression_request(definition)
        serialized = examples.serialized_examples(given)
        outputs = await self._on_examples(spec, version, call, serialized, timeout, "Regress")
        return classifications.regression_result(outputs, len(serialized))

    async def multi_inference(
        self, spec: ModelSpec, version: "LoadedVersion", request: Any, timeout: float | None = None
    ) -> Any:
        """Answer a ``MultiInferenceRequest``, whose tasks share one model and one input.

        Raises:
            ServingError: as :meth:`predict`; INVALID_ARGUMENT where the tasks do not fit each other.
        """
        tasks = classifications.check_multi_inference(request, version.signature_defs)
        serialized = examples.serialized_examples(request.input)
        runs = [
            self._on_examples(
                ModelSpec(spec.name, spec.version, spec.label, task.signature),
                version,
                task.call,
                serialized,
                timeout,
                "MultiInference",
            )
            for task in tasks
        ]
        answers = await asyncio.gather(*runs)
        return classifications.multi_inference_response(
            tasks,
            answers,
            len(serialized),
            model_name=spec.name,
            version=version.number,
        )

    async def _on_examples(
        self,
        spec: ModelSpec,
        version: "LoadedVersion",
        call: classifications.Call,
        serialized: Tensor,
        timeout: float | None,
        api: str,
    ) -> dict[str, Tensor]:
        inputs = {call.input_key: serialized}
        return await self.predict(spec, version, inputs, call.output_keys, timeout, api)

    async def elsewhere(self, work: Any, *arguments: Any, size: int = 0) -> Any:
        """Run a function on one of the threads: what would hold up the event loop.

        Args:
            work: the function.
            arguments: its arguments.
            size: bytes that it reads; many take seconds, for which the threads of the graph are not there.
        """
        threads = self._readers if size > _LARGE else self._threads
        return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)

    def close(self) -> None:
        """Give up what still runs, and wait for its end: a graph could run for ever."""
        for version in list(self._used):
            version.close()
        if self._batcher is not None:
            self._batcher.close()
        for threads in (self._threads, self._readers):
            threads.shutdown(wait=True, cancel_futures=True)


def _run_until(
    end: float | None,
    version: "LoadedVersion",
    name: str,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str] | None,
) -> dict[str, Tensor]:
    """Run a signature until a time of ``time.monotonic``, which may have passed in waiting for the thread."""
    timeout = None if end is None else end - time.monotonic()
    if timeout is not None and timeout <= 0:
        raise ServingError(Code.DEADLINE_EXCEEDED, "The request waited too long for a free thread")
    return version.run(name, inputs, outputs, timeout)


def signature_key(spec: ModelSpec) -> str:
    """Return the key of the signature asked for."""
    return spec.signature_name or "serving_default"


def check_inputs(given: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Raise ServingError unless a request gives exactly a signature's inputs."""
    if given.keys() == wanted.keys():
        return
    extra, missing = sorted(given.keys() - wanted.keys()), sorted(wanted.keys() - given.keys())
    if len(given) == len(wanted):
        raise invalid(
            f"input tensor alias not found in signature: {extra[0]}. "
            f"Inputs expected to be in the set {{{','.join(sorted(wanted))}}}."
        )
    raise invalid(
        f"input size does not match signature: {len(given)}!={len(wanted)} "
        f"len({{{','.join(sorted(given))}}}) != len({{{','.join(sorted(wanted))}}}). "
        f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
    )


def _outputs(wanted: Sequence[str], known: Mapping[str, object]) -> list[str] | None:
    seen: set[str] = set()
    for alias in wanted:
        if alias not in known:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{','.join(sorted(known))}}}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return list(wanted) or None


@contextmanager
def counted(model: str, api: str, entrypoint: str) -> Iterator[None]:
    """Count a request with its status and time.

    Args:
        model: the model's name, of :meth:`Inference.known`.
        api: the call's name, as the entrypoint spells it.
        entrypoint: ``"REST"`` or ``"GRPC"``.
    """
    started, status = time.perf_counter(), "OK"
    monitoring.IN_FLIGHT.inc()
    try:
        yield
    except ServingError as error:
        status = error.code.name
        raise
    except asyncio.CancelledError:  # the client hung up
        status = "CANCELLED"
        raise
    except BaseException:
        status = "INTERNAL"
        raise
    finally:
        monitoring.IN_FLIGHT.dec()
        monitoring.REQUESTS.labels(model, status).inc()
        if status == "OK":
            monitoring.REQUEST_LATENCY.labels(model, api, entrypoint).observe(
                1e6 * (time.perf_counter() - started)
            )
