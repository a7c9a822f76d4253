"""Post-training quantization of a graph: by NNCF for OpenVINO, by ONNX Runtime's own tool for ONNX Runtime.

NNCF also writes ONNX, but quantizes the inputs of products alone: ONNX Runtime, which computes a convolution
in int8 only where its result is quantized too, was then 1.5 to 2 times as slow on our networks as in float32,
where its own tool makes them up to twice as fast.
"""

import importlib
import logging
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from metaformer.deploy.export.operators import load_onnxscript
from metaformer.deploy.export.write import save_openvino, write_onnx
from metaformer.errors import MissingPackage
from metaformer.inference.exported import contained, load_onnxruntime, load_openvino
from metaformer.tasks.exported import Arrays, ExportCard

_DEQUANTIZATION: Final = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")
"""OpenVINO's operations between int8 values and a product, which are fused into it or computed beforehand."""


@dataclass(frozen=True)
class Limit:
    """What accuracy a classifier must keep on its calibration images."""

    labels: Sequence[int]
    """Their classes."""
    max_drop: float
    """Largest loss of top-1."""


class Int8Graph(ABC):
    """A graph whose convolutions and matrix products can be computed in int8.

    Sums, pooling and norms are not quantized: in int8 they made PoolFormer a sixth faster and doubled the
    error of its logits. Nor are depthwise convolutions, which are bound by memory: int8 made ConvFormer and
    CAFormer 4 to 9 % slower.
    """

    keeps_accuracy: ClassVar[bool]
    """Whether `quantized` takes a limit."""

    @abstractmethod
    def products(self) -> dict[str, str]:
        """Names of all products, and of the network's modules that they come from, where that is known."""

    @abstractmethod
    def float_products(self) -> list[str]:
        """Names of the modules whose products are not in int8."""

    @abstractmethod
    def quantized(self, inputs: list[Arrays], keep: Collection[str], limit: Limit | None) -> "Int8Graph":
        """The same in int8; this one is unchanged.

        Args:
            inputs: of the calibration.
            keep: names of products to leave in floating point.
            limit: leave those that lose most in floating point, too, until it is met.
        """

    @abstractmethod
    def write(self, file: Path, card: ExportCard) -> ExportCard:
        """Write it with its metadata; returns the card as written."""


class OpenVINOGraph(Int8Graph):
    """An `openvino.Model`: weights symmetric per channel, inputs with a scale and an offset."""

    keeps_accuracy = True

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    @classmethod
    def read(cls, body: bytes) -> "OpenVINOGraph":
        """That of an ONNX model.

        Raises:
            MissingPackage: OpenVINO or NNCF is not installed.
        """
        load_nncf()
        return cls(load_openvino().Core().read_model(body))

    def products(self) -> dict[str, str]:
        return {op.get_friendly_name(): self._module(op) for op in self._products()}

    def float_products(self) -> list[str]:
        return [self._module(op) for op in self._products() if not all(map(_is_int8, op.inputs()))]

    def quantized(self, inputs: list[Arrays], keep: Collection[str], limit: Limit | None) -> "OpenVINOGraph":
        nncf = load_nncf()
        data = nncf.Dataset(inputs)
        # smoothing moves scales from activations with outliers to weights; here it raised the error
        smooth = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        advanced = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth)
        ignored = nncf.IgnoredScope(names=list(keep), types=["GroupConvolution"], validate=False)
        options: dict[str, Any] = {
            "preset": nncf.QuantizationPreset.MIXED,
            "model_type": nncf.ModelType.TRANSFORMER,  # NNCF's name for: products only
            "subset_size": len(inputs),
            "ignored_scope": ignored,
        }
        with contained(), redirect_stdout(sys.stderr), _log_levels_restored():  # stdout is for our report
            if limit is None:
                graph = nncf.quantize(self.graph.clone(), data, advanced_parameters=advanced, **options)
            else:
                graph = nncf.quantize_with_accuracy_control(
                    self.graph.clone(),
                    data,
                    nncf.Dataset(list(zip(inputs, limit.labels, strict=True)), lambda pair: pair),
                    _accuracy,
                    max_drop=limit.max_drop,
                    advanced_quantization_parameters=advanced,
                    **options,
                )
        return OpenVINOGraph(graph)

    def write(self, file: Path, card: ExportCard) -> ExportCard:
        return save_openvino(file, self.graph, card)

    def _products(self) -> list[Any]:
        kinds = ("Convolution", "GroupConvolution", "MatMul")
        return [op for op in self.graph.get_ordered_ops() if op.get_type_name() in kinds]

    def _module(self, op: Any) -> str:
        node = op.input_value(1).get_node()
        while node.get_type_name() in (*_DEQUANTIZATION, "FakeQuantize"):
            node = node.input_value(0).get_node()
        return _module(node.get_friendly_name(), op.get_friendly_name())


class OnnxGraph(Int8Graph):
    """An `onnx.ModelProto`: quantized and dequantized values before and after each product."""

    keeps_accuracy = False

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def read(cls, body: bytes) -> "OnnxGraph":
        """That of an ONNX model.

        Raises:
            MissingPackage: onnx or ONNX Runtime is not installed.
        """
        load_onnxruntime()
        onnx, _ = load_onnxscript()
        return cls(onnx.load_from_string(body))

    def products(self) -> dict[str, str]:
        return {node.name: self._module(node) for node in self._products()}

    def float_products(self) -> list[str]:
        makers = self._makers()

        def is_int8(name: str) -> bool:
            return name in makers and makers[name].op_type == "DequantizeLinear"

        return [self._module(node) for node in self._products() if not all(map(is_int8, node.input[:2]))]

    def quantized(self, inputs: list[Arrays], keep: Collection[str], limit: Limit | None) -> "OnnxGraph":
        assert limit is None
        onnx, _ = load_onnxscript()
        with _warnings_off():  # about a preparation that the exporter has done
            tool = importlib.import_module("onnxruntime.quantization")
            with tempfile.TemporaryDirectory(prefix="metaformer-int8-") as folder:
                file = Path(folder, "network.onnx")
                model = onnx.ModelProto()
                model.CopyFrom(self.model)
                tool.quantize_static(
                    model,
                    file,
                    _Reader(inputs),
                    quant_format=tool.QuantFormat.QDQ,
                    op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                    per_channel=True,
                    activation_type=tool.QuantType.QUInt8,
                    weight_type=tool.QuantType.QInt8,
                    nodes_to_exclude=[*keep, *self._depthwise()],
                    # as NNCF: the mean of the images' smallest and largest values, not the most extreme ones
                    extra_options={
                        "CalibMovingAverage": True,
                        "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
                    },
                )
                model = onnx.load(file)
        model.ClearField("metadata_props")
        return OnnxGraph(model)

    def write(self, file: Path, card: ExportCard) -> ExportCard:
        return write_onnx(file, self.model.SerializeToString(), card)

    def _products(self) -> list[Any]:
        return [node for node in self.model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]

    def _depthwise(self) -> list[str]:
        return [
            node.name
            for node in self._products()
            if any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        ]

    def _makers(self) -> dict[str, Any]:
        return {name: node for node in self.model.graph.node for name in node.output}

    def _module(self, node: Any) -> str:
        makers, name = self._makers(), node.input[1]
        while name in makers and makers[name].op_type in ("DequantizeLinear", "Transpose"):
            name = makers[name].input[0]
        return _module(name.removesuffix("_quantized"), node.name)


GRAPHS: Final[dict[str, type[OpenVINOGraph] | type[OnnxGraph]]] = {".xml": OpenVINOGraph, ".onnx": OnnxGraph}
"""What quantizes a file, by its ending."""


class _Reader:
    """Inputs as ONNX Runtime's tool asks for them."""

    def __init__(self, inputs: list[Arrays]) -> None:
        self.rest = iter(inputs)

    def get_next(self) -> Arrays | None:
        return next(self.rest, None)


def _module(weight: str, otherwise: str) -> str:
    """The module of a weight by its name in the graph."""
    if not weight.endswith(".weight"):
        return otherwise
    return weight.removeprefix("network.").removesuffix(".weight")


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


def _accuracy(network: Any, pairs: Iterable[tuple[Arrays, int]]) -> tuple[float, list[float]]:
    """Top-1 of a compiled model, and 0 or 1 for each image."""
    correct = [float(network(inputs)[0].argmax() == label) for inputs, label in pairs]
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


@contextmanager
def _warnings_off() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _is_int8(value: Any) -> bool:
    """Whether a product's input is stored in int8 or quantized."""
    node = value.get_source_output().get_node()
    while node.get_type_name() in _DEQUANTIZATION:
        node = node.input_value(0).get_node()
    stored = node.get_type_name() == "Constant" and "8" in node.get_output_element_type(0).to_string()
    return stored or node.get_type_name() == "FakeQuantize"
