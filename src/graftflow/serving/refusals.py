"""What a request to a model server can end in, as the client tells it: one line, and a code that can be counted."""

from graftflow.errors import InputError


class ServerUnreachableError(InputError):
    """No server answers, or not for this model: other pictures would fare no better.

    Args:
        message: one line.
        code: what is counted, e.g. ``"UNAVAILABLE"``, ``"HTTP 503"`` or ``"refused connection"``.
    """

    def __init__(self, message: str, code: str = "unreachable") -> None:
        super().__init__(message)
        self.code = code


class RefusedError(InputError):
    """The server refuses this request; another one may fare better.

    Args:
        message: one line, the server's words in it.
        code: as of :class:`ServerUnreachableError`.
        said: the server's words.
    """

    def __init__(self, message: str, code: str, said: str = "") -> None:
        super().__init__(message)
        self.code, self.said = code, said


class PictureError(InputError):
    """A picture that cannot be read or sent; the message goes on from its name, e.g. ``is truncated``."""

    code = "picture"


class PassingError(Exception):
    """A failure that may pass: the request is tried again while there is time.

    Args:
        final: what is raised once there is none.
        pause: seconds that the server asks to wait; ``None`` where it says nothing.
    """

    def __init__(self, final: ServerUnreachableError, pause: float | None = None) -> None:
        super().__init__(str(final))
        self.final, self.pause = final, pause


def said_of(text: object) -> str:
    """Return a server's words as one line of at most 500 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= 500 else f"{line[:499]}…"


def late(url: str, timeout: float, code: str) -> ServerUnreachableError:
    """Return the error for a deadline that passed."""
    return ServerUnreachableError(f"The server at {url} did not answer within {timeout:g} s.", code)


def not_a_model_server(url: str, said: str, code: str) -> ServerUnreachableError:
    """Return the error for something else that answers."""
    return ServerUnreachableError(f"{url} does not answer as a model server does: {said}", code)


def nobody_there(url: str, code: str) -> ServerUnreachableError:
    """Return the error for a port that nobody listens on."""
    return ServerUnreachableError(
        f"No model server answers at {url}. Start one with `make serve`, or name another with --url.", code
    )


def busy(url: str, said: str, code: str) -> ServerUnreachableError:
    """Return the error for a server that has no time."""
    return ServerUnreachableError(f"The server at {url} is busy: {said}. Try again later.", code)


def untrusted(url: str, said: str) -> ServerUnreachableError:
    """Return the error for TLS that does not come about."""
    return ServerUnreachableError(
        f"TLS with {url} fails: {said}. Check the scheme, the host's name and --ca-file.", "TLS"
    )
