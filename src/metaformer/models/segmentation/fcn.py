"""The small head that deepens supervision, https://arxiv.org/abs/1411.4038 and 1612.01105, section 3.3."""

from torch import Tensor, nn

from metaformer.models.segmentation.layers import Classifier, ConvNorm


class FCNHead(nn.Module):
    """One convolution and a classifier on one map."""

    def __init__(self, in_dim: int, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvNorm(in_dim, dim, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to logits (B, num_classes, H, W)."""
        return self.classifier(self.dropout(self.conv(x)))
