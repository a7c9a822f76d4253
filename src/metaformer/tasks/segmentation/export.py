"""Exported segmenters: images to the class of each pixel."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.data.class_lists import read_palette
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.tasks.exported import (
    ExportedNetwork,
    ExportGraph,
    ExportOptions,
    TaskExport,
    inside,
    pixels_of,
)

PADDING = -1
"""Label of pixels beyond an image's own size."""
TIE = 1e-3
"""Difference of two logits, relative to the largest, below which either class may be a pixel's."""


class LabelGraph(ExportGraph):
    """Images to `labels` (B, H, W), int32, −1 beyond each image's size."""

    outputs: ClassVar[tuple[str, ...]] = ("labels",)
    takes_sizes = True

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        return (self._labels(self._logits(images, sizes), sizes),)

    def _logits(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Logits at the size of the images, (B, K, H, W), float32."""
        x = self.normalized(images, sizes)
        logits = self.network.forward_head(x).float()  # type: ignore[operator]
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)

    @staticmethod
    def _labels(logits: Tensor, sizes: Tensor) -> Tensor:
        labels = logits.argmax(1).int()
        return torch.where(inside(sizes, labels.shape[1], labels.shape[2]), labels, PADDING)


class ProbabilityGraph(LabelGraph):
    """The same, and `probabilities` (B, K, H, W)."""

    outputs = ("labels", "probabilities")

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        logits = self._logits(images, sizes)
        return self._labels(logits, sizes), logits.softmax(1)


class ExportedSegmenter(ExportedNetwork):
    """Images to the logarithms of probabilities (B, K, H, W), where the file has them, else to 0 and 1.

    Resizing is linear, and the constant between a logarithm and its logit is the same for all classes, so
    that label maps of another size are those of the network.
    """

    def forward_head(self, images: Tensor) -> Tensor:
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        outputs = self.compute(images, sizes)
        if "probabilities" in outputs:
            logits = outputs["probabilities"].clamp(min=torch.finfo(torch.float32).tiny).log()
        else:
            logits = F.one_hot(outputs["labels"].long(), self.num_classes).movedim(-1, 1).float()
        return logits.to(images.device)


class SegmenterExport(TaskExport):
    """How segmenters are exported."""

    network = ExportedSegmenter
    options = frozenset({"probabilities"})
    outputs: Mapping[str, str] = {"labels": "(N, H, W)", "probabilities": "(N, K, H, W), on request"}
    model_info: Mapping[str, str] = {"model_type": "Segmentation"}
    takes_sizes = True
    tolerances: Mapping[str, tuple[float, float]] = {"labels": (1e-4, 2e-2)}

    def graph(self, network: nn.Module, preprocess: Any, options: ExportOptions) -> ExportGraph:
        kind = ProbabilityGraph if options.probabilities else LabelGraph
        return kind(network, pixels_of(preprocess, options))

    def resize(self, preprocess: DensePreprocess) -> dict[str, Any]:
        return {
            "rule": "scale to fit into a box of these sides, in either orientation, sides rounded to the "
            "nearest; then resize so that both are multiples of the divisor, rounded up",
            "long_side": preprocess.long_side,
            "short_side": preprocess.short_side,
            "size_divisor": preprocess.size_divisor,
            "interpolation": "bilinear",
            "antialias": True,
        }

    def read_preprocess(self, values: Mapping[str, Any]) -> DensePreprocess:
        return DensePreprocess.from_dict(values)

    def metadata(self, values: Any) -> dict[str, Any]:
        return {"palette": [list(color) for color in values]}

    def read_metadata(self, values: Mapping[str, Any], count: int) -> Any:
        return read_palette(values["palette"], count)

    def compare(self, expected: Tensor, found: Tensor) -> dict[str, float]:
        """Share of pixels whose class differs; where two are equally probable, either is right."""
        logits = F.interpolate(expected.float(), found.shape[2:], mode="bilinear", align_corners=False)
        chosen = logits.gather(1, found.argmax(1, keepdim=True))[:, 0]
        wrong = logits.amax(1) - chosen > TIE * logits.abs().max()
        return {"labels": wrong.float().mean().item()}

    def agreement(self, expected: Tensor, found: Tensor) -> float:
        return 1 - self.compare(expected, found)["labels"]
