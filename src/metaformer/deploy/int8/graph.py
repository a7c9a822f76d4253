"""A classifier as an OpenVINO graph, and its post-training quantization by NNCF."""

import importlib
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaformer.errors import MissingPackage, OptimizeError
from metaformer.inference.int8_model import compile_options, contained, load_openvino

PRODUCTS: Final = ("Convolution", "GroupConvolution", "MatMul")
"""OpenVINO's operations that int8 makes faster."""
TOLERANCE: Final = 1e-3
"""Largest difference of a float32 graph's logits, relative to the largest logit."""
_WITH_WEIGHT: Final = (torch.ops.aten.conv2d, torch.ops.aten.convolution, torch.ops.aten.linear)
_DEQUANTIZATION: Final = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")
"""Operations between int8 values and a product, which are fused into it or computed beforehand."""
Images = list[NDArray[np.float32]]
"""Images one by one, each (1, C, H, W)."""


def make_graph(network: nn.Module, images: Tensor) -> Any:
    """Convert a classifier in evaluation mode to an `openvino.Model`, for any batch size at the images' size.

    Products are named after the network's modules. The graph is compared with the network on `images`
    (B, C, H, W), B at least 2.

    Raises:
        MissingPackage: OpenVINO is not installed.
        OptimizeError: OpenVINO lacks an operation, or its graph does not compute what the network does.
    """
    openvino = load_openvino()
    with torch.no_grad():
        program = torch.export.export(
            network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        )
        expected = network(images)
    names = _prepare(program)
    try:
        with contained(), _log_levels_restored():
            graph = openvino.convert_model(program)
    except (RuntimeError, openvino.frontend.OpConversionFailure) as error:
        last_line = str(error).strip().splitlines()[-1]
        raise OptimizeError(f"OpenVINO cannot convert {type(network).__name__}: {last_line}") from error
    with contained():
        options = {**compile_options(), "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(graph, "CPU", options)
    logits = torch.from_numpy(compiled(images.numpy())[0])
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    if not difference <= TOLERANCE:
        raise OptimizeError(
            f"OpenVINO's form of {type(network).__name__} differs from it by {difference:.1e} of the largest "
            f"logit, more than {TOLERANCE:.0e}: please report the model"
        )
    graph.reshape([-1, *images.shape[1:]])  # the conversion leaves height and width open as well
    _name_products(graph, names)
    return graph


def calibrate(graph: Any, images: Images, labels: list[int], max_drop: float | None) -> Any:
    """Quantize an `openvino.Model` by NNCF; the given one is unchanged.

    Convolutions and matrix products are quantized, weights symmetrically per channel, inputs with a scale
    and an offset. Sums, pooling and norms are not: in int8 they made PoolFormer a sixth faster and doubled
    the error of its logits. Nor are depthwise convolutions, which are bound by memory: int8 made ConvFormer
    and CAFormer 4 to 9 % slower.

    Args:
        graph: a classifier.
        images: preprocessed images.
        labels: their classes.
        max_drop: largest loss of top-1 on these images; the products that lose most are left in floating
            point until it is met. None quantizes all.

    Raises:
        MissingPackage: NNCF is not installed.
    """
    nncf = load_nncf()
    data = nncf.Dataset(images)
    # smoothing moves scales from activations with outliers to weights; here it raised the error
    smooth = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    advanced = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth)
    options: dict[str, Any] = {
        "preset": nncf.QuantizationPreset.MIXED,
        "model_type": nncf.ModelType.TRANSFORMER,  # NNCF's name for: products only
        "subset_size": len(images),
        "ignored_scope": nncf.IgnoredScope(types=["GroupConvolution"], validate=False),
    }
    with contained(), redirect_stdout(sys.stderr), _log_levels_restored():  # stdout is for our report
        if max_drop is None:
            return nncf.quantize(graph.clone(), data, advanced_parameters=advanced, **options)
        return nncf.quantize_with_accuracy_control(
            graph.clone(),
            data,
            nncf.Dataset(list(zip(images, labels, strict=True)), lambda pair: pair),
            _accuracy,
            max_drop=max_drop,
            advanced_quantization_parameters=advanced,
            **options,
        )


def float_products(graph: Any) -> tuple[list[str], list[str]]:
    """Names of all products, and of those that are not computed in int8."""
    products = _products(graph)
    left = [op for op in products if not all(map(_is_int8, op.inputs()))]
    return [op.get_friendly_name() for op in products], [op.get_friendly_name() for op in left]


def load_nncf() -> Any:
    """Import NNCF, which then logs errors only.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        with contained(), _log_levels_restored():
            nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise MissingPackage("nncf", "int8", "quantizing") from error
    with _log_levels_restored():
        nncf.set_log_level(logging.ERROR)
    return nncf


def _accuracy(network: Any, pairs: Iterable[tuple[NDArray[np.float32], int]]) -> tuple[float, list[float]]:
    """Top-1 of a compiled model, and 0 or 1 for each image."""
    correct = [float(network(image)[0].argmax() == label) for image, label in pairs]
    return sum(correct) / len(correct), correct


@contextmanager
def _log_levels_restored() -> Iterator[None]:
    """OpenVINO's converter changes the levels of the root logger and its handlers, and leaves them so."""
    root = logging.getLogger()
    parts: list[logging.Logger | logging.Handler] = [root, *root.handlers]
    levels = [(part, part.level) for part in parts]
    try:
        yield
    finally:
        for part, level in levels:
            part.setLevel(level)


def _prepare(program: Any) -> list[tuple[str, int]]:
    """Make a program readable by OpenVINO; returns modules with weights and their sizes, in call order."""
    names = []
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.empty_like.default:  # OpenVINO has no uninitialized memory
            node.target = torch.ops.aten.zeros_like.default
        if getattr(node.target, "overloadpacket", None) in _WITH_WEIGHT:
            path, _ = list(node.meta["nn_module_stack"].values())[-1]
            names.append((path, node.args[1].meta["val"].numel()))
    program.graph_module.recompile()
    return names


def _name_products(graph: Any, names: list[tuple[str, int]]) -> None:
    """Name products after modules where both come in the same order; else OpenVINO's names stay."""
    products = [op for op in _products(graph) if op.input_value(1).get_node().get_type_name() == "Constant"]
    sizes = [int(op.input_value(1).get_node().get_data().size) for op in products]
    if sizes == [size for _, size in names]:
        for op, (path, _) in zip(products, names, strict=True):
            op.set_friendly_name(path)


def _products(graph: Any) -> list[Any]:
    return [op for op in graph.get_ordered_ops() if op.get_type_name() in PRODUCTS]


def _is_int8(value: Any) -> bool:
    """Whether a product's input is stored in int8 or quantized."""
    node = value.get_source_output().get_node()
    while node.get_type_name() in _DEQUANTIZATION:
        node = node.input_value(0).get_node()
    stored = node.get_type_name() == "Constant" and "8" in node.get_output_element_type(0).to_string()
    return stored or node.get_type_name() == "FakeQuantize"
