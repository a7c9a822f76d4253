"""What the dense heads are made of."""

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
    """Logits of every position."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes, 1)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate a map (B, C, H, W) to another size, bilinearly, as corners of pixels lie."""
    if not torch.compiler.is_compiling() and x.shape[2:] == size:  # a traced size is no number to compare
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
