"""A web server on the loopback that behaves badly in the ways a test asks for, and notes what it did."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """A file and how it is served.

    Attributes:
        content: its bytes.
        answers: statuses and headers given to the first requests instead of the file.
        drops: of the next requests that are served, how many bytes are sent before the connection is cut.
        ranges: whether ``Range`` and ``If-Range`` are understood.
        heeds_if_range: ``False`` continues a file that has changed.
        validators: whether ``ETag`` is sent.
        length: whether ``Content-Length`` is sent.
        headers: sent with the file, in place of those of the same names.
        pause: seconds before each 64 KiB.
    """

    content: bytes
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)
    ranges: bool = True
    heeds_if_range: bool = True
    validators: bool = True
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'


@dataclass
class Request:
    """What was asked for and what came of it; ``sent`` counts bytes of the file."""

    path: str
    range: str
    status: int = 0
    sent: int = 0


@dataclass
class BadServer:
    """Files by path, e.g. ``"/a.zip"``; ``log`` has the requests in order."""

    url: str
    files: dict[str, File] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.log)


@contextmanager
def bad_server() -> Iterator[BadServer]:
    """Serve on a free port of the loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            noted = Request(self.path, self.headers.get("Range", ""))
            state.log.append(noted)
            file = state.files.get(self.path.partition("?")[0])
            if file is None:
                noted.status = 404
                self.send_error(404)
            elif file.answers:
                noted.status, headers = file.answers.pop(0)
                self.send_response(noted.status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
            else:
                self.serve(file, noted)

        def serve(self, file: File, noted: Request) -> None:
            content, etag = file.content, file.etag
            start, noted.status = 0, 200
            if file.validators and self.headers.get("If-None-Match") == etag:
                noted.status = 304
            elif (
                file.ranges
                and noted.range
                and (not file.heeds_if_range or self.headers.get("If-Range", etag) == etag)
            ):
                start = int(noted.range.removeprefix("bytes=").removesuffix("-"))
                noted.status = 206 if start < len(content) else 416
            self.send_response(noted.status)
            headers = {"ETag": etag} if file.validators else {}
            if noted.status == 416:
                headers["Content-Range"] = f"bytes */{len(content)}"
            if noted.status == 206:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if file.length and noted.status in (200, 206):
                headers["Content-Length"] = str(len(content) - start)
            for name, value in (headers | file.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if noted.status in (304, 416):
                return
            end = start + file.drops.pop(0) if file.drops else len(content)
            for at in range(start, min(end, len(content)), 2**16):
                piece = content[at : min(at + 2**16, end)]
                time.sleep(file.pause)
                try:
                    self.wfile.write(piece)
                except OSError:  # the client is gone
                    return
                noted.sent += len(piece)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = BadServer(f"http://127.0.0.1:{http.server_port}")
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield state
        finally:
            http.shutdown()
