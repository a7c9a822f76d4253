"""Exported multi-label classifiers: images to the probability of each class by itself."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metaformer.tasks.classification.export import ClassifierExport
from metaformer.tasks.exported import ExportedNetwork, ExportGraph
from metaformer.tasks.multilabel.metrics import read_thresholds


class ProbabilityGraph(ExportGraph):
    """Images to `probabilities` (B, K), each of 0 … 1."""

    outputs = ("probabilities",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.network(self.normalized(images)).float().sigmoid(),)


class ExportedClassifier(ExportedNetwork):
    """Images to logits (B, K)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.compute(images)["probabilities"].logit(torch.finfo(torch.float32).eps).to(images.device)


class MultilabelExport(ClassifierExport):
    """How multi-label classifiers are exported."""

    network = ExportedClassifier
    built = ProbabilityGraph
    model_info: Mapping[str, str] = {"model_type": "Classification", "multilabel": "True"}

    def metadata(self, values: Any) -> dict[str, Any]:
        return {"thresholds": list(values)}

    def read_metadata(self, values: Mapping[str, Any], count: int) -> tuple[float, ...]:
        return read_thresholds(values["thresholds"], count)

    def compare(self, expected: Tensor, found: Tensor) -> dict[str, float]:
        return {"probabilities": (expected.sigmoid() - found.sigmoid()).abs().max().item()}

    def agreement(self, expected: Tensor, found: Tensor) -> float:
        return ((expected > 0) == (found > 0)).float().mean().item()
