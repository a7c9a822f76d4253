"""Learned factor per channel: LayerScale on a branch, ResScale on a residual."""

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """Multiply each channel by a learned factor.

    The (C,) vector stands for (1, C, 1, 1): every sample and every position shares it.
    LayerScale: https://arxiv.org/abs/2103.17239. ResScale: https://arxiv.org/abs/2110.09456.
    """

    def __init__(self, dim: int, init: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None]
