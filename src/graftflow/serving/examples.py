"""Requests made of ``tf.Example`` (Classify, Regress, MultiInference): from JSON, and to a tensor.

Types are strict: ``{"x": 2}`` is a feature of int64, ``{"x": 2.0}`` one of floats, and a list holds one kind.

Source: TensorFlow Serving, ``util/json_tensor.cc`` and ``servables/tensorflow/util.cc``.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_serving.apis import input_pb2

from graftflow.serving.json_inputs import Tensor, decode_base64, is_base64, json_type, show
from graftflow.serving.status import ServingError, invalid

_CONTEXT_BYTES = 64 * 2**20  # of a request's context, which is copied for each of its examples
_KINDS = {bool: "int64", int: "int64", float: "float", str: "bytes", dict: "bytes"}


def read_examples(document: Mapping[str, Any]) -> Any:
    """Return the examples of a ``:classify`` or ``:regress`` request.

    Args:
        document: the request, with ``examples``, a list of objects of features, and optionally
            ``context``, an object of the features that all of them share. A feature is a number, a
            string, ``{"b64": …}`` or a list of such. Its signature is
            ``json_inputs.signature_name(document)``, which TensorFlow Serving reads first.

    Returns:
        An ``input_pb2.Input``: ``example_list_with_context`` where there is a ``context``, even an
        empty one, else ``example_list``. A decimal beyond float32 is an infinity.

    Raises:
        ServingError: INVALID_ARGUMENT, in TensorFlow Serving's words, where the form does not fit.
    """
    request_input = input_pb2.Input()
    try:
        if "context" in document:
            target = request_input.example_list_with_context
            _fill(target.context, document["context"])
            target.context.SetInParent()
        else:
            target = request_input.example_list
        if "examples" not in document:
            raise _malformed(
                document, "When method is classify, key 'examples' is expected and was not found"
            )
        if not isinstance(document["examples"], list):
            raise _malformed(document, "Expecting 'examples' value to be an list/array")
        if not document["examples"]:
            raise _malformed(document, "'examples' value is an empty array")
        for example in document["examples"]:
            _fill(target.examples.add(), example)
    except RecursionError:
        raise invalid("JSON Parse error: Nested too deeply") from None
    except UnicodeEncodeError:  # half a surrogate pair, which Python's reader lets through
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
    return request_input


def has_infinity(request_input: Any) -> bool:
    """Whether any feature of an ``input_pb2.Input`` holds an infinity: see ``json_inputs.refuse_overflow``."""
    kind = request_input.WhichOneof("kind")
    if kind is None:
        return False
    listed = getattr(request_input, kind)
    context = [listed.context] if kind == "example_list_with_context" else []
    return any(
        math.isinf(value)
        for example in (*context, *listed.examples)
        for feature in example.features.feature.values()
        for value in feature.float_list.value
    )


def serialized_examples(request_input: Any) -> Tensor:
    """Return what a signature of examples takes: each example's bytes, the context's before them.

    A message read from two, one after the other, is both merged; where they hold the same feature, the
    example's counts.

    Args:
        request_input: an ``input_pb2.Input``.

    Returns:
        Shape (n,), objects of ``bytes``, n ≥ 1.

    Raises:
        ServingError: INVALID_ARGUMENT where there is no example, or the context of all takes too much.
    """
    kind = request_input.WhichOneof("kind")
    listed = getattr(request_input, kind) if kind else None
    if listed is None or not listed.examples:
        raise invalid("Input is empty.")
    context = listed.context.SerializeToString() if kind == "example_list_with_context" else b""
    if len(context) * len(listed.examples) > _CONTEXT_BYTES:
        raise invalid(
            f"A context, once for each example, must be at most {_CONTEXT_BYTES} bytes. "
            f"Received: {len(context)} for {len(listed.examples)} examples"
        )
    tensor = np.empty(len(listed.examples), np.object_)
    tensor[:] = [context + example.SerializeToString() for example in listed.examples]
    return tensor


def _malformed(document: Mapping[str, Any], rule: str) -> ServingError:
    return invalid(f"JSON Value: {show(document)} {rule}")


def _fill(example: Any, content: Any) -> None:
    """Write a JSON object's members into ``example`` as features."""
    if not isinstance(content, dict):
        raise invalid(f"Example must be JSON object but got JSON {json_type(content)}")
    for name, value in content.items():
        feature = example.features.feature[name]  # being asked for makes it: [] is a feature of no kind
        values = value if isinstance(value, list) else [value]
        if set(map(type, values)) == {float}:  # the usual case, without a look at each
            feature.float_list.value.extend(values)
        elif values:
            kind, items = _read_values(name, values)
            getattr(feature, f"{kind}_list").value.extend(items)


def _read_values(name: str, values: list[Any]) -> tuple[str, list[Any]]:
    """Return the one kind of a feature's values, which the first decides, and the values in it."""
    kind, items = "", []
    for value in values:
        own = _kind_of(name, value)
        kind = kind or own
        if own != kind:
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {kind}")
        items.append(_item(name, value, kind))
    return kind, items


def _kind_of(name: str, value: Any) -> str:
    if type(value) not in _KINDS or (isinstance(value, dict) and not is_base64(value)):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "float"  # as a JSON reader in C++ reads a whole number beyond 64 bits
    return _KINDS[type(value)]


def _item(name: str, value: Any, kind: str) -> bytes | float:
    if isinstance(value, dict):
        return decode_base64(value)
    if isinstance(value, str):
        return value.encode()
    if kind == "float":
        try:
            return float(value)
        except OverflowError:
            raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if value >= 2**63:
        raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    return int(value)
