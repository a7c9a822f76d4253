"""Any mixer with its norm, scale and shortcut; the form of those that have none of their own."""

import torch
from torch import Tensor, nn

from metaformer.deploy.folded.norm import TokenNorm
from metaformer.deploy.folded.shortcut import Shortcut


class FoldedMixer(nn.Module):
    """shortcut + scale · mixer(norm(x)), the mixer as it is."""

    def __init__(self, mixer: nn.Module, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, self.mixer, self.shortcut = TokenNorm(norm), mixer, shortcut
        self.scale = None if scale is None else nn.Parameter(scale.clone(), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        branch = self.mixer(self.norm(tokens).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        past = self.shortcut(tokens)
        if past is None:
            return branch if self.scale is None else branch * self.scale
        return past + branch if self.scale is None else torch.addcmul(past, branch, self.scale)
