"""Layers that the segmentation heads share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalization, ReLU."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H, W)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Classifier(nn.Conv2d):
    """1×1 convolution to class logits."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes, 1)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class FCNHead(nn.Module):
    """Auxiliary head: one convolution and a classifier on one feature level.

    https://arxiv.org/abs/1411.4038; as auxiliary loss in https://arxiv.org/abs/1612.01105, section 3.3.
    """

    def __init__(self, in_dim: int, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvNorm(in_dim, dim, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, in_dim, H, W) to logits (B, num_classes, H, W)."""
        return self.classifier(self.dropout(self.conv(x)))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) bilinearly with `align_corners=False`."""
    if not torch.compiler.is_compiling() and x.shape[2:] == size:  # a traced size cannot be compared
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
