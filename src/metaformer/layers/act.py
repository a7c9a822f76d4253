"""Activations by name."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.registry import Registry

ACTS: Registry[nn.Module] = Registry("act")
ACTS.register("gelu")(nn.GELU)
ACTS.register("relu")(nn.ReLU)
ACTS.register("silu")(nn.SiLU)


@ACTS.register("squared_relu")
class SquaredReLU(nn.Module):
    """max(x, 0)², https://arxiv.org/abs/2109.08668."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@ACTS.register("star_relu")
class StarReLU(nn.Module):
    """s · max(x, 0)² + b with learned scalars s and b, https://arxiv.org/abs/2210.13452."""

    def __init__(self, scale: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), float(scale)))
        self.bias = nn.Parameter(torch.full((1,), float(bias)))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x).square() + self.bias
