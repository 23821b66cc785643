"""Ask a model server, this project's or TensorFlow Serving, by its documented REST API.

Needs requests only; importing this module never imports TensorFlow.
"""

import base64
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from graftflow.errors import InputError

URL, MODEL = "http://127.0.0.1:8501", "graftflow"

# Of one request: a server answers 413 above 64 MiB, and base64 adds a third.
_BATCH_BYTES, _BATCH_PICTURES = 16 * 2**20, 32
_RETRIED_STATUS = (429, 503)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")


class ServerUnreachableError(InputError):
    """No server answers, or not for this model: other pictures would fare no better."""


class Client:
    """Asks one model of one server.

    Args:
        url: where the server is, e.g. ``http://127.0.0.1:8501``.
        model: the model's name there.
        timeout: seconds that one answer may take.
        retry: seconds during which a refused connection and the answers 429 and 503 are tried
            again, with growing pauses; nothing else is.

    Raises:
        InputError: where ``url`` is no http(s) address or ``model`` is empty.
    """

    def __init__(self, url: str = URL, model: str = MODEL, timeout: float = 30.0, retry: float = 3.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"url must be like {URL}. Received: '{url}'")
        if not model:
            raise InputError("model must be the name of a model. Received: ''")
        self.url, self.model, self.timeout, self.retry = url.rstrip("/"), model, timeout, retry
        self._session = requests.Session()
        # A proxy that the environment names cannot reach this machine's own loopback.
        self._session.trust_env = parts.hostname not in ("127.0.0.1", "localhost", "::1")

    def predict(self, instances: Sequence[Any], signature_name: str = "serving_default") -> list[Any]:
        """Return the model's answers, one for each instance.

        Args:
            instances: values, nested lists or, for several inputs, dicts by input name; ``bytes``
                anywhere in them are sent as base64.
            signature_name: the signature to ask.

        Returns:
            For each instance a value or nested list; for several outputs a dict by output name.

        Raises:
            ServerUnreachableError: where no server answers or it does not serve the model.
            InputError: where the server refuses the request; the message is the server's.
        """
        body = {"signature_name": signature_name, "instances": _encoded(list(instances))}
        answer = self._ask("POST", ":predict", body)
        predictions = answer.get("predictions")
        if not isinstance(predictions, list):
            raise InputError(f"{self.url} does not answer as a model server does: no 'predictions'")
        return predictions

    def classify_images(self, pictures: Sequence[bytes]) -> list[list[tuple[str, float]]]:
        """Return for every picture its classes and their probabilities, best first.

        Args:
            pictures: encoded pictures, JPEG or PNG; sent in as few requests as the size allows.

        Raises:
            ServerUnreachableError: where no server answers or it does not serve the model.
            InputError: where one of them is no picture, or the model has no signature ``ranked``.
        """
        ranked: list[list[tuple[str, float]]] = []
        for batch in _batches(pictures):
            try:
                rows = self.predict(batch, "ranked")
            except ServerUnreachableError:
                raise
            except InputError as error:
                for index, picture in enumerate(batch, start=len(ranked)):
                    if not picture.startswith(_SIGNATURES):
                        raise InputError(
                            f"picture {index} is not a picture: it must be JPEG or PNG. "
                            f"Received: {len(picture)} bytes"
                        ) from error
                raise
            try:
                ranked.extend(
                    [(str(c), float(s)) for c, s in zip(row["classes"], row["scores"], strict=True)]
                    for row in rows
                )
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"signature 'ranked' of '{self.model}' must answer with classes and scores"
                ) from error
        return ranked

    def status(self) -> list[dict[str, Any]]:
        """Return the model's versions: dicts of ``version``, ``state`` and ``status``.

        Raises:
            ServerUnreachableError: where no server answers or it does not serve the model.
        """
        versions = self._ask("GET", "", None).get("model_version_status", [])
        return list(versions)

    def _ask(self, method: str, suffix: str, body: Any) -> dict[str, Any]:
        url = f"{self.url}/v1/models/{quote(self.model, safe='')}{suffix}"
        response = self._send(method, url, body)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code == 200 and isinstance(answer, dict):
            return answer
        said = answer.get("error") if isinstance(answer, dict) else None
        message = " ".join(str(said or f"HTTP {response.status_code}").split())
        if response.status_code == 404:
            raise ServerUnreachableError(
                f"The server at {self.url} serves no model '{self.model}': {message}. Check the "
                "name, or publish a version (`make deploy`)."
            )
        if response.status_code in _RETRIED_STATUS:
            raise ServerUnreachableError(f"The server at {self.url} is busy: {message}. Try again later.")
        if not said:
            raise ServerUnreachableError(f"{self.url} does not answer as a model server does: {message}")
        raise InputError(f"The server refuses: {message}")

    def _send(self, method: str, url: str, body: Any) -> requests.Response:
        deadline, pause = time.monotonic() + self.retry, 0.1
        data = None if body is None else json.dumps(body)  # NaN and infinities are part of the protocol
        headers = {"Content-Type": "application/json"}
        while True:
            try:
                response = self._session.request(
                    method, url, data=data, headers=headers, timeout=self.timeout
                )
                wait = pause
                if response.status_code not in _RETRIED_STATUS:
                    return response
                if response.headers.get("Retry-After", "").isdigit():
                    wait = max(pause, float(response.headers["Retry-After"]))
                if time.monotonic() + wait > deadline:
                    return response
            except requests.Timeout:
                raise ServerUnreachableError(
                    f"The server at {self.url} did not answer within {self.timeout:g} s."
                ) from None
            except requests.ConnectionError as error:
                wait = pause
                if not _refused(error):
                    raise ServerUnreachableError(
                        f"The connection to {self.url} failed: {_reason(error)}."
                    ) from error
                if time.monotonic() + wait > deadline:
                    raise ServerUnreachableError(
                        f"No model server answers at {self.url}. Start one with `make serve`."
                    ) from error
            except requests.RequestException as error:
                raise ServerUnreachableError(f"Cannot ask {self.url}: {_reason(error)}.") from error
            time.sleep(wait)
            pause = min(2 * pause, 2.0)


def _encoded(value: Any) -> Any:
    """``value`` with every ``bytes`` in it as TensorFlow Serving's base64 object."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, dict):
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    return value


def _batches(pictures: Sequence[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for picture in pictures:
        if batch and (len(batch) == _BATCH_PICTURES or size + len(picture) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(picture)
        size += len(picture)
    if batch:
        yield batch


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that an exception was made of, itself first."""
    seen: list[BaseException | None] = []
    todo: list[Any] = [error]
    while todo:
        current = todo.pop(0)
        if not isinstance(current, BaseException) or current in seen:
            continue
        seen.append(current)
        yield current
        todo += [getattr(current, "reason", None), current.__cause__, current.__context__]
        todo += current.args


def _refused(error: BaseException) -> bool:
    return any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))


def _reason(error: BaseException) -> str:
    system = [c.strerror for c in _causes(error) if isinstance(c, OSError) and c.strerror]
    return str(system[-1] if system else type(error).__name__)
