"""A model server's word on an exported version, before anybody else is served by it.

The version is loaded and warmed in a server process, asked over REST and gRPC with pictures that training never saw,
and compared with what ``evaluate`` wrote down about the very same pictures.
"""

import csv
import math
import time
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftflow import datasets
from graftflow.deployment import verified_export
from graftflow.errors import InputError
from graftflow.files import read_json
from graftflow.server_processes import ServerProcess, running_server
from graftflow.serving.client import Client

# Of a probability, by the device that evaluated: a GPU multiplies in TF32, with a mantissa of 10 bits.
TOLERANCES = {"CPU": 1e-5, "GPU": 1e-2}
NUM_PICTURES = 32
TIMEOUT = 600.0  # seconds: a server with a large network on a busy node takes minutes to load and warm it
_BATCHES = {1: 8, 8: NUM_PICTURES}  # size of a batch → how many pictures are sent in such batches
_REQUEST_SECONDS = 120.0


@dataclass(frozen=True)
class Validation:
    """What a server answered, compared with the evaluation.

    Attributes:
        pictures: how many of the test split were sent.
        largest_difference: between a probability served and the one evaluated.
        rest: the same over REST alone.
        grpc: the same over gRPC alone.
        seconds: that all of it took.
    """

    pictures: int
    largest_difference: float
    rest: float
    grpc: float
    seconds: float


@dataclass(frozen=True)
class _Picture:
    path: str
    image: bytes
    expected: tuple[float, ...]


def check_push(
    saved_model: str | Path,
    *,
    evaluation: str | Path,
    dataset: str | Path,
    model_name: str = "graftflow",
    timeout: float = TIMEOUT,
) -> Validation:
    """Load an exported version in a server process, ask it and compare its answers with the evaluation's.

    The server is ended in every case.

    Args:
        saved_model: the ``saved_model`` artifact.
        evaluation: the ``evaluation`` artifact of it.
        dataset: the ``dataset`` artifact that both are of; up to 32 pictures of its test split are sent.
        model_name: the model's name on the server.
        timeout: seconds that all of it may take.

    Raises:
        InputError: where an artifact is not in order or they do not belong together, and where the server does not
            come up in time, does not load the version, refuses a picture or answers otherwise than evaluated.
    """
    started = time.monotonic()
    version, _, _ = verified_export(saved_model)
    classes, _ = read_predictions(evaluation)  # all of it is checked before a server starts
    tolerance = TOLERANCES[evaluated_on(evaluation)]
    print(f"loading version {version} in a model server", flush=True)
    deadline = started + timeout
    try:
        with ThreadPoolExecutor(1) as reader:
            # While the server starts: both import TensorFlow, which takes seconds.
            reading = reader.submit(_pictures, dataset, evaluation)
            with running_server(Path(saved_model), model_name, deadline=deadline) as server:
                _check_loaded(server, model_name, version)
                pictures = reading.result()
                print(f"asking it about {len(pictures)} test pictures over REST and gRPC", flush=True)
                found = {
                    url.partition(":")[0]: _compare(
                        server, url, model_name, pictures, classes, deadline, tolerance
                    )
                    for url in (server.rest, server.grpc)
                }
    except InputError as error:
        raise InputError(
            f"Version {version} must pass in a model server before it is published. {error}"
        ) from error
    return Validation(
        len(pictures),
        max(found.values()),
        rest=found["http"],
        grpc=found["grpc"],
        seconds=round(time.monotonic() - started, 2),
    )


def evaluated_on(evaluation: str | Path) -> str:
    """Return what an ``evaluation`` artifact was computed on, ``CPU`` or ``GPU``.

    Raises:
        InputError: where its ``evaluation.json`` is missing or tells something else.
    """
    file = Path(evaluation) / "evaluation.json"
    try:
        device = read_json(file).get("device", "CPU")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"evaluation must hold an evaluation.json. Received: {file} ({error})") from error
    if device not in TOLERANCES:
        raise InputError(f"device in {file} must be one of {', '.join(TOLERANCES)}. Received: {device!r}")
    return str(device)


def read_predictions(
    evaluation: str | Path, paths: Container[str] = ()
) -> tuple[list[str], dict[str, tuple[float, ...]]]:
    """Return the classes of an ``evaluation`` artifact, and the probabilities of some of its pictures by their path.

    Every line is checked, but only those of ``paths`` are kept: a test split may have many pictures and classes.

    Raises:
        InputError: where its ``predictions.csv`` is missing or not what ``evaluate`` writes.
    """
    file = Path(evaluation) / "predictions.csv"
    kept: dict[str, tuple[float, ...]] = {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = csv.reader(lines)
            header, row = next(rows, []), None
            if header[:3] != ["path", "label", "predicted"]:
                raise ValueError("no path, label, predicted in its first line")
            for row in rows:
                probabilities = tuple(map(float, row[3:]))
                if len(row) != len(header):
                    raise ValueError("a row with other columns than the first line")
                if row[0] in paths:
                    kept[row[0]] = probabilities
        if row is None:
            raise ValueError("no pictures")
    except (OSError, ValueError, IndexError) as error:
        raise InputError(
            f"evaluation must hold a predictions.csv, as the step evaluate writes it. Received: {file} "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    return header[3:], kept


def _pictures(dataset: str | Path, evaluation: str | Path) -> list[_Picture]:
    """Pictures of the test split, evenly spread over it, each with the probabilities evaluated."""
    size = datasets.split_size(dataset, "test")
    count = min(NUM_PICTURES, size)
    wanted = {index * size // count for index in range(count)}
    images = [
        (record["path"].decode(), record["image"])
        for index, record in enumerate(datasets.read_split(dataset, "test").as_numpy_iterator())
        if index in wanted
    ]
    if not images:
        raise InputError(f"dataset must have test pictures. Received: none in {dataset}")
    _, evaluated = read_predictions(evaluation, {path for path, _ in images})
    for path, _ in images:
        if path not in evaluated:
            raise InputError(
                f"evaluation must be of the dataset's test pictures. Received: one without '{path}' in predictions.csv"
            )
    return [_Picture(path, image, evaluated[path]) for path, image in images]


def _check_loaded(server: ServerProcess, model_name: str, version: str) -> None:
    with Client(server.rest, model_name) as client:
        states = {str(status["version"]): status for status in client.status()}
    if states.get(version, {}).get("state") != "AVAILABLE":
        reason = server.said("does not load") or server.said()
        raise InputError(f"The model server says: {reason}")


def _compare(
    server: ServerProcess,
    url: str,
    model_name: str,
    pictures: Sequence[_Picture],
    classes: Sequence[str],
    deadline: float,
    tolerance: float,
) -> float:
    """Return the largest difference over one protocol."""
    protocol = "gRPC" if url.startswith("grpc") else "REST"
    largest = 0.0
    for size, count in _BATCHES.items():
        sent = pictures[:count]
        for batch in (sent[start : start + size] for start in range(0, len(sent), size)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise InputError(
                    f"The model server must answer in time. Received: no time left for {protocol}"
                )
            try:
                with Client(url, model_name, timeout=min(left, _REQUEST_SECONDS)) as client:
                    rows = client.predict([p.image for p in batch], "serving_default")
            except InputError as error:
                ended = server.ended()
                about = f"it ended with code {ended}: {server.said()}" if ended is not None else str(error)
                raise InputError(f"Over {protocol}, in a batch of {len(batch)}: {about}") from error
            for picture, row in zip(batch, rows, strict=True):
                place = f"'{picture.path}' over {protocol} in a batch of {len(batch)}"
                largest = max(largest, _difference(picture, row, classes, place, tolerance))
    return largest


def _difference(picture: _Picture, row: Any, classes: Sequence[str], place: str, tolerance: float) -> float:
    """Return the largest difference of one picture's answer from the evaluation's."""
    try:
        served = [float(p) for p in row["probabilities"]]
        label = row["label"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"serving_default must answer with probabilities and a label. Received: {' '.join(str(row).split())[:200]}"
        ) from error
    if len(served) != len(classes):
        raise InputError(
            f"The model must answer with the evaluation's {len(classes)} classes. Received: {len(served)} for {place}"
        )
    difference = max(abs(s - e) for s, e in zip(served, picture.expected, strict=True))
    if not difference <= tolerance:  # NaN is not
        worst = max(
            range(len(classes)),
            key=lambda i: math.inf if math.isnan(served[i]) else abs(served[i] - picture.expected[i]),
        )
        raise InputError(
            f"Its answers must be the evaluation's within {tolerance:g}. Received: {classes[worst]} with probability "
            f"{served[worst]:.6g}, not {picture.expected[worst]:.6g}, for {place}"
        )
    best = classes[max(range(len(served)), key=served.__getitem__)]
    if label != best:
        raise InputError(f"The label must be the most probable class, {best}. Received: {label} for {place}")
    return difference
