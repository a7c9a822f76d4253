"""Feature pyramid network, https://arxiv.org/abs/1612.03144."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Top-down pathway with lateral connections; computes what `torchvision.ops.FeaturePyramidNetwork` does.

    Args:
        in_dims: channels of the backbone's features, finest first.
        dim: channels of every pyramid level.
    """

    def __init__(self, in_dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(in_dim, dim, 1) for in_dim in in_dims)
        self.outputs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in in_dims)
        for conv in (*self.laterals, *self.outputs):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map features (B, C_i, H_i, W_i), finest first, to levels (B, dim, H_i, W_i)."""
        merged: list[Tensor] = []  # coarsest first
        for lateral, feature in zip(reversed(self.laterals), reversed(features), strict=True):
            x = lateral(feature)
            if merged:
                x = x + F.interpolate(merged[-1], x.shape[2:], mode="nearest")
            merged.append(x)
        return [output(x) for output, x in zip(self.outputs, reversed(merged), strict=True)]
