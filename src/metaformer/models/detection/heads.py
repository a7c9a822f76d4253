"""Convolutional heads on the levels of a pyramid, initialized and named as torchvision's are."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

PRIOR = 0.01
"""Initial probability of a class in RetinaNet, https://arxiv.org/abs/1708.02002, section 4.1."""


class ConvTower(nn.Sequential):
    """3×3 convolutions, each before a ReLU.

    Args:
        in_dim: channels of the input.
        dim: channels of the convolutions.
        depth: number of convolutions.
    """

    def __init__(self, in_dim: int, dim: int, depth: int) -> None:
        super().__init__(
            *(
                nn.Sequential(nn.Conv2d(dim if i else in_dim, dim, 3, padding=1), nn.ReLU(inplace=True))
                for i in range(depth)
            )
        )


class RPNHead(nn.Module):
    """Objectness and box deltas of each anchor.

    Args:
        dim: channels of the pyramid.
        anchors: anchors per cell.
    """

    def __init__(self, dim: int, anchors: int) -> None:
        super().__init__()
        self.conv = ConvTower(dim, dim, 1)
        self.cls_logits = nn.Conv2d(dim, anchors, 1)
        self.bbox_pred = nn.Conv2d(dim, anchors * 4, 1)
        init_normal(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map levels (B, dim, H_i, W_i) to logits (B, A, H_i, W_i) and deltas (B, 4A, H_i, W_i)."""
        hidden = [self.conv(level) for level in features]
        return [self.cls_logits(x) for x in hidden], [self.bbox_pred(x) for x in hidden]


class ClassificationHead(nn.Module):
    """Class logits of each anchor of RetinaNet, in (B, A · K, H, W)."""

    def __init__(self, dim: int, anchors: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvTower(dim, dim, 4)
        init_normal(self.conv)
        self.cls_logits = nn.Conv2d(dim, anchors * num_classes, 3, padding=1)
        init_normal(self.cls_logits, bias=-math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> Tensor:
        return self.cls_logits(self.conv(x))


class RegressionHead(nn.Module):
    """Box deltas of each anchor of RetinaNet, in (B, A · 4, H, W)."""

    def __init__(self, dim: int, anchors: int) -> None:
        super().__init__()
        self.conv = ConvTower(dim, dim, 4)
        self.bbox_reg = nn.Conv2d(dim, anchors * 4, 3, padding=1)
        init_normal(self.bbox_reg)
        init_normal(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.bbox_reg(self.conv(x))


class RetinaNetHead(nn.Module):
    """Class logits and box deltas of each anchor.

    Args:
        in_dim: channels of the pyramid.
        dim: channels of the towers.
        anchors: anchors per cell.
        num_classes: number of classes.
    """

    def __init__(self, in_dim: int, dim: int, anchors: int, num_classes: int) -> None:
        super().__init__()
        self.classification_head = ClassificationHead(dim, anchors, num_classes)
        self.regression_head = RegressionHead(dim, anchors)
        if in_dim != dim:
            for tower in (self.classification_head.conv, self.regression_head.conv):
                first = nn.Conv2d(in_dim, dim, 3, padding=1)
                tower[0] = nn.Sequential(first, nn.ReLU(inplace=True))
                init_normal(first)

    def forward(self, features: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Map levels (B, in_dim, H_i, W_i) to logits (B, A · K, H_i, W_i) and deltas (B, A · 4, H_i, W_i)."""
        return tuple(map(self.classification_head, features)), tuple(map(self.regression_head, features))


def init_normal(module: nn.Module, bias: float = 0.0) -> None:
    """Draw the weights of its convolutions from a normal distribution of std 0.01."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def by_anchor(level: Tensor, channels: int) -> Tensor:
    """Reshape (B, A·C, H, W) to (B, H·W·A, C); a view of a channels-last tensor."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels)
