"""A REST server on the loopback that gives the answers a test wants."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RANKED = {"classes": ["cat", "dog"], "scores": [0.75, 0.25]}


class Scripted:
    """Gives its answers in turn, the last one again and again.

    An answer is a status, a document (an object, bytes as they are, or a function of the request's body that returns
    status and document) and headers.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str]]] = [(200, {"predictions": [RANKED]}, {})]
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.requests.append((self.path, json.loads(body) if body else None))
                script.headers.append(dict(self.headers))
                answers = script.answers
                status, document, headers = answers.pop(0) if len(answers) > 1 else answers[0]
                if callable(document):
                    status, document = document(script.requests[-1][1])
                text = document if isinstance(document, bytes) else json.dumps(document).encode()
                with suppress(OSError):  # the client is gone
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)

            do_GET = do_POST  # noqa: N815 (the name is http.server's)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that hangs up early is no event."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def scripted_server(tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """Serve on a free port until the block ends; over https with ``tls``."""
    script = Scripted()
    if tls is not None:
        script.server.socket = tls.wrap_socket(script.server.socket, server_side=True)
        script.url = script.url.replace("http", "https")
    thread = threading.Thread(target=script.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield script
    finally:
        script.server.shutdown()
        script.server.server_close()
        thread.join()


def only_jpeg(body: Any) -> tuple[int, Any]:
    """An answer as of a model that decodes JPEG alone: one other picture fails the whole request."""
    if any(not i["b64"].startswith("/9j/") for i in body["instances"]):
        return 400, {"error": "Unknown image file format."}
    return 200, {"predictions": [RANKED] * len(body["instances"])}
