"""What the server counts, under TensorFlow Serving's own names, for Prometheus to read.

The histograms are in microseconds, in buckets that grow by 1.8 from 10, as TensorFlow Serving's.
"""

import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = [10 * 1.8**k for k in range(33)]
_REGISTRY = CollectorRegistry()


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f":tensorflow:{name}", text, labels, registry=_REGISTRY)


def _latency(name: str, text: str, *labels: str) -> Histogram:
    return Histogram(f":tensorflow:{name}", text, labels, registry=_REGISTRY, buckets=_BUCKETS)


REQUESTS = _counter("serving:request_count", "The total number of requests.", "model_name", "status")
REQUEST_LATENCY = _latency(
    "serving:request_latency", "Time that a request took, in microseconds.", "model_name", "API", "entrypoint"
)
RUNTIME_LATENCY = _latency(
    "serving:runtime_latency", "Time that the graph took, in microseconds.", "model_name", "API", "runtime"
)
LOADS = _counter("cc:saved_model:load_attempt_count", "SavedModel loads.", "model_path", "status")
LOAD_LATENCY = _counter("cc:saved_model:load_latency", "Time that loads took, in microseconds.", "model_path")
WARM_UP = _latency(
    "serving:model_warmup_latency",
    "Time of replaying warm-up requests, in microseconds.",
    "model_path",
    "status",
)
GRAPH_RUNS = _counter("core:graph_runs", "Calls of a session.")
QUEUEING_LATENCY = _latency(
    "serving:batching_session:queuing_latency", "Time that requests waited for their batch, in microseconds."
)
BATCH_SIZE = Histogram(
    ":tensorflow:serving:batching_session:processed_batch_size",
    "Examples in a batch.",
    ["model_name"],
    registry=_REGISTRY,
    buckets=[2**k for k in range(11)],
)
IN_FLIGHT = Gauge(":graftflow:serving:requests_in_flight", "Requests being answered.", registry=_REGISTRY)

# prometheus_client puts its own suffix behind a counter's name and adds the time of its creation.
_SUFFIX = re.compile(rb"(?m)^((?:# (?:HELP|TYPE) )?:tensorflow:[^\s{]*?)_total(?=[\s{])")
_CREATED = re.compile(rb"(?m)^(?:# (?:HELP|TYPE) )?:(?:tensorflow|graftflow):[^\s{]*?_created[\s{].*\n")


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format."""
    return _SUFFIX.sub(rb"\1", _CREATED.sub(b"", generate_latest(_REGISTRY)))
