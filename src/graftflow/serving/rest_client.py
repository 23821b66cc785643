"""A model over REST: TensorFlow Serving's API, and KServe's v1 protocol, which has the same predict."""

import base64
import json
import queue
import reprlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import requests
import urllib3

from graftflow.errors import InputError
from graftflow.header_values import retry_after
from graftflow.serving import refusals
from graftflow.serving.refusals import PassingError, RefusedError, ServerUnreachableError
from graftflow.serving.retries import Deadline
from graftflow.serving.targets import MESSAGE_BYTES, Target

_BUSY = (429, 503)
_READ_BYTES = 2**16


class RestTransport:
    """Asks over HTTP; may be used by several threads at a time.

    Args:
        target: the model.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        # A session is for one thread at a time; it keeps its connection open.
        self._sessions: queue.LifoQueue[requests.Session] = queue.LifoQueue()

    def predict(self, instances: list[Any], signature: str, deadline: Deadline) -> list[Any]:
        """Ask once; see :meth:`graftflow.serving.client.Client.predict`."""
        body = {"signature_name": signature, "instances": encoded(instances)}
        answer = self._ask("POST", self._path(":predict"), body, deadline)
        predictions = answer.get("predictions")
        if not isinstance(predictions, list):
            raise refusals.not_a_model_server(self._target.url, "no 'predictions'", "HTTP 200")
        try:
            decoded: list[Any] = _decoded(predictions)
        except RecursionError:
            said = "values in values in values, too deep to read"
            raise refusals.not_a_model_server(self._target.url, said, "HTTP 200") from None
        return decoded

    def status(self, deadline: Deadline, *, of_any: bool = False) -> list[dict[str, Any]]:
        """Ask once for the versions; KServe's answer is told as one version without a number."""
        path = f"/v1/models/{quote(self._target.model, safe='')}" if of_any else self._path("")
        answer = self._ask("GET", path, None, deadline)
        if isinstance(answer.get("model_version_status"), list):
            return [version for version in answer["model_version_status"] if isinstance(version, dict)]
        if "ready" in answer:
            ready = str(answer["ready"]).lower() == "true"
            return [
                {
                    "version": "",
                    "state": "AVAILABLE" if ready else "LOADING",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        raise refusals.not_a_model_server(self._target.url, "no 'model_version_status'", "HTTP 200")

    def close(self) -> None:
        """Close connections that are not in use."""
        while True:
            try:
                self._sessions.get_nowait().close()
            except queue.Empty:
                return

    def _path(self, suffix: str) -> str:
        target = self._target
        path = f"/v1/models/{quote(target.model, safe='')}"
        if target.version is not None:
            path += f"/versions/{target.version}"
        elif target.label is not None:
            path += f"/labels/{quote(target.label, safe='')}"
        return path + suffix

    def _ask(self, method: str, path: str, body: Any, deadline: Deadline) -> dict[str, Any]:
        # NaN and infinities are part of the protocol.
        try:
            data = None if body is None else json.dumps(body)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"instances must hold numbers, text, bytes and lists of them. Received: {error}"
            ) from None
        try:
            session = self._sessions.get_nowait()
        except queue.Empty:
            session = self._session()
        try:
            response, content = self._send(session, method, path, data, deadline)
        finally:
            self._sessions.put(session)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if response.status_code == 200 and isinstance(answer, dict):
            return answer
        raise self._error(response, answer, deadline)

    def _session(self) -> requests.Session:
        session = requests.Session()
        # A proxy that the environment names cannot reach this machine's own loopback.
        session.trust_env = not self._target.is_local
        session.headers.update({"Content-Type": "application/json", **self._target.headers})
        return session

    def _send(
        self, session: requests.Session, method: str, path: str, data: str | None, deadline: Deadline
    ) -> tuple[requests.Response, bytes]:
        url = self._target.url
        verify = None if self._target.ca_file is None else str(self._target.ca_file)
        try:
            with session.request(
                method,
                url + path,
                data=data,
                timeout=deadline.left(),
                verify=verify,
                stream=True,
                allow_redirects=False,
            ) as response:
                return response, self._read(response, deadline)
        except requests.exceptions.SSLError as error:
            raise refusals.untrusted(url, _reason(error)) from error
        except requests.Timeout as error:
            raise refusals.late(url, deadline.timeout, "deadline exceeded") from error
        except requests.ConnectionError as error:
            if any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error)):
                raise PassingError(refusals.nobody_there(url, "refused connection")) from error
            if _timed_out(error):
                raise refusals.late(url, deadline.timeout, "deadline exceeded") from error
            raise ServerUnreachableError(
                f"The connection to {url} failed: {_reason(error)}.", "broken connection"
            ) from error
        except urllib3.exceptions.ReadTimeoutError as error:
            raise refusals.late(url, deadline.timeout, "deadline exceeded") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ServerUnreachableError(
                f"Cannot ask {url}: {_reason(error)}.", "broken connection"
            ) from error

    def _read(self, response: requests.Response, deadline: Deadline) -> bytes:
        """The body, a piece at a time: a server that dribbles must not outlast the deadline."""
        pieces, size = [], 0
        while piece := response.raw.read1(_READ_BYTES, decode_content=True):
            pieces.append(piece)
            size += len(piece)
            if size > MESSAGE_BYTES:
                raise refusals.not_a_model_server(
                    self._target.url, f"an answer of more than {MESSAGE_BYTES} bytes", "answer too large"
                )
            if deadline.passed:
                raise requests.Timeout
        return b"".join(pieces)

    def _error(self, response: requests.Response, answer: Any, deadline: Deadline) -> Exception:
        url, status = self._target.url, response.status_code
        code = f"HTTP {status}"
        said = (answer.get("error") or answer.get("detail")) if isinstance(answer, dict) else None
        said = said if isinstance(said, str | None) else reprlib.repr(said)
        words = refusals.said_of(said or f"{code} {response.reason or ''}".strip())
        if status in _BUSY:
            headers = response.headers
            pause = retry_after(headers.get("Retry-After", ""), headers.get("Date", ""))
            return PassingError(refusals.busy(url, words, code), pause)
        if 300 <= status < 400:
            place = refusals.said_of(response.headers.get("Location", "elsewhere"))
            return refusals.not_a_model_server(url, f"it sends on to {place}", code)
        if status == 504:
            return ServerUnreachableError(
                f"The server at {url} did not answer in its own time: {words}", code
            )
        if status in (401, 403):
            return ServerUnreachableError(f"The server at {url} lets nobody in like this: {words}", code)
        if not said:
            return refusals.not_a_model_server(url, words, code)
        return RefusedError(f"The server refuses: {words}", code, words)


def encoded(value: Any) -> Any:
    """``value`` with every ``bytes`` in it as TensorFlow Serving's base64 object."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        # Lists of numbers, the large ones, are taken as they are.
        return value if set(map(type, value)) <= {float, int} else [encoded(item) for item in value]
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if list(value) == ["b64"] and isinstance(value["b64"], str):
            try:
                return base64.b64decode(value["b64"] + "=" * (-len(value["b64"]) % 4))
            except ValueError as error:
                raise InputError("an output's base64 must be whole. Received: other characters") from error
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return value if set(map(type, value)) <= {float, int} else [_decoded(item) for item in value]
    return value


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


def _timed_out(error: BaseException) -> bool:
    return any(isinstance(cause, TimeoutError) for cause in _causes(error))


def _reason(error: BaseException) -> str:
    system = [c.strerror for c in _causes(error) if isinstance(c, OSError) and c.strerror]
    verify = [getattr(c, "verify_message", "") for c in _causes(error)]
    return str(next(filter(None, verify), None) or (system[-1] if system else type(error).__name__))
