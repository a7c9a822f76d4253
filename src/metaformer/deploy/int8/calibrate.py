"""Post-training quantization of a graph by NNCF: which values int8 stands for, told by some images."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaformer.errors import MissingPackage
from metaformer.inference.int8_model import uncounted

Images = list[NDArray[np.float32]]
"""Images one by one, each (1, C, H, W)."""


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
