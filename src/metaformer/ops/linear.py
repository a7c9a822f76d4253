"""Linear layer over channels, with the norm before it and activation, scale and residual after it."""

from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.errors import ConfigError, UnknownName
from metaformer.ops import cpp, triton
from metaformer.ops.backend import without_autocast, working_dtype
from metaformer.ops.cpp import kernels
from metaformer.ops.norm import norm as normalized

NORMS: Final = {"none": 0, "layer_norm": 1, "group_norm": 2}
"""Norm -> its number in C++."""
ACTS: Final = {"none": 0, "relu": 1, "squared_relu": 2, "gelu": 3, "star_relu": -1}
"""Activation -> its number in C++; StarReLU is folded into the next layer there."""
Scale = float | Tensor | None
"""What a residual is multiplied by: a number, (out,), or none, which is 1."""


@dataclass(frozen=True)
class PackedWeight:
    """A weight (out, in) in panels as the C++ kernels read it, and its bias in float32.

    Both have zeros behind the last output, up to whole registers.
    """

    weight: Tensor
    bias: Tensor
    out_features: int
    in_features: int


def pack(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    """Pack a weight (out, in) of float32 or bfloat16, of which pairs of inputs lie side by side.

    A panel of `width` outputs is (in / step, width, step); they have `cpp.panel()` outputs, those left over
    `cpp.lanes()`.
    """
    out_features, in_features = weight.shape
    rest = -out_features % cpp.lanes()
    weight = F.pad(weight.detach(), (0, 0, 0, rest))
    step = 1 if weight.dtype == torch.float32 else 2
    whole = len(weight) - len(weight) % cpp.panel()
    panels = (
        part.reshape(-1, width, in_features // step, step).transpose(1, 2).flatten()
        for part, width in ((weight[:whole], cpp.panel()), (weight[whole:], cpp.lanes()))
    )
    zeros = torch.zeros(len(weight), dtype=torch.float32, device="cpu")
    bias = zeros if bias is None else F.pad(bias.detach().float(), (0, rest))
    return PackedWeight(torch.cat(list(panels)), bias, out_features, in_features)


def linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    act_scale: Tensor | None = None,
    act_bias: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_scale: Scale = None,
    out: Tensor | None = None,
) -> Tensor:
    """Linear layer: scale · act(norm(x) · weightᵀ + bias) + residual_scale · residual, (B, H, W, out).

    A packed weight runs in C++, on what `cpp.supports(x, residual, weight=...)` allows: its bias comes with
    it, its norm is a layer norm without constants or none, and there is no scale.

    Args:
        x: the activations (B, H, W, in); with a packed weight (…, in).
        weight: (out, in), or a 1×1 convolution's (out, in, 1, 1), or packed.
        bias: (out,), or none.
        norm: a key of `NORMS`.
        gamma: the norm's weight (in,), or none.
        beta: the norm's bias (in,), or none.
        eps: the norm's.
        act: a key of `ACTS`.
        act_scale: StarReLU's scale (1,).
        act_bias: StarReLU's bias (1,).
        scale: LayerScale (out,), or none.
        residual: what is added, (B, H, W, out), or none.
        residual_scale: its factor; in float32 with a packed weight.
        out: where a packed weight's result goes, the residual's memory included; new memory by default.

    Raises:
        ConfigError: an unknown norm or activation.
    """
    if isinstance(weight, PackedWeight):
        if out is None:
            out = x.new_empty(*x.shape[:-1], weight.out_features)
        kernels.linear(
            x=x, weight=weight.weight, bias=weight.bias, residual=residual,
            residual_scale=scale_vector(residual_scale, out), out=out, rows=x.numel() // weight.in_features,
            in_features=weight.in_features, out_features=weight.out_features, norm=NORMS[norm], act=ACTS[act],
            eps=eps,
        )  # fmt: skip
        return out
    validate(norm, act, act_scale, act_bias)
    x = x.to(working_dtype(x))
    weight = weight.flatten(1).to(x.dtype)
    residual = None if residual is None else residual.to(x.dtype)
    plain = partial(
        reference, x, weight, bias, norm=norm, gamma=gamma, beta=beta, eps=eps, act=act, act_scale=act_scale,
        act_bias=act_bias, scale=scale, residual=residual, residual_scale=residual_scale,
    )  # fmt: skip
    with without_autocast(x):
        if norm == act == "none" and triton.supports(x):
            vector, factor = split_scale(residual_scale)
            operands = contiguous(x, weight, bias, scale, residual, vector)
            return triton.call("linear_residual", plain, *operands, factor)
        if scale is residual is None and triton.supports(x):
            operands = contiguous(x, weight, bias, gamma, beta, act_scale, act_bias)
            return triton.call("linear_act", lambda: (plain(),), *operands, eps, norm, act)[0]
        return plain()


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    act_scale: Tensor | None = None,
    act_bias: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_scale: Scale = None,
) -> Tensor:
    """The same in plain PyTorch."""
    gamma, beta, bias, act_scale, act_bias, scale = (
        vector if vector is None else vector.to(x.dtype)
        for vector in (gamma, beta, bias, act_scale, act_bias, scale)
    )
    y = F.linear(normalized(x, norm, gamma, beta, eps), weight, bias)
    if act == "gelu":
        y = F.gelu(y)
    elif act != "none":
        y = F.relu(y)
        y = y if act == "relu" else y.square()
        if act_scale is not None and act_bias is not None:
            y = act_scale * y + act_bias
    if residual is None:
        return y if scale is None else y * scale
    if residual_scale is not None and not isinstance(residual_scale, Tensor):
        residual = residual if residual_scale == 1 else residual * residual_scale
    elif residual_scale is not None:
        residual = residual * residual_scale.to(x.dtype)
    return residual + y if scale is None else torch.addcmul(residual, y, scale)


def validate(norm: str, act: str, act_scale: Tensor | None, act_bias: Tensor | None) -> None:
    """Check the names of norm and activation.

    Raises:
        ConfigError: an unknown norm or activation, or StarReLU without its two numbers, or another with them.
    """
    if norm not in NORMS:
        raise UnknownName("norm", norm, NORMS)
    if act not in ACTS:
        raise UnknownName("act", act, ACTS)
    if [act_scale is None, act_bias is None] != [act != "star_relu"] * 2:
        raise ConfigError(f"act_scale and act_bias belong to star_relu, and act is {act!r}")


def split_scale(scale: Scale) -> tuple[Tensor | None, float]:
    """A residual's factor as Triton kernels take it: a vector, or none and a number."""
    return (scale, 1.0) if isinstance(scale, Tensor) else (None, 1.0 if scale is None else float(scale))


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """Each tensor without gaps in memory, as kernels read it."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def to_float32(vector: Tensor) -> Tensor:
    """A bias or a norm's constant as C++ kernels take it."""
    return vector.detach().float().contiguous()


def scale_vector(scale: Scale, like: Tensor) -> Tensor | None:
    """A residual's factor as C++ kernels take it: a vector in float32, or none, which is 1."""
    return like.new_full(like.shape[-1:], scale, dtype=torch.float32) if isinstance(scale, float) else scale
