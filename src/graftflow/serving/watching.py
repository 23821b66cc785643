"""Asking the same pictures again and again, and how long that takes."""

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graftflow.errors import InputError
from graftflow.serving.client import BATCH_BYTES, Client
from graftflow.serving.latencies import Latencies, Summary
from graftflow.serving.picture_paths import Source
from graftflow.serving.refusals import PictureError, RefusedError, ServerUnreachableError

if TYPE_CHECKING:
    from rich.live import Live

_KEPT_BYTES = 256 * 2**20
_TERMINAL_SECONDS, _LINE_SECONDS = 0.5, 5.0
_LAST_ANSWERS_SECONDS = 2.0


def watch(client: Client, batches: Sequence[Sequence[bytes]], *, requests: int) -> Summary:
    """Ask until interrupted or ``requests`` were sent; a live line on stderr says how it goes.

    Args:
        client: whom to ask; one that does not try again, so that every failure is counted.
        batches: the pictures of each request, asked in turn (:func:`read_batches`).
        requests: how many; 0 for no end.

    Returns:
        The figures of all requests.

    Raises:
        InputError: where the first request fails, which is not counted.
    """
    client.rankings(batches[0])  # connects and finds the signature; a wrong address or name ends here
    figures, stop = Latencies(), threading.Event()
    turns = itertools.islice(itertools.cycle(batches), requests or None)
    taking = threading.Lock()

    def ask() -> None:
        while not stop.is_set():
            with taking:
                batch = next(turns, None)
            if batch is None:
                return
            start = time.perf_counter()
            try:
                client.rankings(batch)
            except (ServerUnreachableError, RefusedError) as error:
                figures.failed(error.code)
                stop.wait(0.05)  # a refused connection takes no time, and would be all that is counted
            except InputError:
                figures.failed("answer")
            else:
                figures.answered(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, name="watching", daemon=True) for _ in range(client.in_flight)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    with _line() as show:
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    show(figures.summary(time.monotonic() - begin))
        except KeyboardInterrupt:
            pass  # the usual end
        finally:
            stop.set()
    seconds = time.monotonic() - begin
    for thread in threads:
        thread.join(max(0.0, begin + seconds + _LAST_ANSWERS_SECONDS - time.monotonic()))
    return figures.summary(time.monotonic() - begin)


def read_batches(client: Client, pictures: Sequence[Source]) -> tuple[list[list[bytes]], int]:
    """Read pictures into memory, as many together as ``client`` sends in one request.

    Returns:
        The pictures, and how many cannot be sent; stderr has a line for each of these.

    Raises:
        InputError: where no picture can be sent or they are too many to keep.
    """
    batches: list[list[bytes]] = []
    size = total = failed = 0
    for name, source in pictures:
        try:
            data = client.ready(source)
        except PictureError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            failed += 1
            continue
        if not batches or len(batches[-1]) == client.batch_size or size + len(data) > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(data)
        size, total = size + len(data), total + len(data)
        if total > _KEPT_BYTES:
            raise InputError(
                f"--watch must have pictures of at most {_KEPT_BYTES // 2**20} MiB together, which it keeps. "
                f"Received: more, up to {name}"
            )
    if not batches:
        raise InputError("--watch must have a picture that can be sent. Received: none")
    return batches, failed


class _PlainLine:
    """Prints a line every five seconds, for a log."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, summary: Summary) -> None:
        if time.monotonic() - self._last >= _LINE_SECONDS:
            self._last = time.monotonic()
            print(summary.line(), file=sys.stderr, flush=True)


class _LiveLine:
    """Draws the line anew twice a second."""

    def __init__(self, live: "Live") -> None:
        self._live, self._last = live, 0.0

    def __call__(self, summary: Summary) -> None:
        from rich.text import Text

        if time.monotonic() - self._last >= _TERMINAL_SECONDS:
            self._last = time.monotonic()
            self._live.update(Text(summary.line()), refresh=True)


@contextmanager
def _line() -> Iterator[_PlainLine | _LiveLine]:
    if not sys.stderr.isatty():
        yield _PlainLine()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield _LiveLine(live)
