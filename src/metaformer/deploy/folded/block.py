"""A whole block for inference."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from metaformer.backbones.block import Block
from metaformer.deploy.folded.attention import FoldedAttention
from metaformer.deploy.folded.cycle_mlp import FoldedCycleMlp
from metaformer.deploy.folded.mixer import FoldedMixer
from metaformer.deploy.folded.mlp import FoldedMlp
from metaformer.deploy.folded.norm import BareGroupNorm
from metaformer.deploy.folded.pooling import FoldedPooling
from metaformer.deploy.folded.sepconv import FoldedSepConv
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.layers.mlp import Mlp
from metaformer.layers.scale import Scale
from metaformer.mixers.attention import Attention
from metaformer.mixers.cycle_mlp import CycleMLP
from metaformer.mixers.pooling import Pooling
from metaformer.mixers.sepconv import SepConv
from metaformer.ops import onednn
from metaformer.ops.backend import triton_usable

Fold = Callable[..., nn.Module]
"""Made from mixer, norm, the branch's scale and the shortcut."""

FOLDED: Final[dict[type[nn.Module], Fold]] = {
    Attention: FoldedAttention,
    CycleMLP: FoldedCycleMlp,
    Pooling: FoldedPooling,
    SepConv: FoldedSepConv,
}
"""Mixer -> its form here; others, and subclasses, stay as they are between norm and scale."""
AT_ONCE: Final = 1 << 23
"""Elements of the widest map that are worked on at once on a CPU: they bound the memory of a large batch."""


class FoldedBlock(nn.Module):
    """What `Block` computes in evaluation, (B, C, H, W) to the same shape."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        fold = FOLDED.get(type(block.token_mixer), FoldedMixer)
        shortcut = Shortcut(block.res_scale1, block.residual)
        scale = _branch_scale(block.layer_scale1, block)
        self.mixer = fold(block.token_mixer, block.norm1, scale, shortcut)
        self.mlp: FoldedMlp | None = None
        self.fresh = fold is not FoldedMixer  # a mixer that stays whole may give back the very map it got
        if isinstance(block.mlp, Mlp):
            shortcut = Shortcut(block.res_scale2, block.residual)
            self.mlp = FoldedMlp(block.norm2, block.mlp, _branch_scale(block.layer_scale2, block), shortcut)
        norms = [getattr(part, "norm", None) for part in (self.mixer, self.mlp)]
        self.norms_at_once = fold is FoldedPooling and all(isinstance(norm, BareGroupNorm) for norm in norms)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        if torch.compiler.is_compiling():  # a traced batch is no number to compare
            return self._mixed(tokens).permute(0, 3, 1, 2)
        batch, height, width, _ = tokens.shape
        if not batch:
            return x
        samples = max(1, AT_ONCE // max(1, height * width * self._width(tokens)))
        if samples >= batch or x.device.type != "cpu":
            return self._mixed(tokens).permute(0, 3, 1, 2)
        out = torch.empty_like(tokens)
        for first in range(0, batch, samples):
            out[first : first + samples] = self._mixed(tokens[first : first + samples])
        return out.permute(0, 3, 1, 2)

    def _width(self, tokens: Tensor) -> int:
        """Channels of the widest map."""
        parts = (part for part in (self.mixer, self.mlp) if isinstance(part, FoldedSepConv | FoldedMlp))
        return max([tokens.shape[-1], *(part.width(tokens) for part in parts)])

    def _mixed(self, tokens: Tensor) -> Tensor:
        """The same of tokens (B, H, W, C)."""
        if self.mlp is None:
            return self.mixer(tokens)
        if self.norms_at_once and not triton_usable(tokens) and onednn.usable(tokens):
            mixer: Any = self.mixer
            return self.mlp(*mixer.with_norm(tokens, self.mlp.norm.eps), overwrite=True)
        return self.mlp(self.mixer(tokens), overwrite=self.fresh)


def _branch_scale(scale: nn.Module, block: Block) -> Tensor | None:
    """LayerScale and the branch's divisor as one factor, per channel or for all."""
    factor = scale.scale.detach() if isinstance(scale, Scale) else None
    if block.skip_lam == 1.0:
        return factor
    return (torch.ones(1) if factor is None else factor) / block.skip_lam
