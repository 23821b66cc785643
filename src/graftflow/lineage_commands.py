"""The command line ``python -m graftflow.lineages show|register``; it loads no TensorFlow."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftflow import lineages, stored_lineages
from graftflow.errors import InputError
from graftflow.stored_lineages import StoredLineage


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m graftflow.lineages",
        description="Where a model comes from: run, commit, image, data, weights, settings and figures.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        (
            "show",
            "print where a model comes from, and check its files; the exit code is 1 where they were changed",
        ),
        ("register", "write a version and its lineage into a Kubeflow Model Registry, if they are not there"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument(
            "model",
            help="a version's folder, a saved_model artifact, a model's folder in a store (a path, gs://… or s3://…), "
            "or the name of a model in --store",
        )
        command.add_argument("--store", default="models", help="where a name is looked for (models)")
        command.add_argument("--version", type=int, help="(the stable one, or the newest)")
        if name == "show":
            command.add_argument("--format", choices=("table", "json"), default="table", help="(table)")
            continue
        command.add_argument("--registry", required=True, help="http(s)://host[:port] of the Model Registry")
        command.add_argument("--name", default="", help="of the registered model (its name in the store)")
        command.add_argument(
            "--uri", default="", help="where servers find the version (the address it was read from)"
        )
        command.add_argument(
            "--token-file", default="", help="file of a bearer token (else $GRAFTFLOW_REGISTRY_TOKEN)"
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 for an error or for files that were changed."""
    given = _parser().parse_args(arguments)
    try:
        found = stored_lineages.find(given.model, store=given.store, version=given.version)
        if given.command == "register":
            return _register(found, given)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if given.format == "json":
        print(json.dumps(stored_lineages.as_json(found), indent=2, ensure_ascii=False))
    else:
        draw(found)
    return 1 if found.warnings else 0


def _register(found: StoredLineage, given: argparse.Namespace) -> int:
    from graftflow import model_registry

    token = model_registry.read_token(given.token_file)
    registry = model_registry.ModelRegistry(given.registry, token=token)
    done = registry.register(found, name=given.name, uri=given.uri)
    print(
        f"{done.name} version {found.version}: {done.status} in {given.registry} (version id {done.version_id})"
    )
    return 0


def draw(found: StoredLineage) -> None:
    """Print a lineage in two columns, in colours where the output is a terminal; long values stay whole."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    table = list(rows(found))
    width = max(len(name) for name, _ in table)
    for name, value in table:
        text = f"{name.ljust(width)}[/]  {escape(value)}" if value else f"{name}[/]"
        console.print(f"[bold]{text}")
    check = {
        True: f"[green]the files are as {found.recorded_in} notes them[/]",
        False: "[bold red]the files were changed[/]",
        None: "[yellow]no sha256 was noted to compare with[/]",
    }
    console.print(f"[bold]{'checked'.ljust(width)}[/]  {check[found.verified]}")
    if found.lineage is None:
        console.print(
            "[yellow]The version has no lineage: it was not exported by a graftflow that writes one.[/]"
        )
    for warning in found.warnings:
        console.print(f"[bold red]warning: {escape(warning)}[/]")


def rows(found: StoredLineage) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a table; what is not known is ``–``."""
    yield (
        "model",
        f"{found.model_name or '–'}  version {found.version}" + (f"  {found.label}" if found.label else ""),
    )
    yield "where", found.uri
    if found.released:
        yield "released", found.released.replace("T", " ").replace("Z", " UTC")
    lineage = found.lineage
    if lineage is not None:
        yield "run", lineage["run_id"] or "–"
        yield "commit", lineage["commit"] or "–"
        yield "image", lineage["image"] or "–"
        dataset = lineage["dataset"]
        yield "data set", f"{dataset.get('source', '–')}, seed {dataset.get('seed', '–')}"
        yield "manifest", f"sha256 {dataset.get('digest') or '–'}"
        for split, counts in (dataset.get("counts") or {}).items():
            total = sum(counts.values())
            named = ", ".join(f"{n} {name}" for name, n in counts.items())
            yield (
                f"  {split}",
                f"{total} pictures: {named if len(counts) <= 10 else f'{len(counts)} classes'}",
            )
        backbone = lineage["backbone"]
        yield "backbone", f"{backbone.get('name', '–')}, weights {backbone.get('weights', '–')}"
        yield "weights", f"sha256 {backbone.get('weights_sha256') or '–'}"
        yield "parameters", ""
        yield from (("  " + name, value) for name, value in lineages.flat(lineage["parameters"]))
        yield "validation", "" if lineage["validation"] else "–"
        yield from (("  " + name, f"{value:.4g}") for name, value in lineage["validation"].items())
    if found.metrics:
        yield "test", ""
        yield from (("  " + name, _figure(value)) for name, value in found.metrics.items())
    if lineage is not None:
        yield "packages", ", ".join(f"{n} {v}" for n, v in lineage.get("packages", {}).items() if v)
    yield "sha256", found.sha256


def _figure(figure: Mapping[str, Any]) -> str:
    text = f"{figure['value']:.4g}"
    return (
        f"{text} ({figure['low']:.4g} to {figure['high']:.4g})" if {"low", "high"} <= figure.keys() else text
    )
