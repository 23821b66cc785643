"""Tensors → JSON answers, as TensorFlow Serving's REST API writes them: ``3.0``, bare ``NaN``.

Knows numpy only, so that the protocol is tested without TensorFlow.
"""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from graftflow.serving.json_inputs import Format, Tensor
from graftflow.serving.status import invalid

_LARGE = 256  # numbers from which the fast writer pays


def write_outputs(outputs: Mapping[str, Tensor], form: Format) -> str:
    """Return the JSON answer to a predict request.

    Args:
        outputs: tensors by output name; strings are numpy objects holding ``bytes``.
        form: the format of the request, which the answer mirrors; a single output loses its name.

    Raises:
        ServingError: INVALID_ARGUMENT where outputs are missing, have no JSON form or, in row
            format, do not share their first dimension.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    single = len(outputs) == 1
    if form == "columnar":
        texts = {name: _whole(name, tensor) for name, tensor in outputs.items()}
        body = next(iter(texts.values())) if single else _members(texts)
        return f'{{"outputs": {body}}}\n'
    batch = -1
    for name, tensor in outputs.items():
        if tensor.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if batch not in (-1, tensor.shape[0]):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {tensor.shape[0]} expecting: {batch}"
            )
        batch = tensor.shape[0]
    columns = {name: _rows(name, tensor) for name, tensor in outputs.items()}
    if single:
        rows = next(iter(columns.values()))
    else:
        rows = [_members({n: texts[i] for n, texts in columns.items()}) for i in range(batch)]
    return '{"predictions": [\n' + ",\n".join(rows) + "\n]}\n"


def _members(texts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(n, ensure_ascii=False)}: {t}" for n, t in texts.items()) + "}"


def _whole(name: str, tensor: Tensor) -> str:
    return _fast(tensor) if _is_plain(tensor) else _nested(name, tensor, 0)[0]


def _rows(name: str, tensor: Tensor) -> list[str]:
    if tensor.ndim > 1 and _is_plain(tensor):
        return [_fast(row) for row in tensor]
    return _nested(name, tensor, 1)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the fast writer gives the same numbers: it has no NaN and no infinities."""
    if tensor.size < _LARGE or tensor.dtype.name not in ("float32", "float64", "int32", "int64"):
        return False
    return tensor.dtype.kind == "i" or bool(np.isfinite(tensor).all())


def _fast(tensor: Tensor) -> str:
    return orjson.dumps(np.ascontiguousarray(tensor), option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _nested(name: str, tensor: Tensor, first: int) -> list[str]:
    """The JSON text of every element along the dimensions before ``first``."""
    texts = scalars(name, tensor)
    for axis in range(tensor.ndim - 1, first - 1, -1):
        size, count = tensor.shape[axis], math.prod(tensor.shape[:axis])
        texts = ["[" + ", ".join(texts[i * size : (i + 1) * size]) + "]" for i in range(count)]
    return texts


def scalars(name: str, tensor: Tensor) -> list[str]:
    """Return the JSON text of every element, in order; bytes as base64 where ``name`` ends with ``_bytes``."""
    kind = tensor.dtype.kind
    if kind in "OSU":
        if name.endswith("_bytes"):
            return [f'{{"b64": "{base64.b64encode(_as_bytes(v)).decode()}"}}' for v in tensor.flat]
        return [json.dumps(_as_bytes(v).decode("utf-8", "replace"), ensure_ascii=False) for v in tensor.flat]
    if kind == "b":
        return ["true" if v else "false" for v in tensor.flat]
    if kind in "iu":
        return list(map(str, tensor.ravel().tolist()))
    if tensor.dtype.name in ("float16", "bfloat16"):
        tensor = tensor.astype(np.float32)
    if tensor.dtype.name not in ("float32", "float64"):
        raise invalid(f"Failed to write JSON value for tensor type: {tensor.dtype.name}")
    flat = np.ascontiguousarray(tensor).ravel()
    # The shortest decimal that reads back as the same float: 0.2, not 0.20000000298.
    texts = _fast(flat)[1:-1].split(",") if flat.size else []
    for index in np.flatnonzero(~np.isfinite(flat)):
        value = flat[index]
        texts[index] = "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return texts


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
