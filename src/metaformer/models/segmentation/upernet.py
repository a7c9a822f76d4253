"""UPerNet head, https://arxiv.org/abs/1807.10221, section 3."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.models.segmentation.layers import Classifier, ConvNorm, resize

POOL_SIZES = (1, 2, 3, 6)
"""Output sizes of the pyramid pooling module, https://arxiv.org/abs/1612.01105."""


class UperNetHead(nn.Module):
    """Pyramid pooling on the coarsest features, a feature pyramid with norms, and fusion of all levels.

    Args:
        in_dims: channels of the backbone's features, finest first.
        dim: channels of the head.
        num_classes: number of classes.
        dropout: probability of dropping a channel before the classifier.
    """

    def __init__(self, in_dims: Sequence[int], dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        *finer, coarsest = in_dims
        self.pools = nn.ModuleList(ConvNorm(coarsest, dim, 1) for _ in POOL_SIZES)
        self.bottleneck = ConvNorm(coarsest + len(POOL_SIZES) * dim, dim, 3)
        self.laterals = nn.ModuleList(ConvNorm(in_dim, dim, 1) for in_dim in finer)
        self.outputs = nn.ModuleList(ConvNorm(dim, dim, 3) for _ in finer)
        self.fusion = ConvNorm(len(in_dims) * dim, dim, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(dim, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        return self.classifier(self.dropout(self.features(features)))

    def features(self, features: Sequence[Tensor]) -> Tensor:
        """Fused levels, (B, dim, H_0, W_0): the input of dropout and classifier."""
        *finer, coarsest = features
        levels = [self._pyramid_pooling(coarsest)]  # coarsest first
        merged = levels[0]
        for i in reversed(range(len(finer))):
            lateral = self.laterals[i](finer[i])
            merged = lateral + resize(merged, (lateral.shape[2], lateral.shape[3]))
            levels.append(self.outputs[i](merged))
        finest = (levels[-1].shape[2], levels[-1].shape[3])
        return self.fusion(torch.cat([resize(level, finest) for level in reversed(levels)], 1))

    def _pyramid_pooling(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, dim, H, W) with context from averages over growing regions."""
        size = (x.shape[2], x.shape[3])
        pooled = [
            resize(conv(F.adaptive_avg_pool2d(x, side)), size)
            for side, conv in zip(POOL_SIZES, self.pools, strict=True)
        ]
        return self.bottleneck(torch.cat([x, *pooled], 1))
