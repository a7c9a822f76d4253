"""Feature pyramids, https://arxiv.org/abs/1612.03144: of segmenters, and of detectors with coarser levels."""

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


class ExtraConvs(nn.Module):
    """RetinaNet's levels P6 and P7: strided convolutions on the backbone's last features, no ReLU between.

    Args:
        in_dim: channels of these features.
        dim: channels of the pyramid.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(dim, dim, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            assert conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (B, in_dim, H, W) to P6 (B, dim, H/2, W/2) and P7 (B, dim, H/4, W/4)."""
        p6 = self.p6(x)
        return [p6, self.p7(p6)]


class DetectionPyramid(FeaturePyramid):
    """Feature pyramid of detectors, with coarser levels on top.

    Args:
        in_dims: channels of the backbone's features, finest first.
        dim: channels of all levels.
        convs: add two levels by `ExtraConvs`; otherwise one, by subsampling the last.
    """

    def __init__(self, in_dims: Sequence[int], dim: int, *, convs: bool = False) -> None:
        super().__init__(in_dims, dim)
        self.extra = ExtraConvs(in_dims[-1], dim) if convs else None

    @property
    def extra_levels(self) -> int:
        """Number of levels beyond those of the backbone."""
        return 2 if self.extra else 1

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, C_i, H_i, W_i), finest first, to levels (B, dim, H_i, W_i) and coarser ones."""
        levels = super().forward(features)
        if self.extra is None:
            return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]
        return levels + self.extra(features[-1])
