"""The command line ``python -m graftflow.releases list|promote|rollback|withdraw``; it loads no TensorFlow."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from graftflow import releases
from graftflow.errors import InputError
from graftflow.releases import Release, Row

_DONE = {
    "promote": "version {version} is stable now",
    "rollback": "version {version} is stable again",
    "withdraw": "version {version} is no longer the canary",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m graftflow.releases",
        description="Which version of a model store is stable, which is the canary, and how to go back.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("list", "print the versions and their labels, newest first"),
        ("promote", "make the canary stable"),
        ("rollback", "make the stable version before stable again"),
        ("withdraw", "take the label of the canary away"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--store", default="models", help="folder or URI of the model store (models)")
        command.add_argument("--model-name", default="graftflow", help="the model (graftflow)")
        if name == "promote":
            command.add_argument("--version", type=int, help="another version of the store than the canary")
        if name == "list":
            command.add_argument("--format", choices=("table", "json"), default="table", help="(table)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 for an error, which is one line on stderr."""
    given = _parser().parse_args(arguments)
    where = {"store": given.store, "model_name": given.model_name}
    try:
        if given.command == "list":
            rows = releases.list_versions(**where)
            print(json.dumps([asdict(r) for r in rows], indent=2) if given.format == "json" else table(rows))
            return 0
        if given.command == "promote":
            done = releases.promote(**where, version=given.version)
        else:
            done = {"rollback": releases.rollback, "withdraw": releases.withdraw}[given.command](**where)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{given.model_name}: {describe(done)}")
    return 0


def describe(release: Release) -> str:
    """Return a release in one line."""
    if not release.changed:
        return f"version {release.version} is stable already"
    text = _DONE[release.action].format(version=release.version)
    if release.replaced is not None:
        text += f", version {release.replaced} is not"
    standing = release.standing
    if release.action != "withdraw" and standing.previous is not None:
        text += f"; a rollback goes to version {standing.previous}"
    return text


def table(rows: Sequence[Row]) -> str:
    """Return versions as aligned columns, under a line of headings."""
    cells = [("version", "label", "since", "accuracy", "")]
    cells += [
        (
            str(row.version),
            row.label or "–",
            row.since.replace("T", " ").replace("Z", " UTC") or "–",
            "–" if row.accuracy is None else f"{row.accuracy:.3f}",
            row.note,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
