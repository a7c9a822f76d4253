"""UperNet's head, https://arxiv.org/abs/1807.10221, section 3, for one kind of labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.models.segmentation.layers import Classifier, ConvNorm, resize

POOLS = (1, 2, 3, 6)
"""Heights and widths to which the coarsest map is averaged (https://arxiv.org/abs/1612.01105)."""


class UperNetHead(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid with norms, and all levels side by side.

    Args:
        in_dims: channels of the backbone's maps, finest first.
        dim: channels of the head.
        num_classes: outputs.
        dropout: share of channels left out before the classifier.
    """

    def __init__(self, in_dims: Sequence[int], dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        *finer, coarsest = in_dims
        self.pools = nn.ModuleList(ConvNorm(coarsest, dim, 1) for _ in POOLS)
        self.bottleneck = ConvNorm(coarsest + len(POOLS) * dim, dim, 3)
        self.laterals = nn.ModuleList(ConvNorm(in_dim, dim, 1) for in_dim in finer)
        self.outputs = nn.ModuleList(ConvNorm(dim, dim, 3) for _ in finer)
        self.fusion = ConvNorm(len(in_dims) * dim, dim, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the backbone's maps (B, C_i, H_i, W_i) to logits (B, num_classes, H_0, W_0)."""
        return self.classifier(self.dropout(self.features(maps)))

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """The fused levels, (B, dim, H_0, W_0)."""
        *finer, coarsest = maps
        levels = [self._scene(coarsest)]  # coarsest first
        merged = levels[0]
        for i in reversed(range(len(finer))):
            lateral = self.laterals[i](finer[i])
            merged = lateral + resize(merged, (lateral.shape[2], lateral.shape[3]))
            levels.append(self.outputs[i](merged))
        finest = (levels[-1].shape[2], levels[-1].shape[3])
        return self.fusion(torch.cat([resize(level, finest) for level in reversed(levels)], 1))

    def _scene(self, x: Tensor) -> Tensor:
        """What the coarsest map shows as a whole and in parts, beside itself."""
        size = (x.shape[2], x.shape[3])
        views = [
            resize(conv(F.adaptive_avg_pool2d(x, side)), size)
            for side, conv in zip(POOLS, self.pools, strict=True)
        ]
        return self.bottleneck(torch.cat([x, *views], 1))
