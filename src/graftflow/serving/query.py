"""``python -m graftflow.serving.query IMAGE…``: ask a model server what is on pictures."""

import argparse
import json
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from graftflow.errors import InputError, one_line
from graftflow.serving.answer_texts import STREAMING, WRITERS, Answer
from graftflow.serving.client import MODEL, URL, Client
from graftflow.serving.picture_paths import Source, listed_sources, sources

_MANY = 100  # pictures from which on progress is told
_PROGRESS_SECONDS = 5.0
_EPILOG = """\
exit status: 0, 1 where a picture or the server failed, 2 for wrong usage, 130 when interrupted;
with --watch, Ctrl-C is the usual end."""


def ask(client: Client, pictures: Iterable[Source], top: int) -> Iterator[Answer]:
    """Yield what becomes of every picture, in order.

    Args:
        client: whom to ask.
        pictures: their names and what reads them.
        top: how many classes of each answer to keep.

    Raises:
        ServerUnreachableError: where no server answers; the other pictures would fare no better.
    """
    names: deque[str] = deque()

    def named() -> Iterator[Callable[[], bytes]]:
        for name, source in pictures:
            names.append(name)
            yield source

    for found in client.classify_each(named()):
        name = names.popleft()
        if isinstance(found, InputError):
            yield Answer(name, [], str(found))
        else:
            yield Answer(name, found[:top])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m graftflow.serving.query",
        description="Ask a model server what is on pictures.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="file, folder, glob pattern, or - for standard input")
    add("--stdin-list", action="store_true", help="read paths from standard input, one a line")
    add("--url", default=URL, help=f"http(s)://HOST:PORT/PATH, grpc://HOST:PORT or grpcs:// ({URL})")
    add("--model", default=MODEL, help=f"the model's name there ({MODEL})")
    add("--version", type=int, metavar="N", help="one version (the newest)")
    add("--label", help="the version with this label, e.g. stable or canary")
    add("--signature", help="what pictures are sent to (ranked, else serving_default)")
    add(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="of one request, retries included (30)"
    )
    add("--retry", type=float, default=3.0, metavar="SECONDS", help="try again where nobody answers (3)")
    add("--batch-size", type=int, default=32, metavar="N", help="pictures in one request (32)")
    add("--in-flight", type=int, default=2, metavar="N", help="requests under way at a time (2)")
    add("--ca-file", type=Path, metavar="PEM", help="certificates to trust, for https and grpcs")
    add("--header", action="append", default=[], metavar="'NAME: VALUE'", help="sent along; may be repeated")
    add("--as-is", action="store_true", help="send files untouched, not as download_data stores them")
    add("--top", type=int, default=5, metavar="N", help="classes shown of each picture (5)")
    add("--format", choices=list(WRITERS), default="table", help="jsonl and csv come line by line (table)")
    add("--watch", action="store_true", help="ask the same pictures again and again; tell latencies")
    add("--requests", type=int, default=0, metavar="N", help="end --watch after so many (0: never)")
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = _parser().parse_args(arguments)
    if bool(options.images) == options.stdin_list:
        raise InputError(
            "Either IMAGE (file, folder, pattern or -) or --stdin-list must be given. "
            f"Received: {'both' if options.images else 'neither'}"
        )
    if options.images.count("-") > 1:
        raise InputError("- must be given once: standard input is one picture. Received: it twice")
    for name, least in (("top", 1), ("requests", 0), ("retry", 0)):
        if not getattr(options, name) >= least:
            raise InputError(f"--{name} must be {least} or more. Received: {getattr(options, name)}")
    if options.requests and not options.watch:
        raise InputError("--requests must be given with --watch. Received: it alone")
    if options.watch and options.format in STREAMING:
        raise InputError(f"--format must be table or json with --watch. Received: '{options.format}'")
    return options


def _client(options: argparse.Namespace) -> Client:
    headers = {}
    for header in options.header:
        name, colon, value = header.partition(":")
        if not colon:
            raise InputError(f"--header must be like 'Authorization: Bearer …'. Received: '{header}'")
        headers[name.strip()] = value.strip()
    return Client(
        options.url,
        options.model,
        options.timeout,
        0.0 if options.watch else options.retry,
        version=options.version,
        label=options.label,
        signature=options.signature,
        batch_size=options.batch_size,
        in_flight=options.in_flight,
        as_is=options.as_is,
        ca_file=options.ca_file,
        headers=headers,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 where a picture or the server failed, 2 for wrong usage, 130 when interrupted."""
    try:
        options = _parse(arguments)
        client = _client(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # What is wrong with a picture is told in a line of ours; Pillow's remarks would only repeat it.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with client:
            pictures = listed_sources() if options.stdin_list else sources(options.images)
            if options.watch:
                return _watch(client, list(pictures), options)
            return _ask(client, pictures, options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # e.g. `… | head`; the reader has what it wants
        sys.stderr.close()
        return 0


def _ask(client: Client, pictures: Iterable[Source], options: argparse.Namespace) -> int:
    writer = WRITERS[options.format](sys.stdout)
    failed = False
    total = len(pictures) if isinstance(pictures, list) else 0
    try:
        with _progress(total, options) as advance:
            for answer in ask(client, pictures, options.top):
                if answer.error:
                    print(f"error: {one_line(answer.picture)}: {answer.error}", file=sys.stderr)
                    failed = True
                writer.write(answer)
                advance()
    finally:
        # What was answered before a failure is still worth reading.
        writer.end()
    return 1 if failed else 0


def _watch(client: Client, pictures: list[Source], options: argparse.Namespace) -> int:
    from graftflow.serving.watching import read_batches, watch

    batches, failed = read_batches(client, pictures)
    summary = watch(client, batches, requests=options.requests)
    print(json.dumps(asdict(summary)) if options.format == "json" else summary.line(), flush=True)
    return 1 if summary.errors or failed else 0


@contextmanager
def _progress(total: int, options: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """Hand on what counts a picture as done; for many pictures it tells stderr how far it is."""
    if total < _MANY:
        yield lambda: None
    elif not sys.stderr.isatty():
        done, last = 0, time.monotonic()

        def count() -> None:
            nonlocal done, last
            done += 1
            if done == total or time.monotonic() - last >= _PROGRESS_SECONDS:
                last = time.monotonic()
                print(f"progress: answers {done}/{total} pictures", file=sys.stderr, flush=True)

        yield count
    elif options.format in STREAMING and sys.stdout.isatty():
        yield lambda: None  # the lines themselves show how far it is
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("answers", total=total)
            yield lambda: progress.advance(task)


if __name__ == "__main__":
    sys.exit(main())
