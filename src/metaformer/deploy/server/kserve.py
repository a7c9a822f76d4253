"""The Open Inference Protocol v2 (KServe, Triton): tensors in, the outputs of exported graphs out."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from metaformer.deploy.server.batcher import Job
from metaformer.deploy.server.body import read_length
from metaformer.deploy.server.channel import Message
from metaformer.deploy.server.errors import RequestError
from metaformer.deploy.server.model import Model
from metaformer.deploy.server.settings import Settings
from metaformer.deploy.server.tensor import DATATYPES, InferRequest, encode_outputs

JSON_SIZE: Final = "inference-header-content-length"
"""Header with the size of the JSON in front of binary data."""
VERSION: Final = "1"
"""Of every network: there is one."""


def describe_model(model: Model) -> dict[str, Any]:
    """Inputs and outputs of a network."""
    tensors = {name: model.about[name] for name in ("inputs", "outputs")}
    return {"name": model.name, "versions": [VERSION], "platform": "metaformer", **tensors}


def read_request(
    model: Model, body: bytes, header: str | None, limits: Settings
) -> tuple[InferRequest, Callable[[], Job]]:
    """A request for the outputs of a network, and what makes a job of it.

    Args:
        model: the network.
        body: of the request.
        header: value of `JSON_SIZE`; None where all of the body is JSON.
        limits: `max_batch` images, and `max_pixels` of all of them together.

    Raises:
        RequestError: it is damaged, or does not fit the network.
    """
    size = len(body) if header is None else read_length(header)
    if size is None or size > len(body):
        raise RequestError(400, f"{JSON_SIZE} must be the size of the JSON in front of the binary data")
    request = InferRequest(body, size)
    inputs, known = dict(request.inputs), model.about["inputs"]
    for row in known:
        _check(row, inputs)
    if unknown := inputs.keys() - {row["name"] for row in known}:
        raise RequestError(400, f"no input {sorted(unknown)[0]!r:.60}; there are {_names(known)}")
    request.chosen([row["name"] for row in model.about["outputs"]])
    images = inputs["images"]
    height, width = (
        axis for axis, length in zip(images.shape[1:], known[0]["shape"][1:], strict=True) if length < 0
    )
    if not np.isfinite(images).all():
        raise RequestError(400, "images: not all numbers are finite")
    if len(images) > limits.max_batch:  # a detector's masks take a megabyte for each, however small it is
        raise RequestError(413, f"images: more than {limits.max_batch}, the largest batch")
    if len(images) * height * width > limits.max_pixels:
        raise RequestError(413, f"images: more than {limits.max_pixels:,} pixels")
    sizes = inputs.get("sizes")
    if sizes is not None and (
        len(sizes) != len(images) or (sizes < 1).any() or (sizes > (height, width)).any()
    ):
        raise RequestError(
            400, "sizes: height and width of each image, at least 1 and at most those of the batch"
        )
    fields = {"shape": images.shape, "sizes": None if sizes is None else sizes.tolist()}
    key = ("infer", images.shape[1:])
    return request, partial(Job, "infer", key, fields, images.tobytes(), len(images))


def _names(rows: Any) -> str:
    return ", ".join(row["name"] for row in rows)


def _check(row: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Refuse an input of another type or shape than a network takes."""
    name, shape = row["name"], row["shape"]
    if name not in inputs:
        if name == "images":
            raise RequestError(400, "the input 'images' is missing")
        return
    found = inputs[name]
    fits = len(found.shape) == len(shape) and all(
        have >= 1 and want in (-1, have) for have, want in zip(found.shape, shape, strict=True)
    )
    if not fits or DATATYPES.get(found.dtype.name) != row["datatype"]:
        raise RequestError(
            400, f"{name} must be {row['datatype']} of shape {shape}, where -1 is any number above 0"
        )


def encode_answer(model: Model, request: InferRequest, answer: Message) -> tuple[bytes, int | None]:
    """Body of a response, and the size of the JSON in front where there are binary data.

    Raises:
        RequestError: numbers that JSON does not have.
    """
    rows = zip(answer.fields["outputs"], answer.buffers, strict=True)
    outputs = [
        (row["name"], np.frombuffer(buffer, row["dtype"]).reshape(row["shape"])) for row, buffer in rows
    ]
    fields = {"model_name": model.name, "model_version": VERSION}
    if request.id is not None:
        fields["id"] = request.id
    try:
        return encode_outputs(fields, outputs, request.chosen([name for name, _ in outputs]))
    except ValueError as error:
        raise RequestError(500, "the network's outputs are not finite") from error
