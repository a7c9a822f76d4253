"""Channel MLP."""

from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.act import ACTS
from metaformer.layers.pointwise import Pointwise
from metaformer.serialize import Range

EXPANSION: Final = Range(0, 1000, above=True)
"""Hidden widths over the width of the input."""


class Mlp(nn.Module):
    """Two linear layers over channels with an activation between, (B, C, H, W) to (B, out, H, W)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        out: int | None = None,
        *,
        act: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden, bias)
        self.act = ACTS.build(act)
        self.drop = nn.Dropout(dropout)
        self.fc2 = Pointwise(hidden, dim if out is None else out, bias)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, out, H, W).

        Args:
            x: the input.
            scale: (out,), a LayerScale, folded into the second layer's weights: the gradient then needs no
                unscaled output.
        """
        hidden = self.drop(self.act(self.fc1(x)))
        if scale is None:
            return self.drop(self.fc2(hidden))
        bias = None if self.fc2.bias is None else self.fc2.bias * scale
        return self.drop(F.conv2d(hidden, self.fc2.weight * scale[:, None, None, None], bias))
