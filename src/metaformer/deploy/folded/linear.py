"""Linear layers that absorb the norm before them and the scale and residual behind them."""

from collections.abc import Callable, Hashable
from itertools import count
from typing import Any, Final, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.norm import BatchNorm, GroupNorm, LayerNorm, NoNorm
from metaformer.layers.scale import Scale
from metaformer.ops import cpp, onednn
from metaformer.ops.linear import PackedWeight, linear, pack, to_float32
from metaformer.ops.norm import group_norm, layer_norm

T = TypeVar("T")
_generations = count(1)
MAX_PLANS: Final = 4
"""Shapes for which a module keeps what it made for them."""
ACTIVATIONS: Final = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


class WeightCache(nn.Module):
    """Module that caches what it derives from its weights until they are moved, converted or loaded.

    Threads may share it: each step on the cache is one operation of the dictionary.
    """

    generation = 0
    """How often such modules' weights were moved, converted or loaded, for what depends on several."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[Hashable, Any] = {}
        self._recent: dict[Hashable, bool] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The cached value of a key; `make()` at the first call."""
        value: Any = self._cache.get(key, self)  # the module itself stands for none
        if value is self:
            value = self._cache[key] = make()
        return cast(T, value)

    def get_repeated(self, key: Hashable, make: Callable[[], T]) -> T | None:
        """The cached value of a key that comes again within `MAX_PLANS` others; None at its first call.

        For what is made for a shape of inputs, such as oneDNN's layout of a convolution's weight, which is
        many times slower at other shapes. The values of the last `MAX_PLANS` keys are kept.
        """
        known = self._recent.pop(key, False)
        self._recent[key] = True
        for old in list(self._recent)[:-MAX_PLANS]:
            self._recent.pop(old, None)
            self._cache.pop(old, None)
        if not known:
            return None
        value = self.get(key, make)
        if key not in self._recent:  # other threads' keys took its place meanwhile
            self._cache.pop(key, None)
        return value

    def adopt(self, module: nn.Module) -> None:
        """Become what a module of a base class is: its parts, parameters and attributes."""
        nn.Module.__init__(self)
        vars(self).update(vars(module))
        self._cache, self._recent = {}, {}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._clear()
        super()._load_from_state_dict(*args)

    def _clear(self) -> None:
        WeightCache.generation = next(_generations)
        self._cache.clear()
        self._recent.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache out of copies: oneDNN's layouts belong to this process."""
        return {**self.__dict__, "_cache": {}, "_recent": {}}


class ChannelsLastNorm(WeightCache):
    """A whole norm, applied to (B, H, W, C)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, LayerNorm) and (norm.bias is None or norm.weight is not None):
            affine: tuple[Tensor | None, Tensor | None] = (norm.weight, norm.bias)
            if cpp.supports(x):
                affine = self.get("affine", lambda: affine_float32(norm))
            return layer_norm(x, norm.eps, *affine)
        return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class FoldedNorm(ChannelsLastNorm):
    """A whole norm, applied to (B, C, H, W) in channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FoldedBatchNorm(nn.Module):
    """A batch norm in evaluation: gain · x + shift for each channel of (B, C, H, W)."""

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        _, gain, shift = split_affine(norm)
        assert gain is not None and shift is not None, "with running statistics"
        self.gain, self.shift = (nn.Parameter(x[:, None, None], requires_grad=False) for x in (gain, shift))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.gain)


class PlainGroupNorm(nn.Module):
    """Group norm of one group without affine constants: mean 0 and variance 1 of each sample."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.eps)


class PlainLayerNorm(nn.Module):
    """Layer norm without affine constants: mean 0 and variance 1 over the channels of each position."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.eps)


def split_affine(norm: nn.Module) -> tuple[nn.Module, Tensor | None, Tensor | None]:
    """Split a norm into a module on (B, H, W, C) and the gain and shift (C,) that follow it.

    A batch norm is nothing but gain and shift. A norm of another class stays whole.
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
        plain = PlainGroupNorm(norm.eps) if isinstance(norm, GroupNorm) else PlainLayerNorm(norm.eps)
        return plain, _detach(norm.weight), _detach(norm.bias)
    return ChannelsLastNorm(norm), None, None


def norm_options(norm: nn.Module) -> dict[str, Any] | None:
    """Keywords by which the operations of `ops` know a norm of `split_affine`; None for others."""
    if isinstance(norm, PlainGroupNorm | PlainLayerNorm):
        return {"norm": "group_norm" if isinstance(norm, PlainGroupNorm) else "layer_norm", "eps": norm.eps}
    return {"norm": "none"} if isinstance(norm, nn.Identity) else None


def affine_float32(norm: Any) -> tuple[Tensor | None, Tensor | None]:
    """A norm's weight and bias, where it has them, as the C++ kernels take them."""
    weight, bias = (None if x is None else to_float32(x) for x in (norm.weight, norm.bias))
    return weight, bias


def _detach(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


class PackedLinear(WeightCache):
    """Linear layer (…, in) to (…, out) with activation or residual in its epilogue.

    On a CPU the weight is packed at the first call and cached beside the plain one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(
        self,
        x: Tensor,
        act: str = "none",
        residual: Tensor | None = None,
        residual_scale: Tensor | None = None,
    ) -> Tensor:
        """Compute act(W·x + b) + residual_scale · residual.

        Args:
            x: (…, in).
            act: a key of `ACTIVATIONS`.
            residual: (…, out).
            residual_scale: (out,) in float32.
        """
        if cpp.supports(x, *(() if residual is None else (residual,)), weight=self.weight):
            return linear(x, self.packed, act=act, residual=residual, residual_scale=residual_scale)
        if residual is not None and residual_scale is not None:
            residual = residual * residual_scale.to(residual.dtype)
        if onednn.supports(x):
            weight = self.get("weight", lambda: onednn.pack(self.weight))
            return onednn.linear(x, weight, self.bias, act, residual)
        if torch.compiler.is_dynamo_compiling() and x.device.type == "cpu" and x.ndim == 4:
            return self._conv(x, act, residual)
        y = ACTIVATIONS[act](F.linear(x, self.weight, self.bias))
        return y if residual is None else y + residual

    def after(self, norm: nn.Module, x: Tensor, act: str = "none") -> Tensor:
        """Compute act(W·norm(x) + b) for a norm of `split_affine`."""
        if isinstance(norm, PlainLayerNorm) and cpp.supports(x, weight=self.weight):
            return linear(x, self.packed, norm="layer_norm", eps=norm.eps, act=act)
        return self(norm(x), act)

    @property
    def packed(self) -> PackedWeight:
        """Weight and bias as the C++ kernels read them."""
        return self.get("packed", lambda: pack(self.weight, self.bias))

    def _conv(self, x: Tensor, act: str, residual: Tensor | None) -> Tensor:
        """As a 1×1 convolution, which Inductor gives to oneDNN with its epilogue; linear goes to MKL."""
        y = ACTIVATIONS[act](F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias))
        y = y if residual is None else y + residual.permute(0, 3, 1, 2)
        return y.permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


def fold_linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> PackedLinear:
    """The layer scale · (W · (gain · x + shift) + b), folded in float64.

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
        shifted = w @ shift.double()
        b = shifted if b is None else b + shifted
    if gain is not None:
        w = w * gain.double()
    if scale is not None:
        w = w * scale.double()[:, None]
        b = None if b is None else b * scale.double()
    return PackedLinear(w.to(dtype), None if b is None else b.to(dtype))


class Residual(WeightCache):
    """A block's residual connection for (B, H, W, C): the input, the input times ResScale, or none."""

    def __init__(self, res_scale: nn.Module, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self.scale: nn.Parameter | None = None
        if isinstance(res_scale, Scale):
            self.scale = nn.Parameter(res_scale.scale.detach().clone(), requires_grad=False)

    @property
    def factor(self) -> float | Tensor | None:
        """The input's factor as the Triton operations take it; None without a residual."""
        return (1.0 if self.scale is None else self.scale) if self.enabled else None

    def options(self, x: Tensor, float32: bool = False) -> dict[str, Any]:
        """Keywords by which the operations of `ops` add the input, its factor in float32 for C++."""
        if not self.enabled:
            return {}
        return {"residual": x, "residual_scale": self.scale_float32 if float32 else self.scale}

    @property
    def scale_float32(self) -> Tensor | None:
        """The input's factor (C,) as the C++ kernels take it; None where it is 1."""
        scale = self.scale
        return None if scale is None else self.get("scale", lambda: scale.float().contiguous())

    def forward(self, x: Tensor) -> Tensor | None:
        if not self.enabled:
            return None
        return x if self.scale is None else x * self.scale

    def add_to(self, linear: PackedLinear, branch: Tensor, x: Tensor) -> Tensor:
        """Compute linear(branch) + residual(x) in one operation."""
        return linear(branch, **self.options(x, float32=True))
