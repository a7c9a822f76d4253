"""A channel MLP's two passes in C++ in float32: for training on CPUs."""

import torch
from torch import Tensor

from metaformer.ops import packed
from metaformer.ops.native import library
from metaformer.ops.packed import Packed
from metaformer.ops.product import ACTS, mlp


def usable(weight: Tensor) -> bool:
    """Say whether the kernels take the first weight (M, C)."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and packed.multiplied(weight)


def forward(
    n: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: str,
    past: Tensor | None,
    out: Tensor,
    before: Tensor | None,
) -> None:
    """Write w2 · act(w1 · n + b1) + b2 + past of tokens (N, C) to `out` (N, C); there are no gaps in either.

    w1 · n + b1 is written to `before` (N, M), if that is there.
    """
    mlp(n, _pack(w1, b1), _pack(w2, b2), act=act, past=past, out=out, before=before)


def backward(
    n: Tensor,
    given: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    act: str,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for n (N, C), w1 (M, C), b1 (M,) and w2 (C, M), by that of the result (N, C).

    Where `before` was not kept it is made again.
    """
    w1, w2 = w1.contiguous(), w2.contiguous()
    of_n, of_w1, of_b1, of_w2 = (torch.empty_like(like) for like in (n, w1, w1[:, 0], w2))
    maps = n, given, w1, b1, w2, before, of_n, of_w1, of_b1, of_w2
    library.call("mlp_backward", n.dtype, *maps, len(n), w1.shape[1], w1.shape[0], ACTS[act])
    return of_n, of_w1, of_b1, of_w2


def _pack(weight: Tensor, bias: Tensor | None) -> Packed:
    columns, depth = weight.shape
    out = weight.new_empty(columns * depth)
    library.call("mlp_pack", weight.dtype, weight.contiguous(), out, columns, depth)
    return Packed(out, weight.new_zeros(columns) if bias is None else bias.contiguous(), columns, depth)
