"""Fine-tuning on several machines: ``python -m graftflow.training_workers``, which each of them runs.

All machines read the same artifacts and train together; the first one writes the ``model`` artifact. Where
``TF_CONFIG`` is not set, as in a TrainJob of Kubeflow, it is made of the hosts' names and of the number that Kubernetes
gives each pod of an indexed Job.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from graftflow.errors import InputError
from graftflow.recipe_flags import add_recipe_flags, recipe_of
from graftflow.recipes import Recipe

# What Kubernetes sets in each pod of an indexed Job: its number, from 0.
INDEX = "JOB_COMPLETION_INDEX"


def cluster_text(hosts: str, *, num_nodes: int, index: int, port: int = 2222) -> str:
    """Return the ``TF_CONFIG`` of one of several machines.

    Args:
        hosts: a machine's name, with ``{index}`` in place of its number.
        num_nodes: how many there are.
        index: which one this is, from 0.
        port: on which each listens to the others.

    Raises:
        InputError: for a number out of range, or names that are all the same.
    """
    if num_nodes < 1:
        raise InputError(f"nodes must be a whole number from 1. Received: {num_nodes}")
    if not 0 <= index < num_nodes:
        raise InputError(f"{INDEX} must be a whole number from 0 to {num_nodes - 1}. Received: {index}")
    if not 1 <= port <= 65535:
        raise InputError(f"port must be a whole number from 1 to 65535. Received: {port}")
    if num_nodes > 1 and "{index}" not in hosts:
        raise InputError(
            f"hosts must hold {{index}}, such as 'fine-tune-node-0-{{index}}.fine-tune'. Received: '{hosts}'"
        )
    workers = [f"{hosts.replace('{index}', str(number))}:{port}" for number in range(num_nodes)]
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})


def _index(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"{INDEX} must be a whole number from 0, as an indexed Job sets it. Received: '{text}'"
        ) from error


def train(
    output: Path,
    *,
    dataset_path: Path,
    head_path: Path,
    weights: str,
    num_blocks: int,
    recipe: Recipe,
) -> str:
    """Fine-tune together with the other machines of ``TF_CONFIG``; returns what this one has done.

    Args:
        output: the ``model`` artifact, which the first machine alone writes.
        dataset_path: a ``dataset`` artifact.
        head_path: a ``head`` artifact.
        weights: the backbone's weights.
        num_blocks: how many of the last blocks train.
        recipe: how.

    Raises:
        InputError: for a setting or an artifact that is wrong.
        ConnectionError: another machine was lost.
    """
    import tensorflow as tf

    from graftflow import distribution
    from graftflow.seals import check_seals, sealed_directory

    check_seals(dataset_path, head_path)
    from graftflow.training import figures_of, write_model

    with tempfile.TemporaryDirectory(prefix="worker-") as own:
        written = Path(own) / "model"
        written.mkdir()
        try:
            summary = write_model(
                written,
                dataset_path=dataset_path,
                head_path=head_path,
                weights=weights,
                num_blocks=num_blocks,
                recipe=recipe,
            )
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError) as error:
            if distribution.num_machines() == 1:
                raise
            raise ConnectionError(
                f"All machines must train to the end. Received: {' '.join(error.message.split())[:300]}"
            ) from error
        if not any(written.iterdir()):
            return "trained; the first machine writes the model"
        with sealed_directory(output) as folder:
            for path in written.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
    told = ", ".join(f"{name} {value:.4f}" for name, value in figures_of(summary).items())
    return f"wrote {output}: {told}"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m graftflow.training_workers", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of a dataset artifact")
    parser.add_argument("--head", type=Path, required=True, help="folder of a head artifact")
    parser.add_argument("--output", type=Path, required=True, help="folder that becomes the model artifact")
    parser.add_argument("--weights", default="imagenet", help="of the backbone; default: %(default)s")
    parser.add_argument("--num-blocks", type=int, default=2, help="that train; default: %(default)s")
    parser.add_argument("--nodes", type=int, default=1, help="machines; default: %(default)s")
    parser.add_argument("--hosts", default="localhost", help="their names, with {index} for the number")
    parser.add_argument("--port", type=int, default=2222, help="default: %(default)s")
    add_recipe_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 where a machine was lost, 2 for wrong settings or artifacts."""
    given = build_parser().parse_args(arguments)
    try:
        recipe = recipe_of(given)
        if given.nodes != 1 and not os.environ.get("TF_CONFIG"):
            index = _index(os.environ.get(INDEX, ""))
            os.environ["TF_CONFIG"] = cluster_text(
                given.hosts, num_nodes=given.nodes, index=index, port=given.port
            )
        done = train(
            given.output,
            dataset_path=given.dataset,
            head_path=given.head,
            weights=given.weights,
            num_blocks=given.num_blocks,
            recipe=recipe,
        )
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ConnectionError) else 2
    print(done, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
