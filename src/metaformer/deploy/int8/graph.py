"""A network as OpenVINO's graph, its products named after the network's modules."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from metaformer.errors import OptimizeError
from metaformer.inference.int8_model import load_openvino, settings, uncounted

PRODUCTS: Final = ("Convolution", "GroupConvolution", "MatMul")
"""OpenVINO's words for what int8 makes faster."""
TOLERANCE: Final = 1e-3
"""Largest difference of a float32 graph's logits, as a share of the largest logit."""
_WEIGHTED: Final = (torch.ops.aten.conv2d, torch.ops.aten.convolution, torch.ops.aten.linear)
_PATH: Final = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")
"""What lies between stored or quantized values and a product; it is computed within that, or beforehand."""


def make_graph(network: nn.Module, images: Tensor) -> Any:
    """Convert a classifier in evaluation mode to an `openvino.Model`, for any number of images of that size.

    The conversion is compared with the network on `images` (B, C, H, W), B at least 2.

    Raises:
        MissingPackage: OpenVINO is not installed.
        OptimizeError: OpenVINO lacks an operation, or its graph does not compute what the network does.
    """
    openvino = load_openvino()
    with torch.no_grad():
        program = torch.export.export(
            network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        )
        wanted = network(images)
    names = _prepare(program)
    try:
        with uncounted(), _log_level_kept():
            graph = openvino.convert_model(program)
    except (RuntimeError, openvino.frontend.OpConversionFailure) as error:
        told = str(error).strip().splitlines()[-1]
        raise OptimizeError(f"OpenVINO cannot take {type(network).__name__}: {told}") from error
    compiled = openvino.compile_model(graph, "CPU", {**settings(), "INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(compiled(images.numpy())[0])
    share = ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).item()
    if not share <= TOLERANCE:
        raise OptimizeError(
            f"OpenVINO's form of {type(network).__name__} differs from it by {share:.1e} of the largest "
            f"logit, more than {TOLERANCE:.0e}: please report the model"
        )
    graph.reshape([-1, *images.shape[1:]])  # the conversion leaves height and width open as well
    _name(graph, names)
    return graph


@contextmanager
def _log_level_kept() -> Iterator[None]:
    """OpenVINO's converter changes the level of the program's log, and leaves it so where it fails."""
    root = logging.getLogger()
    level = root.level
    try:
        yield
    finally:
        root.setLevel(level)


def float_products(graph: Any) -> tuple[list[str], list[str]]:
    """Names of all products, and of those among them that are not computed in int8."""
    products = _products(graph)
    left = [op for op in products if not all(map(_is_int8, op.inputs()))]
    return [op.get_friendly_name() for op in products], [op.get_friendly_name() for op in left]


def _prepare(program: Any) -> list[tuple[str, int]]:
    """Make the program one that OpenVINO can read; modules with weights and how many, as they are called."""
    names = []
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.empty_like.default:  # OpenVINO has no memory with anything in it
            node.target = torch.ops.aten.zeros_like.default
        if getattr(node.target, "overloadpacket", None) in _WEIGHTED:
            path, _ = list(node.meta["nn_module_stack"].values())[-1]
            names.append((path, node.args[1].meta["val"].numel()))
    program.graph_module.recompile()
    return names


def _name(graph: Any, names: list[tuple[str, int]]) -> None:
    """Name products after modules, where both come in the same order; else OpenVINO's names stay."""
    products = [op for op in _products(graph) if op.input_value(1).get_node().get_type_name() == "Constant"]
    sizes = [int(op.input_value(1).get_node().get_data().size) for op in products]
    if sizes == [size for _, size in names]:
        for op, (path, _) in zip(products, names, strict=True):
            op.set_friendly_name(path)


def _products(graph: Any) -> list[Any]:
    return [op for op in graph.get_ordered_ops() if op.get_type_name() in PRODUCTS]


def _is_int8(value: Any) -> bool:
    """Tell whether a product's input comes from stored int8 values, or from values that were quantized."""
    node = value.get_source_output().get_node()
    while node.get_type_name() in _PATH:
        node = node.input_value(0).get_node()
    stored = node.get_type_name() == "Constant" and "8" in node.get_output_element_type(0).to_string()
    return stored or node.get_type_name() == "FakeQuantize"
