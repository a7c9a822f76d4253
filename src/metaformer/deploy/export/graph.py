"""A network traced to an ONNX model, and that model as bytes or as an OpenVINO model."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from metaformer.deploy.export.operators import load_onnxscript, translations
from metaformer.errors import ConfigError, OptimizeError
from metaformer.inference.exported import LARGEST
from metaformer.tasks.exported import ExportGraph

BATCH: Final = 2
"""Images that a graph is traced with: an axis of 1 would be taken for a constant."""


def trace(
    graph: ExportGraph, channels: int, batch: int | None, size: tuple[int, int] | None, side: int, opset: int
) -> Any:
    """An ONNX model of a graph, an `onnx.ModelProto`.

    Args:
        graph: in evaluation mode.
        channels: of the images.
        batch: number of images; None for any.
        size: height and width of the images; None for any.
        side: height and width to trace with where they vary.
        opset: version of ONNX's operators.

    Raises:
        ConfigError: the network has no graph.
        OptimizeError: ONNX has no form for it.
    """
    load_onnxscript()
    inputs = _inputs(graph, channels, batch or BATCH, size or (side, side + 32))
    height = 1 if graph.pixels else 2  # its axis
    axes = {} if batch else {0: "batch"}
    images = {**axes, **({} if size else {height: "height", height + 1: "width"})}
    shapes = [images, axes][: len(inputs)]
    names = ["images", "sizes"][: len(inputs)]
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph,
                inputs,
                dynamo=True,
                input_names=names,
                output_names=list(graph.outputs),
                dynamic_shapes=tuple(shape or None for shape in shapes),
                opset_version=opset,
                custom_translation_table=translations(),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = _last_reason(error)
        raise OptimizeError(f"{type(graph.network).__name__} has no ONNX form: {reason}") from error
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    return model


def to_bytes(model: Any) -> bytes:
    """An ONNX model in one piece.

    Raises:
        ConfigError: it is larger than the format takes.
    """
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > LARGEST - (1 << 24):
        raise ConfigError(
            f"the network has {size:,} bytes of weights: an ONNX file takes 2 GB; --dtype fp16 halves it"
        )
    data: bytes = model.SerializeToString()
    return data


def _inputs(graph: ExportGraph, channels: int, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    if graph.pixels:
        images = torch.zeros((batch, *size, channels), dtype=torch.uint8)
    else:
        images = torch.zeros((batch, channels, *size))
    return (images, torch.tensor([size] * batch)) if graph.takes_sizes else (images,)


def _forget_origin(model: Any) -> None:
    """Remove what PyTorch's exporter notes of each operation: paths and lines of the machine that ran it."""
    model.ClearField("metadata_props")
    for function in model.functions:
        function.ClearField("metadata_props")
    for part in (model.graph, *model.functions):
        part.ClearField("doc_string")
        for node in part.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")


def _last_reason(error: Exception) -> str:
    """The innermost error's first line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(cause).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own warnings and progress from our output."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
