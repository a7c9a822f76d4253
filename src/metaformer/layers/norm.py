"""Norms of (B, C, H, W)."""

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.registry import Registry

NORMS: Registry[nn.Module] = Registry("norm")


@NORMS.register("group_norm")
class GroupNorm(nn.GroupNorm):
    """Group norm of one group: over channels and positions, PoolFormer's norm (paper Table 5)."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(1, dim, eps)
        if not bias:
            self.register_parameter("bias", None)


@NORMS.register("layer_norm")
class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each position."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(dim, eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W); channels-last memory is read in place."""
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


@NORMS.register("batch_norm")
class BatchNorm(nn.BatchNorm2d):
    """Batch norm."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(dim, eps)
        if not bias:
            self.register_parameter("bias", None)

    def _check_input_dim(self, input: Tensor) -> None:
        """Leave the number of dimensions unchecked: `torch.fx` cannot compare it."""


@NORMS.register("none")
class NoNorm(nn.Identity):
    """No norm."""

    def __init__(self, dim: int, eps: float = 0.0) -> None:
        super().__init__()
