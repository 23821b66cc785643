"""Compiles the pipeline into one YAML for a Kubeflow cluster: ``python -m pipelines.compile``."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kfp import compiler

from pipelines import settings as settings_file
from pipelines import transfer_learning

OUTPUT = Path(__file__).with_name("transfer_learning.yaml")


def compile_pipeline(output: str | Path, settings: settings_file.Settings) -> None:
    """Write the compiled pipeline; the same settings give the same bytes."""
    final = Path(output)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".compile-") as folder:
        aside = str(Path(folder) / "pipeline.yaml")
        compiler.Compiler().compile(transfer_learning.build(settings), aside)
        os.replace(aside, final)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description=__doc__)
    parser.add_argument("--settings", help="YAML file; default: pipelines/settings.yaml")
    parser.add_argument("--output", default=str(OUTPUT), help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        compile_pipeline(given.output, settings_file.load(given.settings))
    except (settings_file.SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Compiled {given.output}: upload it in the Kubeflow Pipelines UI, or with kfp.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
