"""gMLP's mixing: channels gated by others at other positions, https://arxiv.org/abs/2105.08050.

Liu et al. Pay Attention to MLPs. NeurIPS 2021.
"""

from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.act import ACTS
from metaformer.layers.mlp import EXPANSION
from metaformer.layers.norm import LayerNorm
from metaformer.layers.pointwise import Pointwise
from metaformer.layers.spatial_fc import SpatialFC
from metaformer.mixers import MIXERS
from metaformer.serialize import check_value


@MIXERS.register("spatial_gating", fixed_grid=True)
class SpatialGating(nn.Module):
    """An MLP whose hidden channels are multiplied, one half by a linear map of the other half's positions.

        u, v = act(W₁ · x + b₁)                         over channels
        y = W₂ · (u · (S · norm(v) + s)) + b₂           S and s over positions

    In blocks without a channel MLP (`mlp_ratios=0`) it is the paper's network. S begins near 0 and s at 1.

    Args:
        dim: channels.
        grid: height and width of the map.
        grid_mode: what happens at another size.
        expansion: hidden width, both halves, over dim.
        act: activation.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        grid_mode: str = "strict",
        expansion: float = 2.0,
        act: str = "gelu",
    ) -> None:
        super().__init__()
        check_value("spatial_gating expansion", expansion, EXPANSION)
        hidden = int(expansion * dim)
        if hidden % 2 or not hidden:
            raise ConfigError(f"spatial_gating expansion {expansion}: {hidden} channels have no two halves")
        self.fc1 = Pointwise(dim, hidden)
        self.act = ACTS.build(act)
        self.norm = LayerNorm(hidden // 2)
        self.gate = SpatialFC(hidden // 2, grid, grid_mode, bias=True)
        self.fc2 = Pointwise(hidden // 2, dim)
        nn.init.normal_(self.gate.fc.weight, std=1e-6)
        nn.init.ones_(self.gate.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.act(self.fc1(x)).chunk(2, 1)
        return self.fc2(u * self.gate(self.norm(v)))
