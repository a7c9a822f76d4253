"""The 1×1 product of a folded block."""

from collections.abc import Callable, Hashable
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.norm import BatchNorm, GroupNorm, LayerNorm, NoNorm
from metaformer.layers.scale import Scale
from metaformer.ops import onednn, packed
from metaformer.ops.layer_norm import layer_norm
from metaformer.ops.native import library
from metaformer.ops.packed import Packed
from metaformer.ops.pool_norm import group_norm
from metaformer.ops.product import product

PLAIN = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


Constants = tuple[Tensor | None, Tensor | None]
"""A norm's weight and bias, (C,)."""


T = TypeVar("T")


class Prepared(nn.Module):
    """A module that keeps what it makes of its weights until they are moved, converted or loaded."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[Hashable, Any] = {}
        self._last: torch.Size | None = None

    def kept(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave when it was first called for this name."""
        if name not in self._kept:
            self._kept[name] = make()
        found: T = self._kept[name]
        return found

    def kept_for(self, shape: torch.Size, make: Callable[[], T]) -> T | None:
        """What `make` gave for maps of this shape, if the last call was of that too; otherwise nothing.

        oneDNN's layouts of a convolution's weight fit one shape, and are many times slower at others: so one
        is made when a shape comes again, and the one before is given up.
        """
        last, self._last = self._last, shape
        if last != shape or not shape.numel():
            return None
        if shape not in self._kept:
            for other in [name for name in self._kept if isinstance(name, torch.Size)]:
                del self._kept[other]
        return self.kept(shape, make)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *words: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*words)

    def _forget(self) -> None:
        self._kept.clear()
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes it anew: oneDNN's layouts belong to this process."""
        return {**self.__dict__, "_kept": {}, "_last": None}


class Product(Prepared):
    """A linear map of (…, in) to (…, out) that also activates, or adds another map.

    On a CPU the weight is laid out at the first call and kept beside the plain one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(
        self, tokens: Tensor, act: str = "none", plus: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Map tokens, then activate, or add `plus` (…, out), times `keep` (out,) in float32 where given."""
        if packed.usable(self.weight, tokens, *(() if plus is None else (plus,))):
            return product(tokens, self.packed, act=act, past=plus, keep=keep)
        if plus is not None and keep is not None:
            plus = plus * keep.to(plus.dtype)
        if onednn.usable(tokens):
            weight = self.kept("weight", lambda: onednn.pack(self.weight))
            return onednn.product(tokens, weight, self.bias, act, plus)
        if self._compiled_for_cpu(tokens):
            return self._convolution(tokens, act, plus)
        y = PLAIN[act](F.linear(tokens, self.weight, self.bias))
        return y if plus is None else y + plus

    def after(self, norm: nn.Module, tokens: Tensor, act: str = "none") -> Tensor:
        """Map what a norm of `take_apart` makes of tokens."""
        if isinstance(norm, BareLayerNorm) and packed.usable(self.weight, tokens):
            return product(tokens, self.packed, norm="layer_norm", eps=norm.eps, act=act)
        return self(norm(tokens), act)

    @property
    def packed(self) -> Packed:
        """Weight and bias as the C++ kernels read them."""
        return self.kept("packed", lambda: packed.pack(self.weight, self.bias))

    def _compiled_for_cpu(self, tokens: Tensor) -> bool:
        return torch.compiler.is_dynamo_compiling() and tokens.device.type == "cpu" and tokens.ndim == 4

    def _convolution(self, tokens: Tensor, act: str, plus: Tensor | None) -> Tensor:
        """The same as Inductor hands it to oneDNN, epilogue and all; a product would go to MKL."""
        y = PLAIN[act](F.conv2d(tokens.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias))
        y = y if plus is None else y + plus.permute(0, 3, 1, 2)
        return y.permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


def folded(
    weight: Tensor,
    bias: Tensor | None,
    *,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> Product:
    """The product scale · (weight · (gain · x + shift) + bias) as one; computed in float64.

    Args:
        weight: (out, in), or a 1×1 convolution's (out, in, 1, 1).
        bias: (out,).
        gain: (in,), a norm's weight.
        shift: (in,), a norm's bias.
        scale: (out,), a branch's scale.
    """
    dtype = weight.dtype
    w = weight.detach().flatten(1).double()
    b = None if bias is None else bias.detach().double()
    if shift is not None:
        moved = w @ shift.double()
        b = moved if b is None else b + moved
    if gain is not None:
        w = w * gain.double()
    if scale is not None:
        w = w * scale.double()[:, None]
        b = None if b is None else b * scale.double()
    return Product(w.to(dtype), None if b is None else b.to(dtype))


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


class Shortcut(Prepared):
    """The tokens (B, H, W, C) as they are, times ResScale, or none at all."""

    def __init__(self, res_scale: nn.Module, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.scale = (
            nn.Parameter(res_scale.scale.detach().clone(), requires_grad=False)
            if isinstance(res_scale, Scale)
            else None
        )

    @property
    def factor(self) -> float | Tensor | None:
        """What the tokens are multiplied with, as the operations of `ops` take it."""
        return (1.0 if self.scale is None else self.scale) if self.residual else None

    @property
    def keep(self) -> Tensor | None:
        """The tokens' factor (C,) in float32, as the C++ kernels take it."""
        scale = self.scale
        return None if scale is None else self.kept("keep", lambda: scale.float().contiguous())

    def forward(self, tokens: Tensor) -> Tensor | None:
        if not self.residual:
            return None
        return tokens if self.scale is None else tokens * self.scale

    def joined(self, product: Product, branch: Tensor, tokens: Tensor) -> Tensor:
        """Give the product of the branch plus what goes past it."""
        return product(branch, plus=tokens, keep=self.keep) if self.residual else product(branch)
