"""CycleMLP's mixing: products along width and height and plain, weighted, https://arxiv.org/abs/2107.10224.

The mean of a shifted map is the map's, less what the shift pushes over the border. So the branch weights,
which depend on the means of the products, can be had before the products; these are then summed as they are
made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.backend import triton_usable, without_autocast, working_dtype
from metaformer.ops.shift import shift_channels, staircase

_HEIGHT, _WIDTH = 2, 3


def cycle_mix(
    x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor, kernel: int
) -> Tensor:
    """Give the sum of three products of (B, C, H, W), each times its weight for the sample and channel.

    Args:
        x: the map; channels-last is fastest.
        w_width: weights (C, C), or (C, C, 1, 1), of the product that samples along the width.
        w_height: of the one along the height.
        w_plain: of the one that samples in place.
        weights: (B, 3, C), in this order.
        kernel: steps of the staircase, odd.
    """
    x = x.to(working_dtype(x))
    w_width, w_height, w_plain = (w.flatten(1).to(x.dtype).contiguous() for w in (w_width, w_height, w_plain))
    with without_autocast(x):
        if not triton_usable(x):
            return reference(x, w_width, w_height, w_plain, weights, kernel)
        result: Tensor = torch.ops.metaformer.cycle_mix(
            x, w_width, w_height, w_plain, weights.contiguous(), kernel
        )
        return result


def reference(
    x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor, kernel: int
) -> Tensor:
    """The same in plain PyTorch."""
    of_width, of_height, of_plain = weights.to(x.dtype)[:, :, :, None, None].unbind(1)  # each (B, C, 1, 1)
    total = F.conv2d(shift_channels(x, kernel, _WIDTH), w_width[:, :, None, None]) * of_width
    along = F.conv2d(shift_channels(x, kernel, _HEIGHT), w_height[:, :, None, None])
    total = torch.addcmul(total, along, of_height)
    return torch.addcmul(total, F.conv2d(x, w_plain[:, :, None, None]), of_plain)


def cycle_mean(x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, kernel: int) -> Tensor:
    """Give the mean over positions, (B, C), of the sum of the three products; none of them is made.

    The arguments are those of `cycle_mix`; sums are float32 or wider.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x):
        total = x.sum((2, 3), dtype=wide)
        mean = (
            F.linear(_shifted_sum(x, total, kernel, _WIDTH), w_width.flatten(1).to(wide))
            + F.linear(_shifted_sum(x, total, kernel, _HEIGHT), w_height.flatten(1).to(wide))
            + F.linear(total, w_plain.flatten(1).to(wide))
        ) / (x.shape[2] * x.shape[3])
    return mean.to(working_dtype(x))


def _shifted_sum(x: Tensor, total: Tensor, kernel: int, axis: int) -> Tensor:
    """Sums over positions (B, C) of the shifted map, from those of the map and of its borders."""
    length = x.shape[axis]
    sums = []
    for offset in staircase(kernel):
        gone = min(abs(offset), length)
        border = x.narrow(axis, 0 if offset > 0 else length - gone, gone)
        sums.append(total - border.sum((2, 3), dtype=total.dtype) if gone else total)
    kind = (torch.arange(x.shape[1], device=x.device) % kernel).expand(1, *total.shape)
    return torch.stack(sums).gather(0, kind)[0]
