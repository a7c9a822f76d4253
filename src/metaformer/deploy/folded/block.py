"""Blocks for inference: token mixer and channel MLP, each with its norm, scale and residual folded in."""

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from metaformer.backbones.block import Block, MetaFormerBlock, MetaNeXtBlock
from metaformer.deploy.folded.linear import (
    PlainGroupNorm,
    PlainLayerNorm,
    Residual,
    fold_linear,
    norm_options,
    split_affine,
)
from metaformer.deploy.folded.mixers import (
    FoldedAttention,
    FoldedConvMixer,
    FoldedCycleMlp,
    FoldedGatedConv,
    FoldedMixer,
    FoldedPooling,
    FoldedRepMixer,
    FoldedSepConv,
    fold_parts,
)
from metaformer.deploy.folded.replay import has_hooks
from metaformer.layers.act import ACTS, SquaredReLU, StarReLU
from metaformer.layers.cycle_fc import CycleFC
from metaformer.layers.drop_path import DropPath
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.pointwise import Pointwise
from metaformer.layers.scale import Scale
from metaformer.mixers.attention import Attention
from metaformer.mixers.conv import Conv
from metaformer.mixers.cycle_mlp import CycleMLP
from metaformer.mixers.dwconv import DepthwiseConv
from metaformer.mixers.gated_dwconv import GatedDepthwiseConv
from metaformer.mixers.inception_dwconv import InceptionDepthwiseConv
from metaformer.mixers.pooling import Pooling
from metaformer.mixers.rep_mixer import RepMixer
from metaformer.mixers.sepconv import SepConv
from metaformer.ops import cpp, onednn, triton
from metaformer.ops.mlp import mlp
from metaformer.ops.norm import normalize

Fold = Callable[..., nn.Module]
"""From mixer, norm, the branch's scale and the residual to the folded mixer."""
FOLDED: Final[dict[type[nn.Module], Fold]] = {
    Attention: FoldedAttention,
    Conv: FoldedConvMixer,
    CycleMLP: FoldedCycleMlp,
    DepthwiseConv: FoldedConvMixer,
    GatedDepthwiseConv: FoldedGatedConv,
    InceptionDepthwiseConv: FoldedConvMixer,
    Pooling: FoldedPooling,
    RepMixer: FoldedRepMixer,
    SepConv: FoldedSepConv,
}
"""Mixer -> its folded form; other mixers, and subclasses of these, run as they are between norm and scale."""
FOLDABLE: Final[dict[str, tuple[type[nn.Module], ...]]] = {
    **dict.fromkeys(("mlp", "reweight"), (Mlp,)),
    **dict.fromkeys(("fc1", "fc2", "qkv", "proj", "pwconv1", "pwconv2", "mlp_c"), (Pointwise,)),
    **dict.fromkeys(("sfc_h", "sfc_w"), (CycleFC,)),
    **dict.fromkeys(
        (f"{kind}_scale{number}" for kind in ("layer", "res") for number in ("", 1, 2)), (Scale, nn.Identity)
    ),
    **dict.fromkeys(("conv", "dwconv", "dwconv_hw", "dwconv_w", "dwconv_h", "point"), (nn.Conv2d,)),
}
"""Name of a block's part -> the classes that are folded there; a subclass may compute something else."""
EPILOGUES: Final = {nn.GELU: "gelu", nn.ReLU: "relu", SquaredReLU: "relu", StarReLU: "relu"}
"""Activation -> the part of it that the first linear layer computes in its epilogue."""
CHUNK_ELEMENTS: Final = 1 << 23
"""Largest size of a block's widest tensor on a CPU; larger batches run in chunks, to bound memory."""


def unknown_part(block: Block) -> tuple[str, nn.Module] | None:
    """Name and module of the first part of a block that would be folded and is not one of this library's.

    Such as a LoRA layer in a linear layer's place, a parametrized or pruned one, a subclass, or one with
    hooks. None where the whole block is known. A mixer without a folded form is not looked into.
    """
    norms_and_acts = {registry[name] for registry in (NORMS, ACTS) for name in registry}
    others = (*FOLDED, *norms_and_acts, DropPath, nn.Dropout)
    for name, part in block.named_children():
        if name == "token_mixer" and type(part) not in FOLDED:
            continue
        for path, module in part.named_modules(prefix=name):
            if type(module) not in FOLDABLE.get(path.rpartition(".")[2], others) or has_hooks(module):
                return path, module
    return None


class FoldedMlp(nn.Module):
    """Channel MLP: the norm's constants are in `fc1`, StarReLU's constants and the scale in `fc2`."""

    def __init__(self, norm: nn.Module, mlp: Mlp, scale: Tensor | None, residual: Residual) -> None:
        super().__init__()
        self.norm, gain, shift = split_affine(norm)
        self.residual = residual
        self.fc1 = fold_linear(mlp.fc1.weight, mlp.fc1.bias, gain=gain, shift=shift)
        act = mlp.act
        self.epilogue = EPILOGUES.get(type(act), "none")
        if getattr(act, "approximate", "none") != "none":
            self.epilogue = "none"
        self.square = isinstance(act, SquaredReLU | StarReLU)
        self.fused_act = "squared_relu" if self.square else self.epilogue
        self.act = act if self.epilogue == "none" else None
        star: dict[str, Tensor] = {}
        if isinstance(act, StarReLU):
            hidden = mlp.fc2.in_channels
            star = {"gain": act.scale.detach().expand(hidden), "shift": act.bias.detach().expand(hidden)}
        self.fc2 = fold_linear(mlp.fc2.weight, mlp.fc2.bias, scale=scale, **star)

    def forward(
        self,
        x: Tensor,
        moments: Tensor | None = None,
        overwrite: bool = False,
        shortcut: Tensor | None = None,
    ) -> Tensor:
        """Map (B, H, W, C) to the same shape.

        Args:
            x: the input.
            moments: each sample's mean and reciprocal deviation (B, 2), where known.
            overwrite: the result may overwrite x.
            shortcut: what the residual connection adds, (B, H, W, C); x by default.
        """
        shortcut = x if shortcut is None else shortcut
        options = norm_options(self.norm)
        if options is not None and self.act is None and triton.supports(x):
            weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            adds = shortcut is x  # the kernel has no other residual
            options |= self.residual.options(x) if adds else {}
            y = mlp(x, *weights, **options, act=self.fused_act)
            residual = None if adds else self.residual(shortcut)
            return y if residual is None else y + residual
        if self._runs_fused(x, shortcut):
            return self._fused(x, moments, overwrite, shortcut)
        h = self.fc1(self.norm(x) if moments is None else normalize(x, moments), self.epilogue)
        if self.act is not None:
            h = self.act(h)
        elif self.square:
            h = h.square()
        return self.residual.add_to(self.fc2, h, shortcut)

    def width(self, x: Tensor) -> int:
        """Channels of the widest tensor that is written to memory."""
        return self.fc1.weight.shape[1 if self._runs_fused(x, x) else 0]

    def _runs_fused(self, x: Tensor, shortcut: Tensor) -> bool:
        return self.act is None and cpp.supports(x, shortcut, weight=self.fc1.weight)

    def _fused(self, x: Tensor, moments: Tensor | None, overwrite: bool, shortcut: Tensor) -> Tensor:
        """Both layers in one C++ kernel, the hidden tensor in the cache."""
        norm: dict[str, Any] = {}
        n = x
        if moments is not None:
            norm = {"moments": moments}
        elif isinstance(self.norm, PlainLayerNorm):
            norm = {"norm": "layer_norm", "eps": self.norm.eps}
        else:
            n = self.norm(x)
        options = {**norm, **self.residual.options(shortcut, float32=True), "act": self.fused_act}
        out = x if overwrite else None
        return mlp(n, self.fc1.packed, None, self.fc2.packed, None, **options, out=out)


class FoldedBlock(nn.Module):
    """A `Block` in evaluation, (B, C, H, W) to the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        if torch.compiler.is_compiling():  # a traced batch size is no number to compare
            return self._forward(x).permute(0, 3, 1, 2)
        batch, height, width, _ = x.shape
        if not batch:
            return x.permute(0, 3, 1, 2)
        chunk = max(1, CHUNK_ELEMENTS // max(1, height * width * self._width(x)))
        if chunk >= batch or x.device.type != "cpu":
            return self._forward(x).permute(0, 3, 1, 2)
        out = torch.empty_like(x)
        for start in range(0, batch, chunk):
            out[start : start + chunk] = self._forward(x[start : start + chunk])
        return out.permute(0, 3, 1, 2)

    def _forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        raise NotImplementedError

    def _width(self, x: Tensor) -> int:
        """Channels of the widest tensor."""
        raise NotImplementedError


class FoldedMetaFormerBlock(FoldedBlock):
    """A `MetaFormerBlock` in evaluation."""

    def __init__(self, block: MetaFormerBlock) -> None:
        super().__init__()
        fold = FOLDED.get(type(block.token_mixer), FoldedMixer)
        residual = Residual(block.res_scale1, block.residual)
        self.mixer = fold(block.token_mixer, block.norm1, _scale(block.layer_scale1, block), residual)
        self.mlp: FoldedMlp | None = None
        if isinstance(block.mlp, Mlp):
            residual = Residual(block.res_scale2, block.residual)
            self.mlp = FoldedMlp(block.norm2, block.mlp, _scale(block.layer_scale2, block), residual)
        # a mixer without a folded form may return its input, which must not be overwritten
        self.may_overwrite = fold is not FoldedMixer
        norms = [getattr(part, "norm", None) for part in (self.mixer, self.mlp)]
        self.shares_moments = fold is FoldedPooling and all(isinstance(n, PlainGroupNorm) for n in norms)

    def _forward(self, x: Tensor) -> Tensor:
        if self.mlp is None:
            return self.mixer(x)
        if self.shares_moments and not triton.supports(x) and onednn.supports(x):
            mixer: Any = self.mixer
            return self.mlp(*mixer.forward_with_moments(x, self.mlp.norm.eps), overwrite=True)
        return self.mlp(self.mixer(x), overwrite=self.may_overwrite)

    def _width(self, x: Tensor) -> int:
        mixer = self.mixer.width if isinstance(self.mixer, FoldedSepConv | FoldedGatedConv) else 0
        return max(x.shape[-1], mixer, 0 if self.mlp is None else self.mlp.width(x))


class FoldedMetaNeXtBlock(FoldedBlock):
    """A `MetaNeXtBlock` in evaluation."""

    def __init__(self, block: MetaNeXtBlock) -> None:
        super().__init__()
        # of another mixer's result nothing is known: it may be the input, which must not be overwritten
        self.may_overwrite = FOLDED.get(type(block.token_mixer)) is FoldedConvMixer
        self.mixer = fold_parts(block.token_mixer) if self.may_overwrite else block.token_mixer
        scale, residual = _scale(block.layer_scale, block), Residual(block.res_scale, block.residual)
        self.mlp = FoldedMlp(block.norm, cast(Mlp, block.mlp), scale, residual)

    def _forward(self, x: Tensor) -> Tensor:
        mixed = self.mixer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.mlp(mixed, overwrite=self.may_overwrite, shortcut=x)

    def _width(self, x: Tensor) -> int:
        return max(x.shape[-1], self.mlp.width(x))


def fold_block(block: Block) -> FoldedBlock:
    """The inference form of a block in which `unknown_part` finds none."""
    if isinstance(block, MetaNeXtBlock):
        return FoldedMetaNeXtBlock(block)
    assert isinstance(block, MetaFormerBlock)
    return FoldedMetaFormerBlock(block)


def _scale(layer_scale: nn.Module, block: Block) -> Tensor | None:
    """LayerScale divided by the block's `skip_lam`, per channel or one for all; None where it is 1."""
    scale = layer_scale.scale.detach() if isinstance(layer_scale, Scale) else None
    if block.skip_lam == 1.0:
        return scale
    return (torch.ones(1) if scale is None else scale) / block.skip_lam
