"""Metric, size and speed of an int8 file beside the float32 network that it was quantized from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from torch import nn

from metaformer.tasks.report import Report

PRINTED: Final = 6
"""Layers left in floating point that the text names; the JSON has all."""


def weight_bytes(network: nn.Module) -> int:
    """Size of a network's tensors."""
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


@dataclass(frozen=True)
class Figures:
    """Metrics and size of one network."""

    metrics: Mapping[str, float]
    """What the task's evaluation measures, the figure that counts first."""
    bytes: int
    """Size of the weights, in int8 with the graph."""


@dataclass(frozen=True, repr=False)
class QuantizeReport(Report):
    """Result of a quantization."""

    name: str
    file: str
    """The int8 file."""
    calibrated: int
    """Number of calibration images."""
    images: int
    """Number of validation images."""
    metric: str
    """The figure that counts, such as `top1`."""
    float32: Figures
    int8: Figures
    drop: float
    """What the metric lost."""
    agreement: float
    """Share of classes, pixels or objects that both networks decide alike."""
    differences: Mapping[str, float]
    """Largest differences of their results, by the names of the task's tolerances."""
    compared: int
    """Batches of the validation images, evenly spread, that these two are of."""
    products: int
    """Number of convolutions and matrix products."""
    float_products: tuple[str, ...]
    """Those not computed in int8, by the names of the network's modules."""
    rest: str
    """Type in which this machine computes them, and norms, activations and sums."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metric of both networks."""
        pairs = (("float32", self.float32), ("int8", self.int8))
        return {f"{name}_{self.metric}": figures.metrics[self.metric] for name, figures in pairs}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def text(self, rows: int = PRINTED) -> str:
        """The report as text."""
        both = (self.float32, self.int8)
        width = max(12, *(len(name) + 2 for name in self.float32.metrics))
        lines = [f"{'':<{width}}{'float32':>10}{'int8':>10}"]
        for name in self.float32.metrics:
            lines.append(f"{name:<{width}}" + "".join(f"{one.metrics[name]:>10.4f}" for one in both))
        lines.append(f"{'megabytes':<{width}}" + "".join(f"{one.bytes / 1e6:>10.2f}" for one in both))
        names, more = ", ".join(self.float_products[:rows]), len(self.float_products) - rows
        left = f"; not {names}" if names else ""
        left += f" and {more} more (all in the JSON)" if more > 0 else ""
        differ = ", ".join(f"{name} {value:.3f}" for name, value in self.differences.items())
        return "\n".join(
            [
                *lines,
                "",
                f"drop         {self.drop:.4f} of {self.metric} on {self.images} images",
                f"alike        {self.agreement:.2%}; largest differences: {differ}",
                f"int8         {self.products - len(self.float_products)} of {self.products} products{left}",
                f"the rest     {self.rest} on this machine",
                f"calibrated   on {self.calibrated} training images",
                f"written      {self.file}",
            ]
        )
