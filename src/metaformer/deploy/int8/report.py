"""What a quantized network has lost and won."""

from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from metaformer.tasks.base import Forward
from metaformer.tasks.classification.evaluate import ClassificationEvaluation
from metaformer.tasks.classification.results import ClassificationReport
from metaformer.tasks.outputs import write_report

NAMED: Final = 6
"""Products whose names are printed; the JSON has all."""


@dataclass(frozen=True)
class Side:
    """One of the two networks that are compared."""

    top1: float
    """Share of the validation images whose class has the highest score."""
    loss: float
    """Mean cross-entropy on them."""
    bytes: int
    """Size of its weights, in int8 with the graph."""


@dataclass(frozen=True)
class QuantizeReport:
    """An int8 network beside the float32 network that it was made of."""

    name: str
    directory: str
    """Where the int8 network lies."""
    calibrated: int
    """Training images that told the ranges of values."""
    images: int
    """Validation images that both were measured on."""
    float32: Side
    int8: Side
    agreement: float
    """Share of the validation images on which both find the same class."""
    mean_difference: float
    """Mean distance of their logits."""
    largest_difference: float
    """Largest distance of two logits."""
    largest_logit: float
    """Largest logit of the float32 network, by its absolute value."""
    products: int
    """Convolutions and matrix products."""
    float_products: tuple[str, ...]
    """Those that are not computed in int8, by the names of the network's modules."""
    rest: str
    """In what this machine computes them, and norms, activations and sums."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as a JSON file.

        Raises:
            OutputError: it cannot be written.
        """
        return write_report(self.to_dict(), path)

    def text(self) -> str:
        """Make a page to read."""
        lines = [f"{'':<12}{'float32':>10}{'int8':>10}"]
        for name, figure in (("top-1", "top1"), ("loss", "loss"), ("megabytes", "bytes")):
            sides = (getattr(side, figure) for side in (self.float32, self.int8))
            lines.append(f"{name:<12}" + "".join(f"{_written(figure, value):>10}" for value in sides))
        shown = ", ".join(self.float_products[:NAMED])
        more = len(self.float_products) - NAMED
        left = f"; not {shown}" + (f" and {more} more (all in the JSON)" if more > 0 else "") if shown else ""
        return "\n".join(
            [
                *lines,
                "",
                f"same class   {self.agreement:.2%} of {self.images} images",
                f"logits       differ by {self.mean_difference:.3f} on average, "
                f"{self.largest_difference:.3f} at most; the largest is {self.largest_logit:.3f}",
                f"int8         {self.products - len(self.float_products)} of {self.products} products{left}",
                f"the rest     {self.rest} on this machine",
                f"calibrated   on {self.calibrated} training images",
                f"written      {self.directory}",
            ]
        )


def _written(figure: str, value: float) -> str:
    if figure == "top1":
        return f"{value:.2%}"
    return f"{value:.4f}" if figure == "loss" else f"{value / 1e6:.2f}"


@dataclass(frozen=True)
class Comparison:
    """How a network and its copy do, and how far apart they are."""

    original: ClassificationReport
    copy: ClassificationReport
    agreement: float
    """Share of the images on which both find the same class."""
    mean_difference: float
    """Mean distance of their logits."""
    largest_difference: float
    """Largest distance of two logits."""
    largest_logit: float
    """Largest logit of the original, by its absolute value."""


def compare(evaluation: ClassificationEvaluation, original: Forward, copy: Forward) -> Comparison:
    """Measure both, one after the other, each by the whole evaluation; the first one's logits are kept.

    Raises:
        TrainingError: logits that are not finite.
    """
    kept: deque[Tensor] = deque()
    same: list[Tensor] = []
    distances: list[Tensor] = []
    largest = 0.0

    def first(images: Tensor) -> Tensor:
        nonlocal largest
        logits = original(images).float().cpu()
        largest = max(largest, logits.abs().max().item())
        kept.append(logits)
        return logits

    def second(images: Tensor) -> Tensor:
        logits, wanted = copy(images).float().cpu(), kept.popleft()
        same.append(logits.argmax(dim=1) == wanted.argmax(dim=1))
        away = (logits - wanted).abs()
        distances.append(torch.stack([away.double().sum(), away.max().double()]))
        return logits

    before, after = evaluation.run(first), evaluation.run(second)
    alike, away = torch.cat(same), torch.stack(distances)
    logits = len(alike) * len(evaluation.folder.classes)
    return Comparison(
        before,
        after,
        alike.double().mean().item(),
        away[:, 0].sum().item() / logits,
        away[:, 1].max().item(),
        largest,
    )
