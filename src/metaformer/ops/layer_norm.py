"""A norm over each token's channels: for inference on CPUs, where PyTorch's own waits for short rows."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.native import library


def layer_norm(
    tokens: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Give (…, C) mean 0 and variance 1 over C, times weight (C,), plus bias (C,); a bias has a weight."""
    channels = tokens.shape[-1]
    if not library.usable(tokens):
        return F.layer_norm(tokens, (channels,), weight, bias, eps)
    y = torch.empty_like(tokens)
    constants = (None if part is None else part.float().contiguous() for part in (weight, bias))
    library.call("layer_norm", tokens.dtype, tokens, *constants, y, tokens.numel() // channels, channels, eps)
    return y
