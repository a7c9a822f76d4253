"""A network as OpenVINO's graph, its products named after the network's modules."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaformer.errors import MissingPackage, OptimizeError
from metaformer.inference.int8_model import load_openvino, settings, uncounted

PRODUCTS: Final = ("Convolution", "GroupConvolution", "MatMul")
"""OpenVINO's words for what int8 makes faster."""


TOLERANCE: Final = 1e-3
"""Largest difference of a float32 graph's logits, as a share of the largest logit."""


_WEIGHTED: Final = (torch.ops.aten.conv2d, torch.ops.aten.convolution, torch.ops.aten.linear)


_PATH: Final = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")
"""What lies between stored or quantized values and a product; it is computed within that, or beforehand."""


Images = list[NDArray[np.float32]]
"""Images one by one, each (1, C, H, W)."""


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


def calibrate(graph: Any, images: Images, labels: list[int], max_drop: float | None) -> Any:
    """Quantize an `openvino.Model`; the given one stays as it is.

    Convolutions and matrix products are quantized: their weights with a scale for each channel, what they
    read with a scale and an offset. Sums, pooling and norms stay as they are: in int8 they made PoolFormer a
    sixth faster and doubled the error of its logits. So do depthwise convolutions: they wait for memory, and
    int8 made ConvFormer and CAFormer 4 to 9 % slower.

    Args:
        graph: a classifier.
        images: images as its network sees them.
        labels: their classes.
        max_drop: give back products to floating point, those that hurt most first, until the share of these
            images that is classified rightly is at most so much lower; None quantizes all.

    Raises:
        MissingPackage: NNCF is not installed.
    """
    nncf = load_nncf()
    data = nncf.Dataset(images)
    how: dict[str, Any] = {
        "preset": nncf.QuantizationPreset.MIXED,
        "model_type": nncf.ModelType.TRANSFORMER,  # NNCF's word for: products only
        "subset_size": len(images),
        "ignored_scope": nncf.IgnoredScope(types=["GroupConvolution"], validate=False),
    }
    # Moving scales from maps to weights, for transformers with outliers, made the error larger here.
    smooth = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    advanced = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth)
    with uncounted(), contextlib.redirect_stdout(sys.stderr):  # standard output is for our own report
        if max_drop is None:
            return nncf.quantize(graph.clone(), data, advanced_parameters=advanced, **how)
        pairs = nncf.Dataset(list(zip(images, labels, strict=True)), lambda pair: pair)
        return nncf.quantize_with_accuracy_control(
            graph.clone(),
            data,
            pairs,
            _accuracy,
            max_drop=max_drop,
            advanced_quantization_parameters=advanced,
            **how,
        )


def _accuracy(network: Any, pairs: Iterable[tuple[NDArray[np.float32], int]]) -> tuple[float, list[float]]:
    """Share of images whose class a compiled model finds, and 0 or 1 for each."""
    right = [float(network(image)[0].argmax() == label) for image, label in pairs]
    return sum(right) / len(right), right


def load_nncf() -> Any:
    """Import NNCF; of what it does it then tells errors only.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        with uncounted():
            nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise MissingPackage("nncf", "int8", "quantizing") from error
    nncf.set_log_level(logging.ERROR)
    return nncf
