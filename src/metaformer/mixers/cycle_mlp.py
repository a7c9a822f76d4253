"""CycleMLP's mixing: three linear layers, weighted per channel, https://arxiv.org/abs/2107.10224.

Chen et al. CycleMLP: A MLP-like Architecture for Dense Prediction. ICLR 2022.
"""

import torch
from torch import Tensor, nn

from metaformer.layers.cycle_fc import CycleFC
from metaformer.layers.mlp import Mlp
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS


@MIXERS.register("cycle_mlp")
class CycleMLP(nn.Module):
    """A CycleFC along the width, one along the height and a linear layer, summed with softmax weights.

        h, w, c = cycle_fc(x), cycle_fc(x), W · x        along the width, along the height, at the position
        a = softmax(mlp(mean(h + w + c)))                three weights for each channel
        y = W' · (a_h · h + a_w · w + a_c · c)

    The published names are swapped: `sfc_h` samples along the width, `sfc_w` along the height.

    Args:
        dim: channels.
        kernel: positions along an axis that the channels are read at.
        qkv_bias: bias of the linear layer without shift.
    """

    def __init__(self, dim: int, kernel: int = 3, qkv_bias: bool = False) -> None:
        super().__init__()
        self.mlp_c = Pointwise(dim, dim, qkv_bias)
        self.sfc_h = CycleFC(dim, kernel, "width")
        self.sfc_w = CycleFC(dim, kernel, "height")
        self.reweight = Mlp(dim, max(1, dim // 4), 3 * dim)
        self.proj = Pointwise(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w, c = self.sfc_h(x), self.sfc_w(x), self.mlp_c(x)
        mean = h.mean((2, 3), keepdim=True) + w.mean((2, 3), keepdim=True) + c.mean((2, 3), keepdim=True)
        weights = self.reweight(mean).unflatten(1, (-1, 3)).softmax(2)
        w_h, w_w, w_c = weights.movedim(2, 0).contiguous()  # each (B, C, 1, 1), its channels contiguous
        return self.proj(torch.addcmul(torch.addcmul(h * w_h, w, w_w), c, w_c))
