"""Tensors of the Open Inference Protocol v2, as JSON and in the binary extension."""

import json
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metaformer.deploy.server.errors import RequestError

DATATYPES: Final = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "float32": "FP32",
    "float16": "FP16",
    "float64": "FP64",
}
"""The protocol's names of numpy's types."""
_TYPES: Final = {kind: np.dtype(name) for name, kind in DATATYPES.items()}
MAX_INPUTS: Final = 16


class InferRequest:
    """A request of the protocol.

    Args:
        body: JSON, with binary data behind it.
        json_size: bytes of the JSON.

    Raises:
        RequestError: it is damaged.
    """

    def __init__(self, body: bytes, json_size: int) -> None:
        self._fields = _object(body[:json_size])
        self.id = self._fields.get("id")
        if self.id is not None and not (isinstance(self.id, str) and len(self.id) <= 1000):
            raise RequestError(400, "id must be a text")
        self.inputs = self._read_inputs(body[json_size:])
        self.outputs = self._read_outputs()
        """The outputs that are asked for, and whether as binary data; None for all."""
        self.binary = _parameters(self._fields).get("binary_data_output") is True
        """Whether outputs are binary data where nothing else is said."""

    def _read_inputs(self, data: bytes) -> dict[str, NDArray[Any]]:
        rows, start = _rows(self._fields, "inputs"), 0
        if not rows:
            raise RequestError(400, "inputs must be a list of tensors")
        found = {}
        for row in rows:
            name, shape, dtype = _text(row, "name"), _shape(row.get("shape")), _dtype(row)
            size = _parameters(row).get("binary_data_size")
            if size is None:
                found[name] = _numbers(name, row.get("data"), shape, dtype)
                continue
            if not _natural(size) or size != math.prod(shape) * dtype.itemsize:
                raise RequestError(400, f"{name!r:.60}: binary_data_size does not fit the shape and datatype")
            part = data[start : start + size]
            start += size
            if len(part) < size:
                raise RequestError(400, f"{name!r:.60}: binary data are cut off")
            found[name] = np.frombuffer(part, dtype.newbyteorder("<")).reshape(shape)
        if start != len(data):
            raise RequestError(400, "there are more binary data than the inputs say")
        return found

    def _read_outputs(self) -> dict[str, bool | None] | None:
        if self._fields.get("outputs") is None:
            return None
        rows = _rows(self._fields, "outputs")
        return {_text(row, "name"): _parameters(row).get("binary_data") for row in rows} or None

    def chosen(self, known: Sequence[str]) -> dict[str, bool]:
        """The outputs to send, and whether as binary data.

        Raises:
            RequestError: one that the network does not have.
        """
        if self.outputs is None:
            return dict.fromkeys(known, self.binary)
        if unknown := self.outputs.keys() - set(known):
            raise RequestError(400, f"no output {sorted(unknown)[0]!r:.60}; there are {', '.join(known)}")
        return {
            name: self.binary if binary is None else binary is True for name, binary in self.outputs.items()
        }


def encode_outputs(
    fields: dict[str, Any], outputs: Sequence[tuple[str, NDArray[Any]]], binary: dict[str, bool]
) -> tuple[bytes, int | None]:
    """Body of a response, and the size of the JSON at its beginning where binary data follow.

    Args:
        fields: of the response, beside the outputs.
        outputs: names and values.
        binary: which of them are sent, and whether as binary data.
    """
    rows: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, array in outputs:
        if name not in binary:
            continue
        row: dict[str, Any] = {
            "name": name,
            "shape": list(array.shape),
            "datatype": DATATYPES[array.dtype.name],
        }
        if binary[name]:
            parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            row["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            row["data"] = array.ravel().tolist()
        rows.append(row)
    text = json.dumps({**fields, "outputs": rows}, allow_nan=False).encode()
    return text + b"".join(parts), len(text) if parts else None


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "the body is no JSON") from error
    if not isinstance(value, dict):
        raise RequestError(400, "the body must be a JSON object")
    return value


def _rows(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = fields.get(name)
    if not isinstance(rows, list) or len(rows) > MAX_INPUTS or not all(isinstance(row, dict) for row in rows):
        raise RequestError(400, f"{name} must be a list of at most {MAX_INPUTS} objects")
    return rows


def _parameters(fields: dict[str, Any]) -> dict[str, Any]:
    found = fields.get("parameters")
    return found if isinstance(found, dict) else {}


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise RequestError(400, f"{name} must be a text")
    return value


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 8 or not all(map(_natural, value)):
        raise RequestError(400, "shape must be a list of whole numbers")
    if math.prod(value) >= 2**40:
        raise RequestError(400, "shape is too large")
    return tuple(value)


def _dtype(row: dict[str, Any]) -> np.dtype[Any]:
    kind = row.get("datatype")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise RequestError(400, f"datatype must be one of {', '.join(_TYPES)}")
    return _TYPES[kind]


def _numbers(name: str, data: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers of JSON, flat or nested, as a tensor."""
    wrong = RequestError(400, f"{name!r:.60}: data must be {math.prod(shape)} numbers of the datatype")
    if not isinstance(data, list):
        raise wrong
    try:
        array = np.asarray(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise wrong from error
    if array.size != math.prod(shape) or array.dtype.kind not in ("b" if dtype.kind == "b" else "iuf"):
        raise wrong
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.dtype.kind == "f" or array.min() < limits.min or array.max() > limits.max:
            raise wrong
    with np.errstate(over="ignore"):
        return array.astype(dtype).reshape(shape)
