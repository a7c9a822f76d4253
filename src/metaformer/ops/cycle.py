"""CycleMLP's token mixing: the staircase shift, and a weighted sum of linear layers of shifted inputs.

Channel c is read `staircase(kernel)[c % kernel]` positions away along one axis, zeros lie outside.
https://arxiv.org/abs/2107.10224
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops import cpp, triton
from metaformer.ops import linear as layer
from metaformer.ops.backend import is_traced, without_autocast, working_dtype
from metaformer.ops.cpp import kernels
from metaformer.ops.linear import PackedWeight, Scale, contiguous, linear, scale_vector

MAX_KERNEL: Final = 3
"""The C++ forms' longest staircase, which is the published one."""
_HEIGHT, _WIDTH = 2, 3
Layer = PackedWeight | tuple[Tensor, Tensor | None]
"""A linear layer of (C, C): packed, or weight and bias."""


def staircase(kernel: int) -> list[int]:
    """Offsets that channels 0 … kernel−1 are read at; further channels repeat them.

    The stairs start at the center, 0, +1, …, as in the original code (the paper's figure starts at the left).
    """
    return [(i + kernel // 2) % kernel - kernel // 2 for i in range(kernel)]


def shift_channels(x: Tensor, kernel: int, axis: int) -> Tensor:
    """Shift channel c of (B, C, H, W) by `staircase(kernel)[c % kernel]` along `axis` (2: height, 3: width).

    Position p of the result is position p + offset of the input, or zero beyond the border.
    """
    if is_traced(x) and not torch.compiler.is_compiling():
        return _shifted_copy(x, kernel, axis)
    return _Shift.apply(x, kernel, axis, 1)


def cycle_means(x: Tensor, kernel: int) -> Tensor:
    """Means over positions, (B, 3, C), of x (B, H, W, C) shifted along the width, the height, and not."""
    if kernel > MAX_KERNEL or not cpp.supports(x):
        return reference_means(x, kernel)
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, 3, channels)
    kernels.cycle_means(
        x=x, offsets=_offsets(kernel, channels), out=out, batch=batch, height=height, width=width,
        channels=channels,
    )  # fmt: skip
    return out


def reference_means(x: Tensor, kernel: int) -> Tensor:
    """The same in plain PyTorch: a shifted sum is the whole one less what is pushed over the border."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.sum((1, 2), dtype=wide)  # (B, C)
    sums = [_shifted_sum(x, total, kernel, axis) for axis in (2, 1)]
    return (torch.stack([*sums, total], 1) / (x.shape[1] * x.shape[2])).to(x.dtype)


def cycle_softmax(logits: Tensor) -> Tensor:
    """Softmax over the branches, the last of (B, C, 3), as (B, 3, C) in float32 or wider."""
    if not cpp.supports(logits):
        return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2)
    batch, channels, _ = logits.shape
    out = torch.empty(batch, 3, channels, dtype=torch.float32, device="cpu")
    kernels.cycle_softmax(logits=logits, out=out, batch=batch, channels=channels)
    return out


def cycle_mix(
    x: Tensor,
    branches: Sequence[Layer],
    branch_weights: Tensor,
    proj: Layer,
    kernel: int,
    *,
    residual: Tensor | None = None,
    residual_scale: Scale = None,
) -> Tensor:
    """CycleMLP mixing: proj(Σᵢ branch_weightsᵢ · branchᵢ(shiftᵢ(x))) + residual_scale · residual.

    Packed layers run in C++, on what `cpp.supports(x, residual, weight=...)` allows, up to `MAX_KERNEL`.

    Args:
        x: the activations (B, H, W, C).
        branches: the layers of x shifted along the width, along the height, and unshifted.
        branch_weights: of each sample and channel, (B, 3, C); in float32 with packed layers.
        proj: the layer of their sum.
        kernel: steps of the staircase, odd.
        residual: what is added, (B, H, W, C), or none.
        residual_scale: its factor: a number, (C,), or none, which is 1; in float32 with packed layers.
    """
    if isinstance(proj, PackedWeight):
        out = torch.empty_like(x)
        w_width, w_height, w_plain = (part for part in branches if isinstance(part, PackedWeight))
        batch, height, width, channels = x.shape
        kernels.cycle_mix(
            x=x, offsets=_offsets(kernel, channels), branch_weights=branch_weights, w_width=w_width.weight,
            b_width=w_width.bias, w_height=w_height.weight, b_height=w_height.bias, w_plain=w_plain.weight,
            b_plain=w_plain.bias, w_proj=proj.weight, b_proj=proj.bias, residual=residual,
            residual_scale=scale_vector(residual_scale, out), out=out, batch=batch, height=height,
            width=width, channels=channels,
        )  # fmt: skip
        return out
    x = x.to(working_dtype(x))
    weights, biases = zip(*(part for part in branches if isinstance(part, tuple)), strict=True)
    weights = tuple(weight.flatten(1).to(x.dtype) for weight in weights)
    with without_autocast(x):
        if triton.supports(x):
            arguments = contiguous(x, *weights, branch_weights)
            y = triton.call(
                "cycle_mix", lambda: weighted_sum(x, weights, branch_weights, kernel), *arguments, kernel
            )
        else:
            y = weighted_sum(x, weights, branch_weights, kernel)
        y = _add_biases(y, biases, branch_weights)
        return linear(y, *proj, residual=residual, residual_scale=residual_scale)


def reference(
    x: Tensor,
    branches: Sequence[tuple[Tensor, Tensor | None]],
    branch_weights: Tensor,
    proj: tuple[Tensor, Tensor | None],
    kernel: int,
    *,
    residual: Tensor | None = None,
    residual_scale: Scale = None,
) -> Tensor:
    """The same in plain PyTorch."""
    weights, biases = zip(*branches, strict=True)
    y = _add_biases(weighted_sum(x, weights, branch_weights, kernel), biases, branch_weights)
    return layer.reference(y, *proj, residual=residual, residual_scale=residual_scale)


def weighted_sum(x: Tensor, weights: Sequence[Tensor], branch_weights: Tensor, kernel: int) -> Tensor:
    """Σᵢ branch_weightsᵢ · shiftᵢ(x) · weightᵢᵀ."""
    channels_first = x.permute(0, 3, 1, 2)
    shifted = [shift_channels(channels_first, kernel, axis).permute(0, 2, 3, 1) for axis in (_WIDTH, _HEIGHT)]
    factors = branch_weights.to(x.dtype)[:, :, None, None].unbind(1)  # each (B, 1, 1, C)
    total = F.linear(shifted[0], weights[0]) * factors[0]
    total = torch.addcmul(total, F.linear(shifted[1], weights[1]), factors[1])
    return torch.addcmul(total, F.linear(x, weights[2]), factors[2])


def _add_biases(y: Tensor, biases: Sequence[Tensor | None], branch_weights: Tensor) -> Tensor:
    for i, bias in enumerate(biases):
        if bias is not None:
            y = y + (branch_weights[:, i] * bias).to(y.dtype)[:, None, None]
    return y


def _shifted_sum(x: Tensor, total: Tensor, kernel: int, axis: int) -> Tensor:
    """Sums over positions (B, C) of x, of sum `total`, shifted along `axis` (1: height, 2: width)."""
    length = x.shape[axis]
    sums = []
    for offset in staircase(kernel):
        lost = min(abs(offset), length)
        border = x.narrow(axis, 0 if offset > 0 else length - lost, lost)
        sums.append(total - border.sum((1, 2), dtype=total.dtype) if lost else total)
    residue = (torch.arange(x.shape[3], device=x.device) % kernel).expand(1, *total.shape)
    return torch.stack(sums).gather(0, residue)[0]


@cache
def _offsets(kernel: int, channels: int, sign: int = 1) -> Tensor:
    """How many positions away each channel is read, (C,) int32."""
    offsets = sign * torch.tensor(staircase(kernel), dtype=torch.int32)
    return offsets.repeat(channels // kernel + 1)[:channels].clone()


def _shifted(x: Tensor, kernel: int, axis: int, sign: int) -> Tensor:
    """By C++, or one strided copy per residue class of channels, c % kernel."""
    tokens = x.permute(0, 2, 3, 1)
    if kernel <= MAX_KERNEL and cpp.supports_under_autocast(tokens):
        out, (batch, height, width, channels) = torch.empty_like(tokens), tokens.shape
        kernels.cycle_shift(
            x=tokens, offsets=_offsets(kernel, channels, sign), out=out, batch=batch, height=height,
            width=width, channels=channels, along_height=int(axis == _HEIGHT),
        )  # fmt: skip
        return out.permute(0, 3, 1, 2)
    out = torch.empty_like(x)
    length = x.shape[axis]
    for residue, offset in enumerate(staircase(kernel)):
        step = max(-length, min(length, sign * offset))
        source, target = x[:, residue::kernel], out[:, residue::kernel]
        inside = length - abs(step)
        # out[p] = x[p + step]: from p = max(0, −step) on, `inside` positions
        target.narrow(axis, max(0, -step), inside).copy_(source.narrow(axis, max(0, step), inside))
        if step:
            target.narrow(axis, inside if step > 0 else 0, abs(step)).zero_()
    return out


def _shifted_copy(x: Tensor, kernel: int, axis: int) -> Tensor:
    """The shift without writes into views, which tracers lose."""
    channels, length = x.shape[1], x.shape[axis]
    x = F.pad(x, (0, 0, 0, 0, 0, -channels % kernel))  # as many channels of each residue
    shifted = []
    for residue, offset in enumerate(staircase(kernel)):
        # out[p] = x[p + offset]: pad the end that is read beyond, and begin behind what is not read
        before, after = max(0, -offset), max(0, offset)
        padded = F.pad(x[:, residue::kernel], (0, 0, before, after) if axis == _HEIGHT else (before, after))
        rows = slice(after, after + length)
        shifted.append(padded[:, :, rows] if axis == _HEIGHT else padded[:, :, :, rows])
    return torch.stack(shifted, 2).flatten(1, 2)[:, :channels]  # channel i · kernel + residue


class _Shift(torch.autograd.Function):
    """The shift; its gradient is the opposite shift, so nothing is saved."""

    @staticmethod
    def forward(x: Tensor, kernel: int, axis: int, sign: int) -> Tensor:
        return _shifted(x, kernel, axis, sign)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
        _, *ctx.options = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        kernel, axis, sign = ctx.options
        return _Shift.apply(grads[0], kernel, axis, -sign), None, None, None
