"""Norm, channel MLP, scale and shortcut in two products."""

from typing import Any

from torch import Tensor, nn

from metaformer.deploy.folded.norm import BareLayerNorm, kernel_options, take_apart
from metaformer.deploy.folded.product import folded
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.layers.act import SquaredReLU, StarReLU
from metaformer.layers.mlp import Mlp
from metaformer.ops import packed
from metaformer.ops.backend import triton_usable
from metaformer.ops.norm_mlp import norm_mlp
from metaformer.ops.pool_norm import normalized
from metaformer.ops.product import mlp

EPILOGUES = {nn.GELU: "gelu", nn.ReLU: "relu", SquaredReLU: "relu", StarReLU: "relu"}
"""Activation -> what the first product does of it."""


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
