"""Compiles the pipelines, each into one YAML for a Kubeflow cluster: ``python -m pipelines.compile``."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfp import compiler

from pipelines import compare_backbones, pods, transfer_learning
from pipelines import settings as settings_file

OUTPUT = Path(__file__).with_name("transfer_learning.yaml")
PIPELINES: dict[str, Any] = {
    "transfer_learning": transfer_learning,
    "compare_backbones": compare_backbones,
}


def compile_pipeline(
    output: str | Path, settings: settings_file.Settings, *, name: str = "transfer_learning"
) -> None:
    """Write the compiled pipeline of this name; the same settings give the same bytes.

    Raises:
        SettingsError: Kubernetes would refuse the pod of a step.
    """
    final = Path(output)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".compile-") as folder:
        aside = str(Path(folder) / "pipeline.yaml")
        compiler.Compiler().compile(PIPELINES[name].build(settings), aside)
        for problem in pods.problems(pods.read(aside)):
            raise settings_file.SettingsError(problem)
        os.replace(aside, final)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description=__doc__)
    parser.add_argument("--settings", help="YAML file; default: pipelines/settings.yaml")
    parser.add_argument("--pipeline", choices=PIPELINES, help="default: all of them, beside this module")
    parser.add_argument("--output", help="the file of --pipeline, or of transfer_learning")
    given = parser.parse_args(arguments)
    names = [given.pipeline or "transfer_learning"] if given.pipeline or given.output else list(PIPELINES)
    outputs = {name: given.output or str(OUTPUT.with_name(f"{name}.yaml")) for name in names}
    try:
        settings = settings_file.load(given.settings)
        for name, output in outputs.items():
            compile_pipeline(output, settings, name=name)
    except (settings_file.SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Compiled {' and '.join(outputs.values())}: upload in the Kubeflow Pipelines UI, or with kfp.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
