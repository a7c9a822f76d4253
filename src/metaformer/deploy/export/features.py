"""Exported backbones: images to the features of each stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from metaformer.backbones.metaformer import MetaFormerFeatures
from metaformer.data.preprocess import Preprocess
from metaformer.tasks.exported import ExportedNetwork, ExportGraph, ExportOptions, TaskExport, pixels_of


class FeatureGraph(ExportGraph):
    """Images to `features_0` … (B, C_i, H_i, W_i), finest first."""

    def __init__(self, network: MetaFormerFeatures, pixels: Any) -> None:
        super().__init__(network, pixels)
        self.outputs = tuple(f"features_{i}" for i in range(len(network.feature_info.channels())))  # type: ignore[misc]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.float() for x in self.network(self.normalized(images)))


class ExportedFeatures(ExportedNetwork):
    """Images to the list of features."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.compute(images).values())


class FeaturesExport(TaskExport):
    """How backbones are exported."""

    network = ExportedFeatures
    outputs: Mapping[str, str] = {"features_0 …": "(N, C_i, H_i, W_i)"}
    tolerances: Mapping[str, tuple[float, float]] = {"features": (1e-4, 5e-2)}

    def graph(self, network: nn.Module, preprocess: Any, options: ExportOptions) -> ExportGraph:
        assert isinstance(network, MetaFormerFeatures)
        return FeatureGraph(network, pixels_of(preprocess, options))

    def resize(self, preprocess: Any) -> dict[str, Any]:
        return {"rule": "none: images of any size"}

    def read_preprocess(self, values: Mapping[str, Any]) -> Preprocess:
        return Preprocess.from_dict(values)

    def compare(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float]:
        """Largest difference, relative to the largest value of its level."""
        pairs = zip(expected, found, strict=True)
        return {"features": max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)}
