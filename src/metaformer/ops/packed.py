"""A product's weight as the C++ kernels read it, for inference on CPUs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaformer.ops.native import library


@dataclass(frozen=True)
class Packed:
    """A weight (columns, depth) in panels, one after the other, and its bias (columns,) in float32."""

    weight: Tensor
    bias: Tensor
    columns: int
    depth: int


def pack(weight: Tensor, bias: Tensor | None) -> Packed:
    """Lay out a weight (columns, depth) of float32 or bfloat16, which is multiplied in pairs."""
    weight = weight.detach()
    columns, depth = weight.shape
    together = 1 if weight.dtype == torch.float32 else 2
    panel, lanes = library.panel(), library.lanes()
    whole = columns - columns % panel
    panels = (
        part.reshape(-1, width, depth // together, together).transpose(1, 2).flatten()
        for part, width in ((weight[:whole], panel), (weight[whole:], lanes))
    )
    zeros = torch.zeros(columns, dtype=torch.float32, device="cpu")
    wide = zeros if bias is None else bias.detach().float().contiguous()
    return Packed(torch.cat(list(panels)), wide, columns, depth)


def usable(weight: Tensor, *maps: Tensor) -> bool:
    """Say whether the kernels take maps (…, depth), or (…, columns), with a weight (columns, depth)."""
    return (
        library.usable(*maps)
        and weight.dtype == maps[0].dtype
        and multiplied(weight)
        and not (weight.requires_grad and torch.is_grad_enabled())
    )


def multiplied(weight: Tensor) -> bool:
    """Say whether the kernels take a weight (columns, depth)."""
    return library.multiplies(weight.dtype) and not any(size % library.lanes() for size in weight.shape)
