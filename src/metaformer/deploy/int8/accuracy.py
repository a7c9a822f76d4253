"""Accuracy of an int8 network beside the float32 network that it was quantized from."""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from metaformer.tasks.base import Forward
from metaformer.tasks.classification.evaluate import ClassificationEvaluation
from metaformer.tasks.classification.results import ClassificationReport
from metaformer.tasks.report import Report

PRINTED: Final = 6
"""Layers left in floating point that the text names; the JSON has all."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy and size of one network."""

    top1: float
    """Share of the validation images whose class has the highest score."""
    loss: float
    """Mean cross-entropy on them."""
    bytes: int
    """Size of the weights, in int8 with the graph."""


@dataclass(frozen=True)
class QuantizeReport(Report):
    """Result of a quantization."""

    name: str
    directory: str
    """Directory of the int8 network."""
    calibrated: int
    """Number of calibration images."""
    images: int
    """Number of validation images."""
    float32: Accuracy
    int8: Accuracy
    agreement: float
    """Share of the validation images for which both networks predict the same class."""
    mean_difference: float
    """Mean absolute difference of their logits."""
    largest_difference: float
    """Largest absolute difference of two logits."""
    largest_logit: float
    """Largest absolute logit of the float32 network."""
    products: int
    """Number of convolutions and matrix products."""
    float_products: tuple[str, ...]
    """Those not computed in int8, by the names of the network's modules."""
    rest: str
    """Type in which this machine computes them, and norms, activations and sums."""

    @property
    def metrics(self) -> dict[str, float]:
        """Top-1 of both networks."""
        return {"float32_top1": self.float32.top1, "int8_top1": self.int8.top1}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def text(self, rows: int = PRINTED) -> str:
        """The report as text."""
        formats = {
            "top-1": ("top1", ".2%", 1.0),
            "loss": ("loss", ".4f", 1.0),
            "megabytes": ("bytes", ".2f", 1e6),
        }
        lines = [f"{'':<12}{'float32':>10}{'int8':>10}"]
        for title, (field, spec, unit) in formats.items():
            values = (getattr(network, field) / unit for network in (self.float32, self.int8))
            lines.append(f"{title:<12}" + "".join(f"{value:>10{spec}}" for value in values))
        names, more = ", ".join(self.float_products[:PRINTED]), len(self.float_products) - PRINTED
        left = f"; not {names}" if names else ""
        left += f" and {more} more (all in the JSON)" if more > 0 else ""
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


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images."""

    original: ClassificationReport
    quantized: ClassificationReport
    agreement: float
    """Share of the images for which both predict the same class."""
    mean_difference: float
    """Mean absolute difference of their logits."""
    largest_difference: float
    """Largest absolute difference of two logits."""
    largest_logit: float
    """Largest absolute logit of the original."""


def compare(evaluation: ClassificationEvaluation, original: Forward, quantized: Forward) -> Comparison:
    """Run the whole evaluation with both, one after the other; the original's logits stay in memory.

    Raises:
        TrainingError: logits that are not finite.
    """
    expected: deque[Tensor] = deque()
    same: list[Tensor] = []
    differences: list[Tensor] = []  # sum and maximum of each batch
    largest_logit = 0.0

    def run_original(images: Tensor) -> Tensor:
        nonlocal largest_logit
        logits = original(images).float().cpu()
        largest_logit = max(largest_logit, logits.abs().max().item())
        expected.append(logits)
        return logits

    def run_quantized(images: Tensor) -> Tensor:
        logits, theirs = quantized(images).float().cpu(), expected.popleft()
        same.append(logits.argmax(dim=1) == theirs.argmax(dim=1))
        difference = (logits - theirs).abs().double()
        differences.append(torch.stack([difference.sum(), difference.max()]))
        return logits

    reports = evaluation.run(run_original), evaluation.run(run_quantized)
    agree, per_batch = torch.cat(same), torch.stack(differences)
    return Comparison(
        *reports,
        agreement=agree.double().mean().item(),
        mean_difference=per_batch[:, 0].sum().item() / (len(agree) * len(evaluation.folder.classes)),
        largest_difference=per_batch[:, 1].max().item(),
        largest_logit=largest_logit,
    )
