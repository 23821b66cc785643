"""The pipeline's parameters as command-line flags, and how each one reaches its component."""

import argparse
from typing import Any

from pipelines import settings as settings_file
from pipelines import transfer_learning

# kfp's subprocess runner replaces this word in every argument of a step by the interpreter's path.
_REWRITTEN = "python3"


def local_pipeline(image: str) -> Any:
    """Return the pipeline for this machine, its steps under one image name, one task at a time."""
    return transfer_learning.build(settings_file.load().for_this_machine(image), parallelism=1)


def add_flags(parser: argparse.ArgumentParser, pipeline: Any) -> None:
    """Add one flag a pipeline parameter, with the help text of the pipeline's docstring."""
    parameters = pipeline.pipeline_spec.root.input_definitions.parameters
    for name in pipeline.component_spec.inputs:  # in the order of the signature
        if name == "fingerprint":
            continue
        spec = parameters[name]
        default = default_of(spec)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=None,
            metavar=type(default).__name__.upper(),
            help=f"{spec.description} (default: {default})".replace("%", "%%"),
        )


def default_of(spec: Any) -> Any:
    """Return a parameter's default in Python's own type: KFP carries whole numbers as floats."""
    from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

    value = spec.default_value
    if spec.parameter_type == ParameterType.NUMBER_INTEGER:
        return int(value.number_value)
    if spec.parameter_type == ParameterType.NUMBER_DOUBLE:
        return float(value.number_value)
    return value.string_value


def defaults(pipeline: Any) -> dict[str, Any]:
    """Return every parameter's default, in the order of the signature."""
    parameters = pipeline.pipeline_spec.root.input_definitions.parameters
    return {name: default_of(parameters[name]) for name in pipeline.component_spec.inputs}


def refuse_rewritten(values: dict[str, Any]) -> None:
    """Raise ValueError for a value that kfp's subprocess runner would change on its way."""
    for name, value in values.items():
        if isinstance(value, str) and _REWRITTEN in value:
            raise ValueError(
                f"{name} must not contain '{_REWRITTEN}', which kfp's local runner replaces. "
                f"Received: '{value}'"
            )


def component_arguments(pipeline: Any, step: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of one step's component, taken from the pipeline's; none for the item of a loop.

    Args:
        pipeline: the pipeline.
        step: name of the step, e.g. ``fine_tune``.
        values: the pipeline's parameters.
    """
    spec = pipeline.pipeline_spec
    dags = [spec.root.dag, *(c.dag for c in spec.components.values() if c.HasField("dag"))]
    task = next(dag.tasks[name] for dag in dags for name in dag.tasks if name == _task(step))
    names = {
        name: given.component_input_parameter.removeprefix("pipelinechannel--")
        for name, given in task.inputs.parameters.items()
    }
    return {name: values[given] for name, given in names.items() if given in values}


def _task(step: str) -> str:
    return step.replace("_", "-")
