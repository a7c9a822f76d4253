"""Exported classifiers: images to the probability of each class."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.data.preprocess import Preprocess
from metaformer.tasks.exported import ExportedNetwork, ExportGraph, ExportOptions, TaskExport, pixels_of


class ProbabilityGraph(ExportGraph):
    """Images to `probabilities` (B, K), which sum to 1."""

    outputs = ("probabilities",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.network(self.normalized(images)).float().softmax(1),)


class ExportedClassifier(ExportedNetwork):
    """Images to the logarithms of probabilities (B, K): logits up to a constant for each image."""

    def forward(self, images: Tensor) -> Tensor:
        probabilities = self.compute(images)["probabilities"]
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log().to(images.device)


class ClassifierExport(TaskExport):
    """How classifiers are exported."""

    network: type[ExportedNetwork] = ExportedClassifier
    built: type[ExportGraph] = ProbabilityGraph
    model_info: Mapping[str, str] = {"model_type": "Classification", "multilabel": "False"}
    outputs: Mapping[str, str] = {"probabilities": "(N, K)"}
    tolerances: Mapping[str, tuple[float, float]] = {"probabilities": (1e-4, 2e-2)}

    def graph(self, network: nn.Module, preprocess: Any, options: ExportOptions) -> ExportGraph:
        return self.built(network, pixels_of(preprocess, options))

    def resize(self, preprocess: Preprocess) -> dict[str, Any]:
        return {
            "rule": "resize the shorter side, the other one in proportion and rounded down; crop the center",
            "shorter_side": preprocess.resize,
            "crop": [preprocess.image_size, preprocess.image_size],
            "interpolation": preprocess.interpolation,
            "antialias": True,
        }

    def read_preprocess(self, values: Mapping[str, Any]) -> Preprocess:
        return Preprocess.from_dict(values)

    def compare(self, expected: Tensor, found: Tensor) -> dict[str, float]:
        return {"probabilities": (expected.softmax(1) - found.softmax(1)).abs().max().item()}

    def agreement(self, expected: Tensor, found: Tensor) -> float:
        return (expected.argmax(1) == found.argmax(1)).float().mean().item()
