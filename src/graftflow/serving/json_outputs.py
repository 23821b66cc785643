"""Tensors → JSON answers, as TensorFlow Serving's REST API writes them: ``3.0``, bare ``NaN``.

Knows numpy only, so that the protocol is tested without TensorFlow.
"""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from graftflow.serving.json_inputs import Format, Tensor
from graftflow.serving.status import invalid


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
        texts = {name: _nested(name, tensor, 0)[0] for name, tensor in outputs.items()}
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
    columns = {name: _nested(name, tensor, 1) for name, tensor in outputs.items()}
    if single:
        rows = next(iter(columns.values()))
    else:
        rows = [_members({n: texts[i] for n, texts in columns.items()}) for i in range(batch)]
    return '{"predictions": [\n' + ",\n".join(rows) + "\n]}\n"


def _members(texts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(n, ensure_ascii=False)}: {t}" for n, t in texts.items()) + "}"


def _nested(name: str, tensor: Tensor, first: int) -> list[str]:
    """The JSON text of every element along the dimensions before ``first``."""
    texts = _scalars(name, tensor)
    for axis in range(tensor.ndim - 1, first - 1, -1):
        size, count = tensor.shape[axis], math.prod(tensor.shape[:axis])
        texts = ["[" + ", ".join(texts[i * size : (i + 1) * size]) + "]" for i in range(count)]
    return texts


def _scalars(name: str, tensor: Tensor) -> list[str]:
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
    # numpy prints the shortest decimal that reads back as the same float: 0.2, not 0.20000000298.
    texts = list(map(str, tensor.ravel()))
    if not np.isfinite(tensor).all():
        words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
        texts = [words.get(text, text) for text in texts]
    return texts


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
