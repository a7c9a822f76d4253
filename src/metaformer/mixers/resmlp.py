"""ResMLP's mixing: a linear map of positions behind an affine one, https://arxiv.org/abs/2105.03404.

Touvron et al. ResMLP: Feedforward networks for image classification with data-efficient training. TPAMI 2022.
"""

import torch
from torch import Tensor, nn

from metaformer.layers.spatial_fc import SpatialFC
from metaformer.mixers import MIXERS


@MIXERS.register("resmlp", fixed_grid=True)
class ResMLP(nn.Module):
    """Gain and shift of each channel in a norm's place, and the same linear map of the N positions for all.

        y = W · (α · x + β) + b     α and β by channel, W and b over positions

    With `norm="none"` and a LayerScale the block is the paper's.

    Args:
        dim: channels.
        grid: height and width of the map.
        grid_mode: what happens at another size.
    """

    def __init__(self, dim: int, grid: tuple[int, int], grid_mode: str = "strict") -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))
        self.fc = SpatialFC(dim, grid, grid_mode, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.addcmul(self.beta[:, None, None], x, self.alpha[:, None, None]))
