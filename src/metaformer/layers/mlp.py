"""The channel MLP."""

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.act import ACTS
from metaformer.layers.pointwise import Pointwise


class Mlp(nn.Module):
    """Two 1×1 products with an activation between, (B, C, H, W) to (B, out, H, W)."""

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

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, out, H, W).

        Args:
            x: the map.
            factor: (out,), what each channel of the result is multiplied by: in the weights, so that the
                gradient needs no result without it.
        """
        hidden = self.drop(self.act(self.fc1(x)))
        if factor is None:
            return self.drop(self.fc2(hidden))
        bias = None if self.fc2.bias is None else self.fc2.bias * factor
        return self.drop(F.conv2d(hidden, self.fc2.weight * factor[:, None, None, None], bias))
