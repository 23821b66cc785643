"""A small SavedModel with the signatures of docs/architecture.md, and a server process to ask."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

ROOT = Path(__file__).parents[2]
SIDE = 8
CLASSES = ("blue", "red")


def picture(colour: tuple[int, int, int] = (200, 30, 30), kind: str = "JPEG") -> bytes:
    """A one-coloured picture, encoded."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(buffer, kind)
    return buffer.getvalue()


def save_model(path: Path, *, scale: float = 4.0) -> None:
    """Write a linear classifier of the mean colour: red pictures are ``red``, by ``scale``."""
    import tensorflow as tf

    class Classifier(tf.Module):
        def __init__(self) -> None:
            kernel = np.array([[-1, 1], [0, 0], [1, -1]], np.float32) * scale
            self.kernel = tf.Variable(kernel)
            self.classes = tf.constant(CLASSES)

        def decode(self, images: Any) -> Any:
            def one(image: Any) -> Any:
                pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
                return tf.image.resize(tf.cast(pixels, tf.float32) / 255.0, (SIDE, SIDE))

            spec = tf.TensorSpec((SIDE, SIDE, 3), tf.float32)
            return tf.map_fn(one, images, fn_output_signature=spec)

        def answer(self, pixels: Any) -> dict[str, Any]:
            probabilities = tf.nn.softmax(tf.reduce_mean(pixels, (1, 2)) @ self.kernel)
            index = tf.argmax(probabilities, 1)
            return {
                "probabilities": probabilities,
                "label": tf.gather(self.classes, index),
                "class_index": index,
            }

    model = Classifier()
    images = tf.TensorSpec((None,), tf.string, name="image_bytes")
    pixels = tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32, name="pixels")

    def ranked(image_bytes: Any) -> dict[str, Any]:
        top = tf.math.top_k(model.answer(model.decode(image_bytes))["probabilities"], len(CLASSES))
        return {"classes": tf.gather(model.classes, top.indices), "scores": top.values}

    tf.saved_model.save(
        model,
        str(path),
        signatures={
            "serving_default": tf.function(
                lambda image_bytes: model.answer(model.decode(image_bytes))
            ).get_concrete_function(image_bytes=images),
            "pixels": tf.function(lambda pixels: model.answer(pixels)).get_concrete_function(pixels=pixels),
            "ranked": tf.function(ranked).get_concrete_function(image_bytes=images),
        },
    )


def write_warm_up(version: Path, signature: str, image: bytes) -> None:
    """Add one warm-up request to a version's folder."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([image]))
    (version / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(version / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A running server process."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, address: str, log: Path) -> None:
        self.process, self.url, self.address, self._log = process, url, address, log

    def log(self) -> str:
        """What it has printed so far, both streams."""
        return self._log.read_text()

    def wait(self, condition: Any, seconds: float = 20) -> None:
        """Return once ``condition()`` holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s; the server says:\n{self.log()}")
            time.sleep(0.05)

    def states(self) -> dict[str, str]:
        """The state of every version, as the status says."""
        answer = requests.get(f"{self.url}/v1/models/toy", timeout=10).json()
        return {s["version"]: s["state"] for s in answer.get("model_version_status", [])}


@contextmanager
def running_server(base_path: Path | None, log: Path, *flags: str, patience: float = 60) -> Iterator[Server]:
    """Start ``python -m graftflow.serving`` for the model ``toy`` and end it afterwards.

    Args:
        base_path: where the versions of ``toy`` are; ``None`` where ``flags`` name the models.
        log: the file for what it prints.
        flags: further flags.
        patience: seconds that it may take to serve or to end.
    """
    port, grpc_port = free_port(), free_port()
    model = ["--model_name=toy", "--model_base_path", str(base_path)] if base_path else []
    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "graftflow.serving",
                f"--rest_api_port={port}",
                f"--port={grpc_port}",
                *model,
                "--file_system_poll_wait_seconds=0.1",
                *flags,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": "-1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", log)
    try:
        server.wait(lambda: "(stop with" in server.log() or process.poll() is not None, patience)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
