"""The embedded server against the SavedModel's function: ``python -m benchmarks.serving --output runs/serving.json``.

Three models: the exported classifier on encoded pictures, where the graph's arithmetic is the work; a layer on 1024
floats, where the protocol is; and 200 narrow layers, where what a graph costs whatever the size of its batch is.
Batching is that of the manifests. Direct calls and servers take turns in every round, on the same requests; a figure is
the median over the rounds, a ratio is taken within a round.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

CLIENTS, BATCHES = (1, 4, 16), (1, 32)
KINDS = ("pictures", "floats", "deep")
BATCHING = Path(__file__).parents[2] / "manifests" / "base" / "tf-serving" / "batching.config"


def pictures(count: int) -> list[bytes]:
    """Return encoded pictures of the embedded data set."""
    from graftflow.embedded import open_closeups

    source = open_closeups().pictures
    return [picture.read() for picture, _ in zip(source, range(count), strict=False)]


def save_layers(folder: Path, *, width: int, depth: int) -> None:
    """Write a SavedModel of dense layers: 1024 floats, ``depth`` layers of ``width``, ten probabilities."""
    import tensorflow as tf

    class Layers(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            sizes = [1024, *[width] * depth, 10]
            self.kernels = [
                tf.Variable(tf.random.stateless_normal((a, b), (0, i)) * (2 / a) ** 0.5)
                for i, (a, b) in enumerate(pairwise(sizes))
            ]

        @tf.function(input_signature=[tf.TensorSpec((None, 1024), tf.float32, "x")])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            for kernel in self.kernels[:-1]:
                x = tf.nn.relu(x @ kernel)
            return {"y": tf.nn.softmax(x @ self.kernels[-1])}

    layers = Layers()
    tf.saved_model.save(layers, str(folder), signatures={"serving_default": layers.__call__})


def write_requests(folder: Path, inputs: list[Any], name: str) -> None:
    """Write every input as a request of each transport, into ``grpc/`` and ``rest/``."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    from benchmarks.serving.load import body

    for transport in ("grpc", "rest"):
        (folder / transport).mkdir(parents=True)
    for number, value in enumerate(inputs):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "model"
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        (folder / "grpc" / f"{number:03}").write_bytes(request.SerializeToString())
        rows = value.tolist() if isinstance(value, np.ndarray) else list(value)
        (folder / "rest" / f"{number:03}").write_bytes(body(rows))


def direct(signature: Any, name: str, inputs: list[Any], clients: int, seconds: float) -> dict[str, float]:
    """Call the SavedModel's function from so many threads."""
    import tensorflow as tf

    times: list[float] = []
    end = time.perf_counter() + seconds

    def call(number: int) -> None:
        turn = number
        while time.perf_counter() < end:
            started = time.perf_counter()
            outputs = signature(**{name: tf.constant(inputs[turn % len(inputs)])})
            for value in outputs.values():
                value.numpy()
            times.append(time.perf_counter() - started)
            turn += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "requests": len(times),
        "per_second": clients / float(np.mean(times)),
        "p50_ms": 1e3 * float(np.percentile(times, 50)),
        "p99_ms": 1e3 * float(np.percentile(times, 99)),
    }


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(base: Path, log: Path, *flags: str) -> Iterator[tuple[int, str, str]]:
    """Run the server; yields its process's number, its gRPC address and its REST URL."""
    grpc_port, rest_port = free_port(), free_port()
    command = [
        sys.executable,
        "-m",
        "graftflow.serving",
        f"--port={grpc_port}",
        f"--rest_api_port={rest_port}",
    ]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--model_name=model", f"--model_base_path={base}", *flags],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        while "(stop with" not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)
        url = f"http://127.0.0.1:{rest_port}/v1/models/model:predict"
        yield process.pid, f"127.0.0.1:{grpc_port}", url
    finally:
        process.terminate()
        process.wait(60)


def load(transport: str, where: str, folder: Path, **options: float) -> dict[str, float]:
    """Run the load in a process of its own."""
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "benchmarks.serving.load", transport, where, str(folder / transport)]
    done = subprocess.run([*command, *flags], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def measure(kind: str, base: Path, given: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Measure one model in every way; returns a row a way."""
    import tensorflow as tf

    name = "image_bytes" if kind == "pictures" else "x"
    version = max((int(p.name), p) for p in base.iterdir() if p.name.isdigit())[1]
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    random = np.random.Generator(np.random.PCG64(0))
    pool = pictures(64) if kind == "pictures" else []
    inputs: dict[int, list[Any]] = {}
    for batch in BATCHES:
        inputs[batch] = [
            [pool[(8 * i + j) % len(pool)] for j in range(batch)]
            if pool
            else random.standard_normal((batch, 1024)).astype(np.float32)
            for i in range(8)
        ]
        write_requests(scratch / f"{kind}-requests" / str(batch), inputs[batch], name)
    rounds: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    for turn in range(given.rounds):
        for batch in BATCHES:
            for clients in CLIENTS:
                direct(signature, name, inputs[batch], clients, 0.3)
                figures = direct(signature, name, inputs[batch], clients, given.seconds)
                rounds.setdefault(("direct", batch, clients), []).append(figures)
        for mode in ("", "batching"):
            flags = ["--enable_batching", f"--batching_parameters_file={BATCHING}"] if mode else []
            with served(base, scratch / f"{kind}-{mode}-{turn}.log", *flags) as (_, address, url):
                for transport, where in (("grpc", address), ("rest", url)):
                    for batch in BATCHES:
                        for clients in CLIENTS:
                            folder = scratch / f"{kind}-requests" / str(batch)
                            way = f"{transport} {mode}".strip()
                            figures = load(transport, where, folder, clients=clients, seconds=given.seconds)
                            rounds.setdefault((way, batch, clients), []).append(figures)
                            print(f"{kind}, {way}, batch {batch}, {clients} clients: "
                                  f"{figures['per_second']:.0f} requests a second", file=sys.stderr)  # fmt: skip
    rows = []
    for (way, batch, clients), found in rounds.items():
        row: dict[str, Any] = {"model": kind, "way": way, "batch": batch, "clients": clients}
        for figure in ("per_second", "p50_ms", "p99_ms"):
            row[figure] = float(np.median([one[figure] for one in found]))
        called = rounds["direct", batch, clients]
        row["of_direct"] = float(
            np.median([a["per_second"] / b["per_second"] for a, b in zip(found, called, strict=True)])
        )
        if way.endswith("batching"):
            plain = rounds[way.removesuffix(" batching"), batch, clients]
            row["of_unbatched"] = float(
                np.median([a["per_second"] / b["per_second"] for a, b in zip(found, plain, strict=True)])
            )
        rows.append(row)
    return rows


def memory(base: Path, folder: Path, scratch: Path) -> list[dict[str, float]]:
    """Return the server's memory in MB after every 2,000 of 10,000 requests on each port."""
    import psutil

    found = []
    with served(base, scratch / "memory.log", "--enable_batching") as (pid, address, url):
        process = psutil.Process(pid)
        for transport, where in (("grpc", address), ("rest", url)):
            for done in range(0, 12_000, 2_000):
                if done:
                    load(transport, where, folder, clients=16, seconds=600, requests=2_000)
                else:
                    load(transport, where, folder, clients=16, seconds=600, requests=500)
                found.append(
                    {"transport": transport, "requests": done, "mb": process.memory_info().rss / 1e6}
                )
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as text."""
    lines = [
        f"{'model':10}{'way':16}{'batch':>6}{'clients':>8}{'per s':>9}{'p50 ms':>9}{'p99 ms':>9}{'of direct':>11}"
        f"{'of unbatched':>14}"
    ]
    for row in rows:
        lines.append(
            f"{row['model']:10}{row['way']:16}{row['batch']:6}{row['clients']:8}{row['per_second']:9.1f}"
            f"{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['of_direct']:11.2f}"
            + (f"{row['of_unbatched']:14.2f}" if "of_unbatched" in row else "")
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--store", type=Path, default=Path("models/graftflow"), help="a model's versions (`make run`)"
    )
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement (2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"models to measure ({','.join(KINDS)})")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bases = {"pictures": given.store.absolute(), "floats": scratch / "floats", "deep": scratch / "deep"}
        save_layers(bases["floats"] / "1", width=0, depth=0)
        save_layers(bases["deep"] / "1", width=64, depth=200)
        rows = [row for kind in given.kinds.split(",") for row in measure(kind, bases[kind], given, scratch)]
        print(table(rows))
        used = [] if given.no_memory else memory(bases["floats"], scratch / "floats-requests" / "1", scratch)
    for one in used:
        print(f"after {one['requests']:6} requests over {one['transport']}: {one['mb']:.0f} MB")
    if given.output:
        given.output.write_text(json.dumps({"rows": rows, "memory": used}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
