"""JSON requests → tensors, as TensorFlow Serving's REST API maps them: strict types, no coercion.

Knows numpy only, so that the protocol is tested without TensorFlow.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from graftflow.serving.status import Code, ServingError, invalid

Tensor = npt.NDArray[Any]
Format = Literal["row", "columnar"]

# TensorFlow's name of a dtype → numpy's; what is not here has no JSON form.
DTYPES: dict[str, Any] = {
    "bool": np.bool_,
    "string": np.object_,
    "float": np.float32,
    "double": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
_SHOWN = 256  # characters of a received value in a message
# Lists in a request, an object counting as three: each takes some 80 bytes, whatever it holds. The largest request
# that is nothing but pixels, "[0,0,0]," for each, has no more.
_MOST_LISTS = 2**23


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``; ``NaN``, ``Infinity`` and ``-Infinity`` are numbers.

    Raises:
        ServingError: INVALID_ARGUMENT where ``body`` is empty, no JSON, no object, too deep or of too many parts.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    if body.count(b"[") + 3 * body.count(b"{") > _MOST_LISTS:
        raise invalid(f"JSON Parse error: More than {_MOST_LISTS} lists, where an object counts as three")
    try:
        # The fast reader knows the standard alone; what it refuses is read again, or refused, by Python's,
        # which knows NaN and infinities and tells where an error is.
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _parse_leniently(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    return document


def _parse_leniently(body: bytes) -> Any:
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid value. {error.msg} at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Nested too deeply") from None
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from None
    except ValueError:  # a whole number of more digits than Python reads
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None


def signature_name(document: Mapping[str, Any], default: str = "serving_default") -> str:
    """Return the signature that a request names, else ``default``.

    Raises:
        ServingError: INVALID_ARGUMENT where the name is no string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {show(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name or default


def read_inputs(document: Mapping[str, Any], dtypes: Mapping[str, str]) -> tuple[dict[str, Tensor], Format]:
    """Return a predict request's input tensors and the format they came in.

    Args:
        document: the request, with ``instances`` (row format) or ``inputs`` (column format).
        dtypes: for every input of the signature, its dtype's TensorFlow name.

    Returns:
        Tensors by input name; strings are numpy objects holding ``bytes``. In row format all have
        the number of instances as their first dimension.

    Raises:
        ServingError: INVALID_ARGUMENT, in TensorFlow Serving's words, where types, nesting or names
            do not fit.
    """
    rows, columns = "instances" in document, "inputs" in document
    if rows and columns:
        raise invalid(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if not rows and not columns:
        raise invalid("Missing 'inputs' or 'instances' key")
    if not dtypes:
        name = signature_name(document, "DEFAULT")
        raise invalid(f"Failed to get input map for signature: {name}")
    try:
        if columns:
            return _read_columns(document["inputs"], dtypes), "columnar"
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(f"JSON Value: {show(document)} Excepting 'instances' to be an list/array")
        if not instances:
            raise invalid(f"JSON Value: {show(document)} No values in 'instances' array")
        return _read_rows(instances, dtypes), "row"
    except RecursionError:
        raise invalid("JSON Parse error: Nested too deeply") from None
    except UnicodeEncodeError:  # half a surrogate pair, which Python's reader lets through
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _read_rows(instances: list[Any], dtypes: Mapping[str, str]) -> dict[str, Tensor]:
    named = _is_named(instances[0])
    if not named:
        if len(dtypes) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map"
            )
        for index, item in enumerate(instances):
            if _is_named(item):
                raise invalid(f"Expecting value/list but got object at item {index} of input list")
        name, dtype = next(iter(dtypes.items()))
        return {name: _stack(instances, dtype, "Failed to process element: {} of 'instances' list.")}
    for index, item in enumerate(instances):
        if not _is_named(item):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        for name in item:
            if name not in dtypes:
                raise invalid(
                    f"Failed to process element: {index} key: {name} of 'instances' list. Error: "
                    f"INVALID_ARGUMENT: JSON object: does not have named input: {name}"
                )
        if item.keys() != dtypes.keys():
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{show(item)} keys must be equal to: {','.join(sorted(dtypes))}"
            )
    return {
        name: _stack(
            [item[name] for item in instances],
            dtype,
            "Failed to process element: {} key: " + name + " of 'instances' list.",
        )
        for name, dtype in dtypes.items()
    }


def _read_columns(inputs: Any, dtypes: Mapping[str, str]) -> dict[str, Tensor]:
    if not _is_named(inputs):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        name, dtype = next(iter(dtypes.items()))
        return {name: to_tensor(inputs, dtype)}
    for name in dtypes:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_tensor(inputs[name], dtype) for name, dtype in dtypes.items()}


def to_tensor(value: Any, dtype: str) -> Tensor:
    """Return a JSON value, scalar or nested lists, as a tensor of ``dtype`` and that shape."""
    leaves: list[Any] = []
    shape = _shape(value)
    _flatten(value, 0, shape, leaves)
    return _build(leaves, shape, dtype)


def _stack(items: list[Any], dtype: str, prefix: str) -> Tensor:
    """Return equally shaped ``items`` as one tensor; ``prefix`` opens a message about an item."""
    leaves: list[Any] = []
    shape = _shape(items[0])
    size = math.prod(shape)
    for index, item in enumerate(items):
        try:
            own = _shape(item)
            if own != shape:
                if math.prod(own) != size:
                    raise invalid(f"Expecting tensor size: {size} but got: {math.prod(own)}")
                raise invalid(f"Expecting shape {brackets(shape)} but got: {brackets(own)}")
            _flatten(item, 0, shape, leaves)
        except ServingError as error:
            raise _within(error, prefix.format(index)) from None
    try:
        return _build(leaves, (len(items), *shape), dtype)
    except ServingError:
        # Which one it was is asked only now: converting item by item costs ten times as much.
        for index, item in enumerate(items):
            try:
                to_tensor(item, dtype)
            except ServingError as error:
                raise _within(error, prefix.format(index)) from None
        raise


def _within(error: ServingError, prefix: str) -> ServingError:
    # Whatever was wrong with an element, the request is what is invalid.
    return invalid(f"{prefix} Error: {error.code.name}: {error.message}")


def _shape(value: Any) -> tuple[int, ...]:
    """The shape that a value claims: the lengths of its first elements, level by level."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _flatten(value: Any, level: int, shape: tuple[int, ...], leaves: list[Any]) -> None:
    """Append the leaves of ``value`` to ``leaves``; lists must have the lengths of ``shape``."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {show(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {len(shape)}"
            )
        leaves.append(value)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    if level == len(shape) - 1 and list not in set(map(type, value)):
        leaves.extend(value)
        return
    for item in value:
        _flatten(item, level + 1, shape, leaves)


def _build(leaves: list[Any], shape: tuple[int, ...], dtype: str) -> Tensor:
    if dtype not in DTYPES:
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {show(leaves[0] if leaves else [])} to type: {dtype}",
        )
    # Exact types: Python's True is an int, and TensorFlow Serving coerces nothing.
    types = set(map(type, leaves))
    if dtype == "string":
        _check_types(leaves, types, {str, dict}, dtype)
        flat = np.empty(len(leaves), np.object_)
        flat[:] = [v.encode() if isinstance(v, str) else decode_base64(v) for v in leaves]
    elif dtype in ("float", "double"):
        _check_types(leaves, types, {float, int}, dtype)
        flat = _floats(leaves, dtype)
    else:
        _check_types(leaves, types, {bool} if dtype == "bool" else {int}, dtype)
        flat = _whole(leaves, dtype)
    try:
        return flat.reshape(shape)
    except ValueError as error:  # more dimensions than numpy has
        raise invalid(f"Failed to build a tensor of rank {len(shape)}: {error}") from None


def _check_types(leaves: list[Any], types: set[type], allowed: set[type], dtype: str) -> None:
    if not types <= allowed:
        raise _wrong_type(next(v for v in leaves if type(v) not in allowed), dtype)


def _wrong_type(value: Any, dtype: str) -> ServingError:
    return invalid(f"JSON Value: {show(value)} Type: {json_type(value)} is not of expected type: {dtype}")


def _floats(leaves: list[Any], dtype: str) -> Tensor:
    try:
        wide = np.array(leaves, np.float64)
    except OverflowError:
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    with np.errstate(over="ignore"):
        return wide.astype(DTYPES[dtype])  # 1e39 becomes the infinity of float32


def _whole(leaves: list[Any], dtype: str) -> Tensor:
    if dtype == "bool":
        return np.array(leaves, np.bool_)
    limits = np.iinfo(DTYPES[dtype])
    for value in leaves:
        if not limits.min <= value <= limits.max:
            raise _wrong_type(value, dtype)
    return np.array(leaves, DTYPES[dtype])


def refuse_overflow(body: bytes) -> None:
    """Raise for a decimal such as ``1e400``, which Python reads as infinity.

    Called only for requests whose tensors hold an infinity: it reads the JSON again, and slowly.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """

    def finite(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            raise invalid("JSON Parse error: Number too big to be stored in double.")
        return value

    json.loads(body, parse_float=finite)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: dict[str, Any]) -> bool:
    """Whether an object is bytes, ``{"b64": "…"}``."""
    return len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(value: dict[str, Any]) -> bytes:
    """Return the bytes of ``{"b64": "…"}``, padded or not; raises ServingError for anything else."""
    if not is_base64(value):
        raise invalid(f"JSON Value: {show(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        bare = "".join(text.split()).rstrip("=")
        try:
            return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise invalid("Unable to base64 decode") from None


def json_type(value: Any) -> str:
    """Return a value's type as RapidJSON names it, for messages."""
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    names: Sequence[tuple[type, str]] = ((dict, "Object"), (list, "Array"), (str, "String"))
    return next((name for kind, name in names if isinstance(value, kind)), "Number")


def show(value: Any) -> str:
    """Return a value as JSON, cut: a message must not repeat a picture."""
    shown = ""
    for piece in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
        shown += piece[: _SHOWN + 1]
        if len(shown) > _SHOWN:
            return shown[:_SHOWN] + "…"
    return shown


def brackets(shape: tuple[int, ...]) -> str:
    """Return a shape as ``[2,3]``, for messages."""
    return "[" + ",".join(map(str, shape)) + "]"


def has_infinity(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors holds an infinity."""
    return any(t.dtype.kind == "f" and bool(np.isinf(t).any()) for t in tensors.values())
