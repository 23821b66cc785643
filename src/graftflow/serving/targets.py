"""Where a model is: the server's address, and the model, version or label there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from graftflow.errors import InputError
from graftflow.serving.retries import Deadline

URL, MODEL = "http://127.0.0.1:8501", "graftflow"
MESSAGE_BYTES = 64 * 2**20  # of one request or answer; the embedded server takes as much

_PORTS = {"grpc": 8500, "grpcs": 443}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True)
class Target:
    """A model on a server.

    Attributes:
        url: the address, without a slash at its end.
        scheme: ``http``, ``https``, ``grpc`` or ``grpcs``.
        host: the host alone.
        port: of gRPC; 0 for the scheme's own.
        model: the model's name.
        version: one version by its number; ``None`` for the newest.
        label: one version by its label, e.g. ``"stable"``; ``None`` for none.
        ca_file: certificates, PEM, that are trusted instead of the machine's own.
        headers: sent with every request, e.g. ``{"Authorization": "Bearer …"}``.
    """

    url: str
    scheme: str
    host: str
    port: int
    model: str
    version: int | None
    label: str | None
    ca_file: Path | None
    headers: Mapping[str, str]

    @property
    def is_local(self) -> bool:
        """Whether the server is on the loopback, where no proxy leads."""
        return self.host in _LOOPBACK

    @property
    def what(self) -> str:
        """The model in words, e.g. ``version 3 of model 'pets'``."""
        if self.version is not None:
            return f"version {self.version} of model '{self.model}'"
        if self.label is not None:
            return f"label '{self.label}' of model '{self.model}'"
        return f"model '{self.model}'"


class Transport(Protocol):
    """One way to reach a model."""

    def predict(self, instances: list[Any], signature: str, deadline: Deadline) -> list[Any]:
        """Ask once; see :meth:`graftflow.serving.client.Client.predict`."""

    def status(self, deadline: Deadline, *, of_any: bool = False) -> list[dict[str, Any]]:
        """Ask once for the versions; ``of_any``: for all of them although one is selected."""

    def close(self) -> None:
        """Close connections."""


def read_target(
    url: str,
    model: str,
    *,
    version: int | None = None,
    label: str | None = None,
    ca_file: Path | None = None,
    headers: Mapping[str, str] | None = None,
) -> Target:
    """Return the target that settings name.

    Args:
        url: ``http://HOST:PORT``, ``https://…`` (both with any path before ``/v1``), ``grpc://HOST:PORT`` or
            ``grpcs://…``.
        model: the model's name.
        version: 0 or more.
        label: not empty; not with ``version``.
        ca_file: a file that exists, for https and grpcs.
        headers: by name.

    Raises:
        InputError: where one of them breaks its rule.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:  # a port that is no number, a bracket that is not closed
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
        raise InputError(f"url must be like {URL}, https://HOST/PATH, grpc://HOST:8500 or grpcs://HOST. "
                         f"Received: '{url}'")  # fmt: skip
    if parts.query or parts.fragment:
        raise InputError(f"url must end before '?' and '#'. Received: '{url}'")
    if parts.scheme in _PORTS and parts.path.strip("/"):
        raise InputError(f"url of gRPC must end with the port. Received: '{url}'")
    if not model:
        raise InputError("model must be the name of a model. Received: ''")
    if version is not None and label is not None:
        raise InputError(f"Only one of version and label must be given. Received: {version} and '{label}'")
    if version is not None and not 0 <= version < 2**63:
        raise InputError(f"version must be a number of 0 or more. Received: {version}")
    if label == "":
        raise InputError("label must be the label of a version, e.g. stable. Received: ''")
    if ca_file is not None and (parts.scheme not in ("https", "grpcs") or not ca_file.is_file()):
        raise InputError(
            f"ca_file must be a file of PEM certificates, for https and grpcs. Received: {ca_file} for {url}"
        )
    for name, value in (headers or {}).items():
        if not _HEADER.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise InputError(f"headers must be like 'Authorization: Bearer …'. Received: '{name}'")
    return Target(
        url.rstrip("/"),
        parts.scheme,
        parts.hostname,
        port,
        model,
        version,
        label,
        ca_file,
        dict(headers or {}),
    )
