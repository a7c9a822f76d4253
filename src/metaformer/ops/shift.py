"""Staircase shift of channels: what CycleFC does before its product, https://arxiv.org/abs/2107.10224."""

from typing import Any

import torch
from torch import Tensor


def staircase(kernel: int) -> list[int]:
    """The offsets that channels 0 … kernel−1 sample at; further channels repeat them.

    The stairs start at the center, 0, +1, …, as in the original code (the paper's figure starts at the left).
    """
    return [(i + kernel // 2) % kernel - kernel // 2 for i in range(kernel)]


def shift_channels(x: Tensor, kernel: int, axis: int) -> Tensor:
    """Shift channel c of (B, C, H, W) by `staircase(kernel)[c % kernel]` along `axis` (2: height, 3: width).

    Position p of the result is position p + offset of the input, or zero beyond the border.
    """
    return _Shift.apply(x, kernel, axis, 1)


def _shifted(x: Tensor, kernel: int, axis: int, sign: int) -> Tensor:
    """One strided copy per residue class of channels."""
    out = torch.empty_like(x)
    length = x.shape[axis]
    for residue, offset in enumerate(staircase(kernel)):
        step = max(-length, min(length, sign * offset))
        source, target = x[:, residue::kernel], out[:, residue::kernel]
        keep = length - abs(step)
        target.narrow(axis, max(0, -step), keep).copy_(source.narrow(axis, max(0, step), keep))
        if step:
            target.narrow(axis, keep if step > 0 else 0, abs(step)).zero_()
    return out


class _Shift(torch.autograd.Function):
    """The shift; its gradient is the opposite shift, so nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, axis: int, sign: int) -> Tensor:
        ctx.how = (kernel, axis, sign)
        return _shifted(x, kernel, axis, sign)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        kernel, axis, sign = ctx.how
        return _Shift.apply(grads[0], kernel, axis, -sign), None, None, None
