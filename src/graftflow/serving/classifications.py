"""Classify, Regress and MultiInference around a run of a signature: what it must look like, what it answers.

Every check, its code and its words are TensorFlow Serving's: ``servables/tensorflow/classifier.cc``,
``regressor.cc`` and ``multi_inference.cc``; the JSON is that of ``util/json_tensor.cc``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2, inference_pb2, model_pb2, regression_pb2

from graftflow.serving.json_inputs import Tensor, brackets
from graftflow.serving.json_outputs import scalars
from graftflow.serving.status import Code, ServingError, invalid

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
DEFAULT_SIGNATURE = "serving_default"
INPUTS, CLASSES, SCORES, REGRESSIONS = "inputs", "classes", "scores", "outputs"


@dataclass(frozen=True)
class Call:
    """How to run a signature that takes examples.

    Args:
        input_key: the name of its one input, which takes ``examples.serialized_examples``.
        input_tensor: that input's name in the graph, by which MultiInference tells inputs apart.
        output_keys: the outputs that the answer is made of; others need not be computed.
    """

    input_key: str
    input_tensor: str
    output_keys: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One checked task of a MultiInference request: a signature's name, the method asked of it, its call."""

    signature: str
    method: str
    call: Call


def find_signature(definitions: Mapping[str, Any], name: str) -> Any:
    """Return the ``SignatureDef`` that a Classify or Regress request names; an empty name is the default.

    Raises:
        ServingError: INVALID_ARGUMENT where there is none, which is FAILED_PRECONDITION for Predict.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in definitions:
        raise invalid(f"No signature was found with the name: {name}")
    return definitions[name]


def classification_request(definition: Any, *, check_method_name: bool = False) -> Call:
    """Return how to run a signature for Classify.

    Args:
        definition: a ``SignatureDef``: one input ``inputs``; ``classes``, ``scores`` or both as outputs.
        check_method_name: also refuse one that was not saved for Classify, as the flag
            ``--enable_signature_method_name_check`` wants; models of TensorFlow 2 save none for it.

    Raises:
        ServingError: INVALID_ARGUMENT where inputs, outputs or method are others.
    """
    if check_method_name:
        _check_method(definition, "classification", CLASSIFY_METHOD)
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(definition.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(definition.outputs)}")
    if INPUTS not in definition.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {definition}")
    outputs = tuple(key for key in (CLASSES, SCORES) if key in definition.outputs)
    if not outputs:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {definition}"
        )
    return Call(INPUTS, definition.inputs[INPUTS].name, outputs)


def regression_request(definition: Any, *, check_method_name: bool = False) -> Call:
    """Return how to run a signature for Regress: one input ``inputs``, one output ``outputs``.

    Raises:
        ServingError: INVALID_ARGUMENT where inputs, outputs or, if it is checked, the method are others.
    """
    if check_method_name:
        _check_method(definition, "regression", REGRESS_METHOD)
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(definition.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if INPUTS not in definition.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {definition}")
    if REGRESSIONS not in definition.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {definition}")
    return Call(INPUTS, definition.inputs[INPUTS].name, (REGRESSIONS,))


def classification_result(outputs: Mapping[str, Tensor], num_examples: int) -> Any:
    """Return a run's outputs as a ``classification_pb2.ClassificationResult``.

    Args:
        outputs: ``classes`` (objects of ``bytes``), ``scores`` (float32) or both, each of shape (n, k);
            further ones are ignored.
        num_examples: n.

    Returns:
        n lists of k pairs; without ``classes`` labels are empty, without ``scores`` scores are 0.

    Raises:
        ServingError: INVALID_ARGUMENT where a shape or dtype is another.
    """
    found = {key: outputs[key] for key in (CLASSES, SCORES) if key in outputs}
    for key, tensor in found.items():
        if np.ndim(tensor) != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape_of(tensor)}")
        expected = "DT_STRING" if key == CLASSES else "DT_FLOAT"
        if _dtype_of(tensor) != expected:
            raise invalid(f"Expected {key} Tensor of {expected}. Got: {_dtype_of(tensor)}")
        if len(tensor) != num_examples:
            raise invalid(f"Expected {key} output batch size of {num_examples}. Got: {len(tensor)}")
    widths = [tensor.shape[1] for tensor in found.values()]
    if len(set(widths)) > 1:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}")
    shape = (num_examples, widths[0] if widths else 0)
    labels = found[CLASSES].tolist() if CLASSES in found else np.full(shape, b"", np.object_).tolist()
    scores = found[SCORES].tolist() if SCORES in found else np.zeros(shape).tolist()
    result = classification_pb2.ClassificationResult()
    for row_labels, row_scores in zip(labels, scores, strict=True):
        classes = result.classifications.add().classes
        for label, score in zip(row_labels, row_scores, strict=True):
            classes.add(label=label.decode("utf-8", "replace"), score=score)
    return result


def regression_result(outputs: Mapping[str, Tensor], num_examples: int) -> Any:
    """Return a run's outputs as a ``regression_pb2.RegressionResult``.

    Args:
        outputs: ``outputs``, float32 of shape (n,) or (n, 1).
        num_examples: n.

    Raises:
        ServingError: INVALID_ARGUMENT where the shape or dtype is another.
    """
    if REGRESSIONS not in outputs:
        raise invalid(f"Could not find output tensor '{REGRESSIONS}'")
    tensor = outputs[REGRESSIONS]
    if np.ndim(tensor) != 1 and np.shape(tensor)[1:] != (1,):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {_shape_of(tensor)}"
        )
    if len(tensor) != num_examples:
        raise invalid(f"Input batch size did not match output batch size: {num_examples} vs. {len(tensor)}")
    if _dtype_of(tensor) != "DT_FLOAT":
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype_of(tensor)}")
    result = regression_pb2.RegressionResult()
    for value in tensor.ravel().tolist():
        result.regressions.add(value=value)
    return result


def write_classifications(result: Any) -> str:
    """Return the JSON answer to ``:classify``: for every example its ``[label, score]`` pairs.

    Raises:
        ServingError: INVALID_ARGUMENT where ``result`` is empty.
    """
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    found = [classification.classes for classification in result.classifications]
    # All numbers at once: turning them to text row by row takes twice as long for a few classes.
    numbers = iter(_numbers([one.score for classes in found for one in classes]))
    rows = [
        "["
        + ", ".join(f"[{json.dumps(c.label, ensure_ascii=False)}, {next(numbers)}]" for c in classes)
        + "]"
        for classes in found
    ]
    return '{"results": [\n' + ",\n".join(rows) + "\n]}\n"


def write_regressions(result: Any) -> str:
    """Return the JSON answer to ``:regress``: one number an example.

    Raises:
        ServingError: INVALID_ARGUMENT where ``result`` is empty.
    """
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    return f'{{"results": [{", ".join(_numbers([found.value for found in result.regressions]))}]}}\n'


def multi_inference_model(request: Any) -> Any:
    """Return the ``ModelSpec`` that decides which model and version answers a MultiInference request.

    It is the first task's: what the others say of a version is not looked at.

    Raises:
        ServingError: INVALID_ARGUMENT where there is no task or it names no model.
    """
    if not request.tasks or not request.tasks[0].model_spec.name:
        raise invalid("ModelSpec has no name specified.")
    return request.tasks[0].model_spec


def check_multi_inference(
    request: Any, definitions: Mapping[str, Any], *, check_method_name: bool = False
) -> list[Task]:
    """Return the tasks of a MultiInference request, in its order.

    Args:
        request: an ``inference_pb2.MultiInferenceRequest``.
        definitions: the model's ``SignatureDef`` by name.
        check_method_name: as in ``classification_request``.

    Raises:
        ServingError: UNIMPLEMENTED for a method that is neither of the two; INVALID_ARGUMENT where models
            differ, a signature is unknown, asked twice or does not fit its method, or where the
            signatures do not share one input tensor.
    """
    tasks: list[Task] = []
    for asked in request.tasks:
        if not asked.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if asked.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = asked.model_spec.signature_name or DEFAULT_SIGNATURE
        if any(task.signature == name for task in tasks):
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in definitions:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if asked.method_name not in (CLASSIFY_METHOD, REGRESS_METHOD):
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {asked.method_name}")
        check = classification_request if asked.method_name == CLASSIFY_METHOD else regression_request
        call = check(definitions[name], check_method_name=check_method_name)
        if tasks and call.input_tensor != tasks[0].call.input_tensor:
            raise invalid("Input tensor must be the same for all Signatures.")
        tasks.append(Task(name, asked.method_name, call))
    return tasks


def multi_inference_response(
    tasks: Sequence[Task],
    outputs: Sequence[Mapping[str, Tensor]],
    num_examples: int,
    *,
    model_name: str,
    version: int,
) -> Any:
    """Return the answer to a MultiInference request.

    Args:
        tasks: what ``check_multi_inference`` returned.
        outputs: for every task, what its signature gave for the request's examples.
        num_examples: how many examples those were.
        model_name: the model that answered.
        version: its version.

    Returns:
        An ``inference_pb2.MultiInferenceResponse`` with one result a task, each with its model, version
        and signature.

    Raises:
        ServingError: INVALID_ARGUMENT where an output does not fit its method.
    """
    response = inference_pb2.MultiInferenceResponse()
    for task, own in zip(tasks, outputs, strict=True):
        answer = response.results.add()
        if task.method == CLASSIFY_METHOD:
            answer.classification_result.CopyFrom(classification_result(own, num_examples))
        else:
            answer.regression_result.CopyFrom(regression_result(own, num_examples))
        answer.model_spec.CopyFrom(model_pb2.ModelSpec(name=model_name, signature_name=task.signature))
        answer.model_spec.version.value = version
    return response


def _check_method(definition: Any, what: str, method: str) -> None:
    if definition.method_name != method:
        raise invalid(f"Expected {what} signature method_name to be {method}. Was: {definition.method_name}")


def _numbers(values: list[float]) -> list[str]:
    return scalars("", np.array(values, np.float32))


def _shape_of(tensor: Tensor) -> str:
    return brackets(np.shape(tensor))


def _dtype_of(tensor: Tensor) -> str:
    return str(types_pb2.DataType.Name(tf.as_dtype(tensor.dtype).as_datatype_enum))
