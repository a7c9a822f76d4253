"""A whole block for inference."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from metaformer.backbones.block import Block
from metaformer.deploy.folded.linear import (
    BareGroupNorm,
    BareLayerNorm,
    Shortcut,
    folded,
    kernel_options,
    take_apart,
)
from metaformer.deploy.folded.mixers import (
    FoldedAttention,
    FoldedCycleMlp,
    FoldedMixer,
    FoldedPooling,
    FoldedSepConv,
)
from metaformer.layers.act import SquaredReLU, StarReLU
from metaformer.layers.mlp import Mlp
from metaformer.layers.scale import Scale
from metaformer.mixers.attention import Attention
from metaformer.mixers.cycle_mlp import CycleMLP
from metaformer.mixers.pooling import Pooling
from metaformer.mixers.sepconv import SepConv
from metaformer.ops import onednn, packed
from metaformer.ops.backend import triton_usable
from metaformer.ops.norm_mlp import norm_mlp
from metaformer.ops.pool_norm import normalized
from metaformer.ops.product import mlp

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


EPILOGUES = {nn.GELU: "gelu", nn.ReLU: "relu", SquaredReLU: "relu", StarReLU: "relu"}
"""Activation -> what the first product does of it."""


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


class FoldedMlp(nn.Module):
    """The norm's constants are in the first product of an `Mlp`, StarReLU's and the scale in the second."""

    def __init__(self, norm: nn.Module, mlp: Mlp, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, gain, shift = take_apart(norm)
        self.shortcut = shortcut
        self.fc1 = folded(mlp.fc1.weight, mlp.fc1.bias, gain=gain, shift=shift)
        act = mlp.act
        self.epilogue = EPILOGUES.get(type(act), "none")
        if getattr(act, "approximate", "none") != "none":
            self.epilogue = "none"
        self.square = isinstance(act, SquaredReLU | StarReLU)
        self.whole_act = "squared_relu" if self.square else self.epilogue
        self.act = act if self.epilogue == "none" else None
        star: dict[str, Tensor] = {}
        if isinstance(act, StarReLU):  # its factor and bias are the second product's
            hidden = mlp.fc2.in_channels
            star = {"gain": act.scale.detach().expand(hidden), "shift": act.bias.detach().expand(hidden)}
        self.fc2 = folded(mlp.fc2.weight, mlp.fc2.bias, scale=scale, **star)

    def width(self, tokens: Tensor) -> int:
        """Channels of the widest map that is written."""
        return self.fc1.weight.shape[1 if self._in_one_piece(tokens) else 0]

    def _in_one_piece(self, tokens: Tensor) -> bool:
        return self.act is None and packed.usable(self.fc1.weight, tokens)

    def forward(self, tokens: Tensor, moments: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """Map (B, H, W, C) to the same shape.

        Args:
            tokens: the map.
            moments: each sample's mean and one over its deviation (B, 2), where these are known.
            overwrite: the result may take the place of the tokens.
        """
        options = kernel_options(self.norm)
        if options is not None and self.act is None and triton_usable(tokens):
            weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            x, factor = tokens.permute(0, 3, 1, 2), self.shortcut.factor
            return norm_mlp(x, *weights, **options, act=self.whole_act, shortcut=factor).permute(0, 2, 3, 1)
        if self._in_one_piece(tokens):
            return self._in_one(tokens, moments, overwrite)
        h = self.fc1(self.norm(tokens) if moments is None else normalized(tokens, moments), self.epilogue)
        if self.act is not None:
            h = self.act(h)
        elif self.square:
            h = h.square()
        return self.shortcut.joined(self.fc2, h, tokens)

    def _in_one(self, tokens: Tensor, moments: Tensor | None, overwrite: bool) -> Tensor:
        norm: dict[str, Any] = {}
        x = tokens
        if moments is not None:
            norm = {"moments": moments}
        elif isinstance(self.norm, BareLayerNorm):
            norm = {"norm": "layer_norm", "eps": self.norm.eps}
        else:
            x = self.norm(tokens)
        past, keep = (tokens, self.shortcut.keep) if self.shortcut.residual else (None, None)
        out = tokens if overwrite else None
        return mlp(
            x, self.fc1.packed, self.fc2.packed, **norm, act=self.whole_act, past=past, keep=keep, out=out
        )
