"""What a run on this machine tells its steps of itself, for the lineage of the model that it exports."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from kfp.local import executor_input_utils

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def new_run(pipeline_name: str, image: str) -> Iterator[str]:
    """Give the next run of kfp.local its id, which is the name of its folder, and tell it to the steps.

    Args:
        pipeline_name: the id begins with it.
        image: that the steps have as processes of this machine; a container knows its own.

    Yields:
        The id.
    """
    run_id = f"{pipeline_name}-{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
    # kfp.local would take a name of its own, and tell nobody before the first step has written into its folder.
    original = executor_input_utils.get_local_pipeline_resource_name
    executor_input_utils.get_local_pipeline_resource_name = lambda _: run_id
    try:
        with told(run_id, image):
            yield run_id
    finally:
        executor_input_utils.get_local_pipeline_resource_name = original


@contextlib.contextmanager
def told(run_id: str, image: str) -> Iterator[None]:
    """Set the variables that ``export_model`` reads, for the block; a commit that is set already stays.

    Args:
        run_id: the name of the run's folder.
        image: what the steps run in.
    """
    variables = {
        "GRAFTFLOW_RUN_ID": run_id,
        "GRAFTFLOW_COMMIT": os.environ.get("GRAFTFLOW_COMMIT") or read_commit(),
        "GRAFTFLOW_IMAGE": image,
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def read_commit(folder: Path = ROOT) -> str:
    """Return the commit of a working copy, ``-dirty`` behind it where tracked files differ; ``""`` where none is told.

    Args:
        folder: the top of the working copy: a folder inside another project's is not its code.
    """
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return ""
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()
