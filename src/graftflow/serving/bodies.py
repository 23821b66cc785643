"""Bodies of requests and answers over HTTP: bounded, and gzip in both directions."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response

from graftflow.serving.status import invalid

LIMIT = 64 * 2**20  # bytes of a request, unpacked
_WORTH_PACKING = 1024  # bytes of an answer
_ROOM = 2 * LIMIT  # bytes of all large requests that are read at a time; as values, up to 25 times as many
_SMALL = 2**20  # bytes of a request that needs no room


class TooLargeError(Exception):
    """A request body beyond the limit."""


class Room:
    """Lets requests wait for memory: many large ones at a time are answered one after the other."""

    def __init__(self) -> None:
        self._free = _ROOM
        self._left = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Hold the room for a request of so many bytes, once there is so much."""
        if size <= _SMALL:
            yield
            return
        async with self._left:
            await self._left.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            async with self._left:
                self._free += size
                self._left.notify_all()


def most_bytes(request: Request) -> int:
    """Return the bytes that a request's body may come to, as its headers tell, at most the limit."""
    told = request.headers.get("content-length", "")
    if not told.isdecimal() or "content-encoding" in request.headers:
        return LIMIT if told or "transfer-encoding" in request.headers else 0
    return min(int(told), LIMIT)


async def read(request: Request) -> bytes:
    """Return a request's body, unpacked where its ``Content-Encoding`` is gzip.

    A body beyond the limit is read unseen: who still writes reads no answer.

    Raises:
        TooLargeError: beyond :data:`LIMIT`, packed or not.
        ServingError: INVALID_ARGUMENT where what should be gzip is not, or is another encoding.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= LIMIT:
            chunks.append(chunk)
        else:
            chunks.clear()
            if size > 4 * LIMIT:
                break
    if size > LIMIT:
        raise _too_large(f"{size} bytes or more")
    body = b"".join(chunks)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise invalid(f"Content-Encoding must be gzip or none. Received: {encoding[:40]}")
    return await asyncio.to_thread(_unpack, body)


def _unpack(body: bytes) -> bytes:
    reader = zlib.decompressobj(wbits=31)  # gzip alone
    try:
        content = reader.decompress(body, LIMIT + 1)
    except zlib.error as error:
        raise invalid("Failed to decompress the request's gzip body") from error
    if len(content) > LIMIT:
        raise _too_large("a gzip body that unpacks to more")
    if not reader.eof:
        raise invalid("Failed to decompress the request's gzip body")
    return content


def _too_large(received: str) -> TooLargeError:
    return TooLargeError(
        f"A request must be at most {LIMIT} bytes ({LIMIT // 2**20} MiB). Received: {received}. "
        "Send fewer instances."
    )


async def respond(request: Request, text: str) -> Response:
    """Return an answer of JSON, packed where the client takes gzip and it is long enough to pay."""
    content = text.encode("utf-8", "replace")
    headers = {}
    if len(content) >= _WORTH_PACKING and _takes_gzip(request.headers.get("accept-encoding", "")):
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        content = await asyncio.to_thread(gzip.compress, content, 1)
    return Response(content, headers=headers, media_type="application/json")


def _takes_gzip(accepted: str) -> bool:
    for item in accepted.lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() in ("gzip", "x-gzip"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0")
    return False
