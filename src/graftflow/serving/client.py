"""Ask a model server by its documented protocol: this project's, TensorFlow Serving, or KServe's v1 protocol.

The scheme of the URL chooses REST or gRPC; all else is the same. Importing this module imports neither TensorFlow nor
an HTTP library, and a request never imports TensorFlow.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from graftflow.errors import InputError
from graftflow.serving.rankings import Ranking, ranking
from graftflow.serving.refusals import PictureError, RefusedError, ServerUnreachableError
from graftflow.serving.retries import Deadline, ask_again
from graftflow.serving.targets import MODEL, URL, Transport, read_target
from graftflow.serving.windows import in_order

__all__ = ["MODEL", "URL", "Client", "PictureError", "Ranking", "RefusedError", "ServerUnreachableError"]

# Of the pictures of one request: a server answers 413 above 64 MiB, and base64 adds a third.
BATCH_BYTES = 16 * 2**20
# Asked in turn until the model has one: all classes by name, or what every model of ours and most others have.
_SIGNATURES = ("ranked", "serving_default")
_NO_SIGNATURE = re.compile(r"signature.*not found", re.IGNORECASE)
_BAD_REQUEST = ("HTTP 400", "INVALID_ARGUMENT")
_NO_LABEL = re.compile(r"unrecognized servable version label", re.IGNORECASE)


class Client:
    """Asks one model of one server; may be used by several threads at a time.

    Args:
        url: where the server is: ``http://127.0.0.1:8501``, ``https://host/path``, ``grpc://127.0.0.1:8500`` or, with
            TLS, ``grpcs://host``.
        model: the model's name there.
        timeout: seconds that one request may take, tries after failures included.
        retry: seconds during which a refused connection, UNAVAILABLE and the answers 429 and 503 are tried again, with
            growing pauses; nothing else is. A server that says when to come back is asked again until ``timeout``.
        version: one version by its number; otherwise the newest.
        label: one version by its label, e.g. ``"stable"``.
        signature: what pictures are sent to; otherwise ``ranked`` or, where the model lacks it, ``serving_default``.
        batch_size: pictures in one request.
        in_flight: requests under way at a time.
        as_is: whether pictures are sent as they are, and not brought to the form that ``download_data`` stores.
        ca_file: PEM certificates to trust, for https and grpcs, instead of the machine's own.
        headers: sent with every request, e.g. ``{"Authorization": "Bearer …"}`` or a ``Host`` for a gateway.

    Raises:
        InputError: where one of them breaks its rule.
    """

    def __init__(
        self,
        url: str = URL,
        model: str = MODEL,
        timeout: float = 30.0,
        retry: float = 3.0,
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        batch_size: int = 32,
        in_flight: int = 1,
        as_is: bool = False,
        ca_file: Path | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        target = read_target(url, model, version=version, label=label, ca_file=ca_file, headers=headers)
        if not 0 < timeout <= 86_400:
            raise InputError(f"timeout must be more than 0 and at most 86400 seconds. Received: {timeout:g}")
        for name, value in (("batch_size", batch_size), ("in_flight", in_flight)):
            if not 1 <= value <= 1024:
                raise InputError(f"{name} must be 1 to 1024. Received: {value}")
        self.url, self.model, self.timeout, self.retry = target.url, model, timeout, retry
        self._target, self._as_is = target, as_is
        self.batch_size, self.in_flight = batch_size, in_flight
        self._signatures: tuple[str, ...] = (signature,) if signature is not None else _SIGNATURES
        self._transport = _transport(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        self._transport.close()

    def predict(self, instances: Sequence[Any], signature_name: str = "serving_default") -> list[Any]:
        """Return the model's answers, one for each instance.

        Args:
            instances: values, nested lists or arrays or, for several inputs, dicts of these by input name. ``bytes``
                may stand anywhere in them.
            signature_name: the signature to ask.

        Returns:
            For each instance a value or nested list; for several outputs a dict by output name. Strings are text, or
            ``bytes`` where the output's name ends with ``_bytes``.

        Raises:
            ServerUnreachableError: where no server answers in time or it does not serve the model, version or label.
            RefusedError: where the server refuses the request; the message is the server's.
            InputError: where the instances or the answer do not fit the protocol.
        """
        rows = [_plain(instance) for instance in instances]
        deadline = Deadline(self.timeout)
        found = self._ask(lambda: self._transport.predict(rows, signature_name, deadline), deadline)
        if len(found) != len(rows):
            raise InputError(
                f"the model must answer with a row for each instance. Received: {len(found)} for {len(rows)}"
            )
        return found

    def classify_images(self, pictures: Sequence[bytes]) -> list[Ranking]:
        """Return for every picture its classes and their probabilities, best first.

        Args:
            pictures: encoded pictures: JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM.

        Raises:
            ServerUnreachableError: where no server answers in time or it does not serve the model, version or label.
            InputError: where one of them is no picture, or the answer tells no classes.
        """
        found: list[Ranking] = []
        for index, answer in enumerate(self.classify_each(partial(bytes, data) for data in pictures)):
            if isinstance(answer, PictureError):
                raise PictureError(f"picture {index} is not a picture that can be sent: it {answer}")
            if isinstance(answer, InputError):
                raise InputError(f"picture {index}: {answer}")
            found.append(answer)
        return found

    def classify_each(self, sources: Iterable[Callable[[], bytes]]) -> Iterator[Ranking | InputError]:
        """Yield for every picture its classes and their probabilities, or what is wrong with it, in order.

        Pictures are read when they are sent: in memory are at most those of ``in_flight`` requests. A picture that
        cannot be read, or that the server refuses, does not keep the others of its request from an answer.

        Args:
            sources: each returns an encoded picture, or raises ``OSError`` or ``PictureError``; called once, by any
                thread.

        Raises:
            ServerUnreachableError: as :meth:`rankings`; the other pictures would fare no better.
        """
        remaining = iter(sources)
        batches = iter(lambda: list(itertools.islice(remaining, self.batch_size)), [])
        for answers in in_order(self._classify, batches, self.in_flight):
            yield from answers

    def ready(self, source: Callable[[], bytes]) -> bytes:
        """Return a picture's bytes as they are sent.

        Raises:
            PictureError: where it cannot be read or is no picture.
        """
        try:
            data = source()
        except OSError as error:
            raise PictureError(f"cannot be read: {error.strerror or error}") from error
        if self._as_is:
            return data
        from graftflow.encodings import as_stored
        from graftflow.pictures import Unusable

        try:
            return as_stored(data)
        except Unusable as error:
            raise PictureError(str(error)) from error

    def rankings(self, batch: Sequence[bytes]) -> list[Ranking]:
        """Return the classes of pictures that are :meth:`ready`, by one request.

        Raises:
            ServerUnreachableError: as :meth:`predict`; also where the model has no signature for pictures, or its
                answers tell no classes.
            InputError: as :meth:`predict`.
        """
        signatures = self._signatures
        for signature in signatures:
            try:
                rows = self.predict(batch, signature)
            except RefusedError as error:
                if not _NO_SIGNATURE.search(error.said):
                    raise
                missing = error
                continue
            # The next request need not look for it.
            self._signatures = (signature, *(s for s in signatures if s != signature))
            try:
                return [ranking(row) for row in rows]
            except InputError as error:
                raise ServerUnreachableError(
                    f"signature '{signature}' of '{self.model}' cannot be read: {error}", "answer"
                ) from error
        raise ServerUnreachableError(
            f"{self._target.what} must have a signature {' or '.join(sorted(signatures))}. {missing}",
            missing.code,
        )

    def status(self) -> list[dict[str, Any]]:
        """Return the model's versions: dicts of ``version``, ``state`` and ``status``.

        KServe's v1 protocol knows no versions: it gives one whose ``version`` is empty.

        Raises:
            ServerUnreachableError: where no server answers in time or it does not serve the model, version or label.
        """
        deadline = Deadline(self.timeout)
        return self._ask(lambda: self._transport.status(deadline), deadline)

    def _classify(self, sources: Sequence[Callable[[], bytes]]) -> list[Ranking | InputError]:
        answers: list[Ranking | InputError] = []
        batch: list[bytes] = []
        places: list[int] = []
        size = 0
        for source in sources:
            try:
                data = self.ready(source)
            except InputError as error:
                answers.append(error)
                continue
            if batch and size + len(data) > BATCH_BYTES:
                self._answer(batch, places, answers)
                batch, places, size = [], [], 0
            places.append(len(answers))
            answers.append([])
            batch.append(data)
            size += len(data)
        if batch:
            self._answer(batch, places, answers)
        return answers

    def _answer(self, batch: list[bytes], places: list[int], answers: list[Ranking | InputError]) -> None:
        """Put the batch's answers in their places; picture by picture where the server refuses it whole."""
        try:
            found: Sequence[Ranking | InputError] = self.rankings(batch)
        except ServerUnreachableError:
            raise
        except InputError as error:
            found = (
                [self._anew(batch[0], error)] if len(batch) == 1 else [self._alone(data) for data in batch]
            )
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer

    def _alone(self, data: bytes) -> Ranking | InputError:
        try:
            return self.rankings([data])[0]
        except ServerUnreachableError:
            raise
        except InputError as error:
            return self._anew(data, error)

    def _anew(self, data: bytes, error: InputError) -> Ranking | InputError:
        """Ask about a picture once more, written anew, where the server cannot decode what Pillow can.

        ``download_data`` writes such a picture anew as well, so that the answer is that of the evaluation.
        """
        if self._as_is or not isinstance(error, RefusedError) or error.code not in _BAD_REQUEST:
            return error
        from graftflow.encodings import encode
        from graftflow.pictures import Unusable

        try:
            plain = encode(data, reason="refused").data
            return error if plain == data else self.rankings([plain])[0]
        except ServerUnreachableError:
            raise
        except (Unusable, InputError):
            return error

    def _ask(self, ask: Callable[[], list[Any]], deadline: Deadline) -> list[Any]:
        try:
            return ask_again(ask, deadline, self.retry)
        except RefusedError as error:
            if error.code not in ("HTTP 404", "NOT_FOUND") and not _NO_LABEL.search(error.said):
                raise
            raise ServerUnreachableError(
                f"The server at {self.url} serves no {self._target.what}: {error.said}. {self._choices(deadline)}",
                error.code,
            ) from error

    def _choices(self, deadline: Deadline) -> str:
        if self._target.version is not None or self._target.label is not None:
            try:
                known = self._transport.status(deadline, of_any=True)
            except Exception:  # the first error is the one to tell
                known = []
            served = [str(v.get("version")) for v in known if v.get("state") == "AVAILABLE"]
            if numbers := sorted((number for number in served if number.isdecimal()), key=int):
                return f"It serves {', '.join(numbers)}."
        return "Check the name, or publish a version (`make deploy-model`)."


def _plain(value: Any) -> Any:
    """An instance with numpy's arrays and numbers, also those of named inputs, as Python's."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _transport(target: Any) -> Transport:
    # Imported here: the command starts at once, and needs one of the two.
    if target.scheme in ("grpc", "grpcs"):
        from graftflow.serving.grpc_client import GrpcTransport

        return GrpcTransport(target)
    from graftflow.serving.rest_client import RestTransport

    return RestTransport(target)
