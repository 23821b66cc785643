"""A server process to abuse: its model, raw connections to its two ports, and what must hold afterwards."""

import base64
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import requests
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.unit.serving_model import ROOT, Server, free_port

SIDE = 8
MIB = 2**20
PATH = "/v1/models/toy:predict"


def save_model(path: Path) -> None:
    """Write a model with the decoding of an exported one, and signatures that take or give anything."""
    import tensorflow as tf

    from graftflow import preprocessing

    module = tf.Module()
    module.kernel = tf.Variable(np.array([[-4, 4], [0, 0], [4, -4]], np.float32))

    def classify(image_bytes: Any) -> dict[str, Any]:
        mean = tf.reduce_mean(preprocessing.decode_batch(image_bytes, SIDE), (1, 2))
        probabilities = tf.nn.softmax(mean @ module.kernel)
        label = tf.gather(tf.constant(["blue", "red"]), tf.argmax(probabilities, 1))
        return {"probabilities": probabilities, "label": label}

    def spin(x: Any) -> dict[str, Any]:
        return {"y": tf.while_loop(lambda y: tf.reduce_min(y) < 1e30, lambda y: (y + 1,), (x,))[0]}

    def example(inputs: Any) -> dict[str, Any]:
        row = tf.fill((tf.shape(inputs)[0], 1), 0.5)
        return {"scores": row}

    def function(work: Any, **inputs: Any) -> Any:
        return tf.function(work).get_concrete_function(**inputs)

    numbers, words = tf.TensorSpec((None,), tf.float32), tf.TensorSpec((None,), tf.string)
    tf.saved_model.save(
        module,
        str(path),
        signatures={
            "serving_default": function(classify, image_bytes=words),
            "any_shape": function(lambda x: {"y": tf.identity(x)}, x=tf.TensorSpec(None, tf.float32)),
            "any_rows": function(
                lambda x: {"y": tf.reduce_sum(x, 1)}, x=tf.TensorSpec((None, None), tf.float32)
            ),
            "lengths": function(lambda x: {"y": tf.strings.length(x)}, x=words),
            "large": function(lambda x: {"y": tf.tile(x[:, None], (1, 2**21))}, x=numbers),
            "spin": function(spin, x=numbers),
            "example": function(example, inputs=words),
        },
    )


def png(width: int, height: int, pixels: bytes | None = None) -> bytes:
    """A grey PNG that claims to have that size; without ``pixels`` of zeros, in few bytes."""
    body = zlib.compress(bytes((width + 1) * height) if pixels is None else pixels, 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def photograph(seed: int = 0) -> bytes:
    """A JPEG of coloured noise, 64 by 48 pixels."""
    noise = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((64, 48)).save(buffer, "JPEG")
    return buffer.getvalue()


GOOD = photograph()


def encoded(data: bytes) -> dict[str, str]:
    """Bytes as JSON has them."""
    return {"b64": base64.b64encode(data).decode()}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, dropped, doubled or cut off."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(0, len(out))) if out else 0
        match int(rng.integers(0, 6)):
            case 0 | 1:
                out[at : at + 1] = rng.bytes(1)
            case 2:
                del out[at : at + int(rng.integers(1, 9))]
            case 3:
                out[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 4:
                out[at:at] = out[at : at + int(rng.integers(1, 33))]
            case 5:
                del out[max(at, 1) :]
    return bytes(out)


def predict_request(signature: str = "", **inputs: Any) -> Any:
    """A ``PredictRequest`` for ``toy`` whose inputs are ``TensorProto``."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "toy"
    request.model_spec.signature_name = signature
    for name, proto in inputs.items():
        request.inputs[name].CopyFrom(proto)
    return request


class Abused:
    """A server, how it answered at first, and what it weighed."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.process = psutil.Process(server.process.pid)
        self.channel = grpc.insecure_channel(
            server.address,
            [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.first = self.good()

    def good(self) -> tuple[Any, Any]:
        """The answers to a good request, over REST and over gRPC."""
        import tensorflow as tf

        status, body = self.post({"instances": [encoded(GOOD)] * 2})
        if status != 200:
            raise AssertionError(body)
        answer = self.stub.Predict(predict_request(image_bytes=tf.make_tensor_proto([GOOD] * 2)), timeout=30)
        return body, list(answer.outputs["probabilities"].float_val)

    def post(self, body: Any, path: str = PATH, timeout: float = 60, **headers: str) -> tuple[int, Any]:
        """Status and document of the answer to a request."""
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        names = {k.replace("_", "-"): v for k, v in headers.items()}
        answer = requests.post(self.server.url + path, headers=names, timeout=timeout, **content)
        return answer.status_code, answer.json()

    def connect(self, port: str = "rest", receive_buffer: int = 0) -> socket.socket:
        """A raw connection to the ``rest`` or the ``grpc`` port."""
        address = self.server.url.removeprefix("http://") if port == "rest" else self.server.address
        host, _, number = address.partition(":")
        plain = socket.socket()
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.settimeout(30)
        plain.connect((host, int(number)))
        return plain

    def talk(self, data: bytes, port: str = "rest", patience: float = 30, *, end: bool = True) -> bytes:
        """Send bytes, say that there are no more, and return all that comes back."""
        received = b""
        with self.connect(port) as plain:
            plain.settimeout(patience)
            try:
                plain.sendall(data)
                if end:
                    plain.shutdown(socket.SHUT_WR)
                while part := plain.recv(65536):
                    received += part
            except OSError:
                pass
        return received

    def rss(self) -> int:
        """Bytes of memory that the process has."""
        return int(self.process.memory_info().rss)

    @contextmanager
    def unharmed(self, peak: float, after: float) -> Iterator[None]:
        """What runs inside leaves the process as it was, its answers too.

        Args:
            peak: MiB that it may take more than before while the abuse goes on.
            after: MiB that it may have more afterwards.
        """
        before, peaks, stop = self.rss(), [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.01):
                peaks[0] = max(peaks[0], self.rss() - before)

        watching = threading.Thread(target=watch)
        watching.start()
        started = time.perf_counter()
        try:
            yield
        finally:
            stop.set()
            watching.join()
        assert self.server.process.poll() is None, self.server.log()[-3000:]
        assert self.good() == self.first
        assert peaks[0] < peak * MIB, f"{peaks[0] / MIB:.0f} MiB more while it went on"
        left = self.rss() - before
        print(
            f"peak {peaks[0] / MIB:+.0f} MiB, after {left / MIB:+.0f} MiB, {time.perf_counter() - started:.1f} s"
        )
        assert left < after * MIB, f"{left / MIB:.0f} MiB more afterwards"


@contextmanager
def hasty_server(base_path: Path, log: Path, *flags: str) -> Iterator[Abused]:
    """Start a server that waits 2 seconds wherever the real one waits 10 to 30."""
    code = (
        "from graftflow.serving import grpc_api, server\n"
        "grpc_api._HANDSHAKE_SECONDS = 2\n"
        "server._DRAIN_SECONDS = server._HEADER_SECONDS = server._READ_SECONDS = 2\n"
        "raise SystemExit(server.main())"
    )
    rest, rpc = free_port(), free_port()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code, f"--rest_api_port={rest}", f"--port={rpc}", "--model_name=toy",
             f"--model_base_path={base_path}", "--rest_api_timeout_in_ms=2000", *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": "-1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
    server = Server(process, f"http://127.0.0.1:{rest}", f"127.0.0.1:{rpc}", log)
    try:
        server.wait(lambda: "(stop with" in server.log(), 60)
        abused = Abused(server)
        yield abused
        abused.channel.close()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
