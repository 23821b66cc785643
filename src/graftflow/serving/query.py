"""``python -m graftflow.serving.query IMAGE…``: ask a model server what is on pictures."""

import argparse
import csv
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from graftflow.errors import InputError
from graftflow.serving.client import MODEL, URL, Client, ServerUnreachableError

SUFFIXES = (".jpg", ".jpeg", ".png")
BAR = 24  # characters of a probability of 1


@dataclass(frozen=True)
class Answer:
    """What the server says about one picture: (class, probability), best first."""

    picture: str
    ranked: list[tuple[str, float]]


def find_pictures(names: Sequence[str]) -> Iterator[tuple[str, bytes | InputError]]:
    """Yield every picture's name and bytes, or the reason why it cannot be read.

    Args:
        names: files, folders (all their JPEG and PNG files, at any depth), glob patterns, or ``-``
            for one picture on standard input.
    """
    for name in names:
        if name == "-":
            yield "-", sys.stdin.buffer.read()
            continue
        try:
            paths = _paths(name)
        except InputError as error:
            yield name, error
            continue
        for path in paths:
            try:
                yield str(path), path.read_bytes()
            except OSError as error:
                yield str(path), InputError(f"cannot be read: {error.strerror}")


def _paths(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise InputError(f"the folder holds no picture ({', '.join(SUFFIXES)})")
        return found
    if path.exists():
        return [path]
    if glob.has_magic(name):
        found = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
        if not found:
            raise InputError("no file matches the pattern")
        return found
    raise InputError("no such file or folder")


def ask(client: Client, names: Sequence[str], top: int) -> Iterator[Answer | tuple[str, str]]:
    """Yield an answer for every picture, or its name and what is wrong with it.

    Args:
        client: whom to ask.
        names: as for :func:`find_pictures`.
        top: how many classes of each answer to keep.

    Raises:
        ServerUnreachableError: where no server answers; the other pictures would fare no better.
    """
    for name, content in find_pictures(names):
        if isinstance(content, InputError):
            yield name, str(content)
            continue
        try:
            ranked = client.classify_images([content])[0]
        except ServerUnreachableError:
            raise
        except InputError as error:
            yield name, str(error).replace("picture 0 is", "is")
        else:
            yield Answer(name, ranked[:top])


def write_table(answers: Sequence[Answer], to: TextIO) -> None:
    """Print answers as a table: picture, class, probability and a bar of its length."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=to, markup=False, highlight=False)
    block = "█" if (console.encoding or "").lower().startswith("utf") else "#"
    table = Table(header_style="bold")
    table.add_column("picture", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=BAR)
    for answer in answers:
        for rank, (name, probability) in enumerate(answer.ranked):
            best = rank == 0
            table.add_row(
                Text(answer.picture if best else ""),
                Text(name, style="bold" if best else ""),
                Text(f"{probability:.4f}"),
                Text(block * round(BAR * probability), style="green" if best else "dim"),
                end_section=rank == len(answer.ranked) - 1,
            )
    console.print(table)


def write_json(answers: Sequence[Answer], to: TextIO) -> None:
    """Print answers as JSON: ``[{"picture", "predictions": [{"class", "probability"}]}]``."""
    document = [
        {
            "picture": answer.picture,
            "predictions": [{"class": c, "probability": p} for c, p in answer.ranked],
        }
        for answer in answers
    ]
    to.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_csv(answers: Sequence[Answer], to: TextIO) -> None:
    """Print answers as CSV with the columns picture, rank (from 1), class and probability."""
    writer = csv.writer(to, lineterminator="\n")
    writer.writerow(["picture", "rank", "class", "probability"])
    for answer in answers:
        for rank, (name, probability) in enumerate(answer.ranked, start=1):
            writer.writerow([answer.picture, rank, name, probability])


WRITERS = {"table": write_table, "json": write_json, "csv": write_csv}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 where a picture or the server failed (a line on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m graftflow.serving.query", description="Ask a model server about pictures."
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="file, folder, glob pattern, or - for standard input",
    )
    parser.add_argument("--url", default=URL, help=f"the server ({URL})")
    parser.add_argument("--model", default=MODEL, help=f"the model's name there ({MODEL})")
    parser.add_argument("--top", type=int, default=5, help="classes shown of each picture (5)")
    parser.add_argument("--format", choices=sorted(WRITERS), default="table")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error(f"--top must be 1 or more. Received: {options.top}")
    answers: list[Answer] = []
    failed = False
    try:
        for outcome in ask(Client(options.url, options.model), options.images, options.top):
            if isinstance(outcome, Answer):
                answers.append(outcome)
            else:
                print(f"error: {outcome[0]}: {outcome[1]}", file=sys.stderr)
                failed = True
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        failed = True
    except KeyboardInterrupt:
        return 130
    if answers or (not failed):
        try:
            WRITERS[options.format](answers, sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # e.g. `… | head`
            sys.stderr.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
