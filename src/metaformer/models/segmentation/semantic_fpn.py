"""Semantic FPN head, https://arxiv.org/abs/1901.02446, section 3."""

from collections.abc import Sequence
from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.models.segmentation.layers import Classifier, ConvNorm, resize


class SemanticFPNHead(nn.Module):
    """Upsample every pyramid level to the finest by 3×3 convolutions with 2× upsampling, and sum.

    Args:
        in_dim: channels of the pyramid levels.
        reductions: stride of each level relative to the input, finest first.
        dim: channels of the head.
        num_classes: number of classes.
        dropout: probability of dropping a channel before the classifier.
    """

    def __init__(
        self, in_dim: int, reductions: Sequence[int], dim: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.doublings = [max(0, round(log2(reduction / reductions[0]))) for reduction in reductions]
        self.scales = nn.ModuleList(
            nn.ModuleList(ConvNorm(dim if i else in_dim, dim, 3) for i in range(max(1, doublings)))
            for doublings in self.doublings
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(dim, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map pyramid levels (B, in_dim, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        return self.classifier(self.dropout(self.features(levels)))

    def features(self, levels: Sequence[Tensor]) -> Tensor:
        """Sum of the upsampled levels, (B, dim, H_0, W_0): the input of dropout and classifier."""
        finest = (levels[0].shape[2], levels[0].shape[3])
        total: Tensor | None = None
        for x, convs, doublings in zip(levels, self.scales, self.doublings, strict=True):
            assert isinstance(convs, nn.ModuleList)
            for conv in convs:
                x = conv(x)
                if doublings:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = resize(x, finest)  # the doubled size exceeds an odd H_0 or W_0
            total = x if total is None else total + x
        assert total is not None
        return total
