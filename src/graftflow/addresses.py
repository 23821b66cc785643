"""Addresses of files: their checksum, their name, their copy on a mirror and what of them may be shown."""

import re
from urllib.parse import SplitResult, urlsplit, urlunsplit

from graftflow.errors import InputError


def split_checksum(address: str) -> tuple[str, str]:
    """Split ``ADDRESS#sha256=HEX`` into the address and the 64 digits in lower case, ``""`` where none are given.

    Raises:
        InputError: something else follows the ``#`` of an http address, or the digits are not 64 hexadecimal ones.
    """
    plain, mark, fragment = address.rpartition("#")
    # Paths and the names in object stores may hold a '#' of their own.
    if not mark or not (re.match(r"https?://", address, re.I) or fragment.lower().startswith("sha256")):
        return address, ""
    if not re.fullmatch(r"sha256=[0-9a-f]{64}", fragment, re.I):
        raise InputError(
            f"What follows the '#' of an address must be sha256= and 64 hexadecimal digits. "
            f"Received: '#{fragment}'."
        )
    return plain, fragment[7:].lower()


def split_address(address: str) -> SplitResult:
    """Return the parts of an address.

    Raises:
        InputError: it has none, such as ``https://[``; the message shows no password of it.
    """
    try:
        parts = urlsplit(address)
        _ = parts.port
        return parts
    except ValueError as error:
        scheme = address.partition("://")[0]
        raise InputError(
            f"An address must have a host, a port and a path that can be read. Received: '{scheme}://…' ({error})."
        ) from error


def file_name(url: str) -> str:
    """Return the last part of an address's path, at most 100 characters; ``""`` where it names no file."""
    name = urlsplit(url).path.rsplit("/", 1)[-1]
    return "" if name in (".", "..") else name[-100:]


def mirrored(mirror: str, name: str) -> str:
    """Return the address of a file in a mirror's folder; a query of the mirror's (a token) stays behind it."""
    parts = urlsplit(mirror)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def shown(url: str) -> str:
    """Return an address as messages may show it: without password and without query, which can hold a token."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    query = "…" if parts.query else ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))
