"""Dynamic batching: requests that come while the machine is busy are answered by one call of the graph.

As TensorFlow Serving's batching session: joined along the first dimension, split again afterwards, within
the limits of ``config_texts.BatchingParameters``. Everything here runs on the event loop's thread; only the
graph runs on others.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graftflow.serving import monitoring
from graftflow.serving.config_texts import BatchingParameters
from graftflow.serving.json_inputs import Tensor
from graftflow.serving.status import Code, ServingError, invalid

if TYPE_CHECKING:
    from graftflow.serving.saved_models import LoadedVersion

_PADDED_VALUES = 2**24  # of a tensor filled up to the largest shape; beyond, requests run apart

Tensors = Mapping[str, Tensor]
# Requests of one key can be joined: the same version, signature, outputs, dtypes and shapes of one example.
_Key = tuple[object, ...]


@dataclass(eq=False)
class _Task:
    inputs: Tensors
    size: int
    deadline: float
    since: float
    done: "asyncio.Future[dict[str, Tensor]]"


@dataclass(eq=False)
class _Queue:
    version: "LoadedVersion"
    signature: str
    outputs: Sequence[str] | None
    name: str
    tasks: deque[_Task]


class Batcher:
    """Joins requests; one for a server.

    Args:
        parameters: the limits.
    """

    def __init__(self, parameters: BatchingParameters) -> None:
        self._parameters = parameters
        self._threads = ThreadPoolExecutor(parameters.num_batch_threads, thread_name_prefix="batch")
        self._free = parameters.num_batch_threads
        self._queues: dict[_Key, _Queue] = {}
        self._waking: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._running: set[asyncio.Task[None]] = set()

    async def run(
        self,
        name: str,
        version: "LoadedVersion",
        signature: str,
        inputs: Tensors,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Tensor]:
        """Run a signature on a request, with others where there are any.

        Args:
            name: the model's name, for the metrics.
            version: what to run.
            signature: its signature's name.
            inputs: tensors by name; all share their first dimension.
            outputs: those wanted; ``None`` for all.
            timeout: seconds that this request may take, waiting included.

        Returns:
            The request's own part of the outputs.

        Raises:
            ServingError: INVALID_ARGUMENT where the request cannot be joined with others or is larger than a
                batch, UNAVAILABLE where the queue is full, DEADLINE_EXCEEDED, else what the graph raised on
                this request alone.
        """
        size = self._size(inputs)
        key = self._key(version, signature, inputs, outputs)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(version, signature, outputs, name, deque())
        limit = self._parameters.max_enqueued_batches * self._parameters.max_batch_size
        if sum(task.size for task in queue.tasks) + size > limit:
            raise ServingError(
                Code.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full"
            )
        now = time.monotonic()
        done: asyncio.Future[dict[str, Tensor]] = asyncio.get_running_loop().create_future()
        deadline = now + timeout if timeout is not None else float("inf")
        task = _Task(inputs, size, deadline, now, done)
        queue.tasks.append(task)
        self._soon()
        try:
            return await asyncio.wait_for(done, timeout)
        except TimeoutError:
            raise ServingError(Code.DEADLINE_EXCEEDED, "Run timed out in the batch's queue") from None
        finally:
            self._drop(key, queue, task)

    def _drop(self, key: _Key, queue: _Queue, task: _Task) -> None:
        """Take a request that was given up out of its queue: it must not keep others out."""
        if task in queue.tasks:
            queue.tasks.remove(task)
            if not queue.tasks and self._queues.get(key) is queue:
                del self._queues[key]

    def close(self) -> None:
        """Wait for the batches that run."""
        if self._waking is not None:
            self._waking.cancel()
        self._threads.shutdown(wait=True)

    def _size(self, inputs: Tensors) -> int:
        sizes = {tensor.shape[0] if tensor.ndim else -1 for tensor in inputs.values()}
        if -1 in sizes or not sizes:
            raise invalid("Batching Run() input tensors must have at least one dimension")
        if len(sizes) > 1:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        size = sizes.pop()
        if size > self._parameters.max_batch_size:
            raise invalid(
                f"Task size {size} is larger than maximum input batch size {self._parameters.max_batch_size}"
            )
        return size

    def _key(
        self, version: "LoadedVersion", signature: str, inputs: Tensors, outputs: Sequence[str] | None
    ) -> _Key:
        pads = self._parameters.pad_variable_length_inputs
        shapes = tuple(
            (name, inputs[name].dtype.str, inputs[name].ndim if pads else inputs[name].shape[1:])
            for name in sorted(inputs)
        )
        return (id(version), signature, None if outputs is None else tuple(outputs), shapes)

    def _soon(self) -> None:
        """Start batches once the requests that are being read now have joined their queues."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Start what may start: a full batch, or one whose first request has waited long enough."""
        self._scheduled = False
        now = time.monotonic()
        wait = self._parameters.batch_timeout_micros / 1e6
        soonest = float("inf")
        for key, queue in sorted(self._queues.items(), key=lambda item: item[1].tasks[0].since):
            while self._free and queue.tasks:
                full = sum(task.size for task in queue.tasks) >= self._parameters.max_batch_size
                due = queue.tasks[0].since + wait
                if not full and due > now:
                    soonest = min(soonest, due)
                    break
                self._start(queue)
            if not queue.tasks:
                del self._queues[key]
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        if self._free and soonest < float("inf"):
            self._waking = asyncio.get_running_loop().call_later(max(0.0, soonest - now), self._dispatch)

    def _start(self, queue: _Queue) -> None:
        batch: list[_Task] = []
        size = 0
        while queue.tasks and size + queue.tasks[0].size <= self._parameters.max_batch_size:
            task = queue.tasks.popleft()
            if task.done.done():  # given up in this very moment
                continue
            batch.append(task)
            size += task.size
        if not batch:
            return
        self._free -= 1
        running = asyncio.get_running_loop().create_task(self._run(queue, batch))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _run(self, queue: _Queue, batch: list[_Task]) -> None:
        now = time.monotonic()
        for task in batch:
            monitoring.QUEUEING_LATENCY.observe(1e6 * (now - task.since))
        monitoring.BATCH_SIZE.labels(queue.name).observe(sum(task.size for task in batch))
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._threads, self._work, queue, batch, now)
            for task, result in zip(batch, results, strict=True):
                if task.done.done():
                    continue
                if isinstance(result, ServingError):
                    task.done.set_exception(result)
                else:
                    task.done.set_result(result)
        finally:
            for task in batch:
                if not task.done.done():
                    task.done.set_exception(ServingError(Code.INTERNAL, "The batch failed"))
            self._free += 1
            self._dispatch()

    def _work(self, queue: _Queue, batch: list[_Task], now: float) -> list[dict[str, Tensor] | ServingError]:
        """Run a batch; where it fails, its halves, so that in the end an error is its own request's.

        One bad request among n costs two runs for every doubling of n; each request alone would be n.
        """
        try:
            return list(self._joined(queue, batch, now))
        except ServingError as error:
            if len(batch) == 1:
                return [error]
        half = len(batch) // 2
        return [
            result
            for part in (batch[:half], batch[half:])
            for result in self._work(queue, part, time.monotonic())
        ]

    def _joined(self, queue: _Queue, batch: list[_Task], now: float) -> list[dict[str, Tensor]]:
        latest = max(task.deadline for task in batch)
        timeout = max(1e-3, latest - now) if latest < float("inf") else None
        size = sum(task.size for task in batch)
        allowed = next((n for n in self._parameters.allowed_batch_sizes if n >= size), size)
        inputs = {
            name: _join([task.inputs[name] for task in batch], allowed - size) for name in batch[0].inputs
        }
        outputs = queue.version.run(queue.signature, inputs, queue.outputs, timeout)
        for name, tensor in outputs.items():
            if not tensor.ndim or tensor.shape[0] != allowed:
                if len(batch) == 1 and allowed == size:
                    return [outputs]
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Batched output tensor {name} has 0th dimension size "
                    f"{tensor.shape[0] if tensor.ndim else 'none'}, expected {allowed}",
                )
        parts, start = [], 0
        for task in batch:
            parts.append({name: tensor[start : start + task.size] for name, tensor in outputs.items()})
            start += task.size
        return parts


def _join(tensors: list[Tensor], fill: int) -> Tensor:
    """Join along the first dimension, padded to the largest of the others, and add copies of the last example."""
    if len(tensors) == 1 and not fill:
        return tensors[0]
    inner = {tensor.shape[1:] for tensor in tensors}
    if len(inner) > 1:
        largest = tuple(max(sizes) for sizes in zip(*inner, strict=True))
        # One wide request and many narrow ones must not take memory that neither asked for.
        if math.prod(largest) * sum(len(tensor) for tensor in tensors) > _PADDED_VALUES:
            raise ServingError(Code.RESOURCE_EXHAUSTED, "The shapes of the requests are too far apart")
        tensors = [_pad(tensor, largest) for tensor in tensors]
    if fill:
        tensors = [*tensors, np.repeat(tensors[-1][-1:], fill, axis=0)]
    return np.concatenate(tensors)


def _pad(tensor: Tensor, inner: tuple[int, ...]) -> Tensor:
    """Fill up behind the values with the first of them, as TensorFlow Serving does."""
    if tensor.shape[1:] == inner:
        return tensor
    if not tensor.size:
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    padded = np.full((tensor.shape[0], *inner), tensor.flat[0], tensor.dtype)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded
