"""The head of Semantic FPN, https://arxiv.org/abs/1901.02446, section 3."""

from collections.abc import Sequence
from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.models.segmentation.layers import Classifier, ConvNorm, resize


class SemanticFPNHead(nn.Module):
    """Bring all levels to the finest one's size by convolutions and doublings, and sum them.

    Args:
        in_dim: channels of the pyramid.
        reductions: input pixels per position of each level, finest first.
        dim: channels of the head.
        num_classes: outputs.
        dropout: share of channels left out before the classifier.
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

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the pyramid's levels (B, in_dim, H_i, W_i) to logits (B, num_classes, H_0, W_0)."""
        return self.classifier(self.dropout(self.features(maps)))

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """The sum over the levels, (B, dim, H_0, W_0)."""
        finest = (maps[0].shape[2], maps[0].shape[3])
        total: Tensor | None = None
        for x, convs, doublings in zip(maps, self.scales, self.doublings, strict=True):
            assert isinstance(convs, nn.ModuleList)
            for conv in convs:
                x = conv(x)
                if doublings:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = resize(x, finest)  # odd sizes do not double to the finer level's
            total = x if total is None else total + x
        assert total is not None
        return total
