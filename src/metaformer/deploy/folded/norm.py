"""A norm taken apart: what is computed from the map, and the constants that the next product takes over."""

from typing import Any

import torch
from torch import Tensor, nn

from metaformer.deploy.folded.prepared import Prepared
from metaformer.layers.norm import BatchNorm, GroupNorm, LayerNorm, NoNorm
from metaformer.ops.layer_norm import layer_norm
from metaformer.ops.native import library
from metaformer.ops.pool_norm import group_norm

Constants = tuple[Tensor | None, Tensor | None]
"""A norm's weight and bias, (C,)."""


class TokenNorm(Prepared):
    """A whole norm of maps, applied to tokens (B, H, W, C)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, LayerNorm) and (norm.bias is None or norm.weight is not None):
            constants: Constants = (norm.weight, norm.bias)
            if library.usable(tokens):
                constants = self.kept("constants", lambda: (_wide(norm.weight), _wide(norm.bias)))
            return layer_norm(tokens, norm.eps, *constants)
        return norm(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class BareGroupNorm(nn.Module):
    """Mean 0 and variance 1 over all of a sample."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, tokens: Tensor) -> Tensor:
        return group_norm(tokens, self.eps)


class BareLayerNorm(nn.Module):
    """Mean 0 and variance 1 over the channels of each token."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, tokens: Tensor) -> Tensor:
        return layer_norm(tokens, self.eps)


def kernel_options(norm: nn.Module) -> dict[str, Any] | None:
    """What the operations of `ops` call the norm that `take_apart` gave; None where they do not have it."""
    if isinstance(norm, BareGroupNorm | BareLayerNorm):
        return {"norm": "group_norm" if isinstance(norm, BareGroupNorm) else "layer_norm", "eps": norm.eps}
    return {"norm": "none"} if isinstance(norm, nn.Identity) else None


def take_apart(norm: nn.Module) -> tuple[nn.Module, Tensor | None, Tensor | None]:
    """Split a norm into a module of tokens and the gain and shift (C,) that follow it.

    A norm that is not known stays whole.
    """
    if type(norm) is NoNorm:
        return nn.Identity(), None, None
    if isinstance(norm, BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
        dtype = norm.running_var.dtype
        gain = torch.rsqrt(norm.running_var.double() + norm.eps)
        gain = gain if norm.weight is None else gain * norm.weight.detach()
        shift = -norm.running_mean * gain
        shift = shift if norm.bias is None else shift + norm.bias.detach()
        return nn.Identity(), gain.to(dtype), shift.to(dtype)
    if isinstance(norm, GroupNorm | LayerNorm):
        bare = BareGroupNorm(norm.eps) if isinstance(norm, GroupNorm) else BareLayerNorm(norm.eps)
        return bare, _detached(norm.weight), _detached(norm.bias)
    return TokenNorm(norm), None, None


def _wide(constant: Tensor | None) -> Tensor | None:
    return None if constant is None else constant.detach().float().contiguous()


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
