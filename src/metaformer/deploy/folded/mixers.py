"""Any mixer with its norm, scale and shortcut; the form of those that have none of their own."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.conv import folded_conv
from metaformer.deploy.folded.linear import (
    BareGroupNorm,
    Prepared,
    Product,
    Shortcut,
    TokenNorm,
    folded,
    kernel_options,
    take_apart,
)
from metaformer.layers.act import StarReLU
from metaformer.layers.cycle_fc import AXES, CycleFC
from metaformer.mixers.attention import Attention
from metaformer.mixers.cycle_mlp import CycleMLP
from metaformer.mixers.pooling import Pooling
from metaformer.mixers.sepconv import SepConv
from metaformer.ops import packed
from metaformer.ops.attention import attention
from metaformer.ops.backend import triton_usable
from metaformer.ops.cycle_mix import cycle_mean, cycle_mix
from metaformer.ops.cycle_product import FARTHEST, cycle_means, cycle_product, cycle_shares
from metaformer.ops.pointwise_act import pointwise_act
from metaformer.ops.pointwise_residual import pointwise_residual
from metaformer.ops.pool_norm import pool_norm
from metaformer.ops.pool_residual import pool_residual
from metaformer.ops.shift import staircase


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


class FoldedAttention(nn.Module):
    """The norm's constants are in the first product, scale and shortcut in the second."""

    def __init__(self, mixer: Attention, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, gain, shift = take_apart(norm)
        self.shortcut, self.heads, self.head_dim = shortcut, mixer.heads, mixer.head_dim
        self.qkv = folded(mixer.qkv.weight, mixer.qkv.bias, gain=gain, shift=shift)
        self.proj = folded(mixer.proj.weight, mixer.proj.bias, scale=scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        batch, height, width, _ = tokens.shape
        qkv = self.qkv.after(self.norm, tokens).view(batch, height * width, 3, self.heads, self.head_dim)
        return self.shortcut.joined(self.proj, attention(qkv).view(batch, height, width, -1), tokens)


class FoldedCycleMlp(nn.Module):
    """Shifted maps, three products, their weighted sum, and one product more.

    The mean of a product is the product of the mean, which is what the shares are made of. The norm stays
    whole: zeros come in at the border after its bias.
    """

    def __init__(self, mixer: CycleMLP, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, self.shortcut = TokenNorm(norm), shortcut
        self.shifts = nn.ModuleList(Shift(layer) for layer in (mixer.sfc_h, mixer.sfc_w))
        self.kernel = mixer.sfc_h.staircase
        layers = (mixer.sfc_h, mixer.sfc_w, mixer.mlp_c)
        self.products = nn.ModuleList(folded(layer.weight, layer.bias) for layer in layers)
        self.of_means = folded(
            torch.cat([layer.weight.flatten(1) for layer in layers], 1), _sum_of_biases(layers)
        )
        self.reweight1 = folded(mixer.reweight.fc1.weight, mixer.reweight.fc1.bias)
        self.reweight2 = folded(mixer.reweight.fc2.weight, mixer.reweight.fc2.bias)
        act = mixer.reweight.act
        self.act = None if type(act) is nn.GELU and act.approximate == "none" else act
        self.proj = folded(mixer.proj.weight, mixer.proj.bias, scale=scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        n = self.norm(tokens)
        if triton_usable(n):
            return self._by_kernels(n.permute(0, 3, 1, 2), tokens)
        if self.kernel <= FARTHEST and packed.usable(self.proj.weight, n, tokens):
            return self._by_products(n, tokens)
        maps = (*(shift(n) for shift in self.shifts), n)
        means = torch.stack([map_.mean((1, 2)) for map_ in maps], 1)
        share = self._logits(self.of_means(means.flatten(1))).softmax(-1)[:, None, None]
        parts = (product(map_) for product, map_ in zip(self.products, maps, strict=True))
        y = sum(part * share[..., i] for i, part in enumerate(parts))
        return self.shortcut.joined(self.proj, y, tokens)

    def _by_products(self, n: Tensor, tokens: Tensor) -> Tensor:
        means = cycle_means(n, self.kernel).flatten(1)
        share = cycle_shares(self._logits(self.of_means(means)))
        of_width, of_height, plain = (layer.packed for layer in self._layers)
        branches = of_width, of_height, plain
        past, keep = (tokens, self.shortcut.keep) if self.shortcut.residual else (None, None)
        return cycle_product(n, branches, share, self.proj.packed, self.kernel, past, keep)

    @property
    def _layers(self) -> list[Product]:
        return [layer for layer in self.products if isinstance(layer, Product)]

    def _by_kernels(self, x: Tensor, tokens: Tensor) -> Tensor:
        w_width, w_height, w_plain = (layer.weight for layer in self._layers)
        zero = torch.zeros_like(w_plain[:, 0])
        biases = torch.stack([zero if layer.bias is None else layer.bias for layer in self._layers])  # (3, C)
        mean = cycle_mean(x, w_width, w_height, w_plain, self.kernel) + biases.sum(0)
        share = self._logits(mean).softmax(-1).movedim(-1, 1)  # (B, 3, C)
        y = cycle_mix(x, w_width, w_height, w_plain, share, self.kernel).permute(0, 2, 3, 1)
        y = y + (share * biases).sum(1)[:, None, None]
        return self.proj(y, plus=self.shortcut(tokens))

    def _logits(self, mean: Tensor) -> Tensor:
        """What says how much each branch counts, (B, C, 3), by the mean (B, C) of their sum."""
        h = self.reweight1(mean, "gelu") if self.act is None else self.act(self.reweight1(mean))
        return self.reweight2(h).view(len(mean), -1, 3)


def _sum_of_biases(layers: Iterable[nn.Module]) -> Tensor | None:
    biases = [layer.bias.detach() for layer in layers if isinstance(layer.bias, Tensor)]
    return torch.stack(biases).sum(0) if biases else None


class FoldedPooling(Prepared):
    """shortcut + γ·s·(pool(n) − n): pooling keeps constants, so the norm's bias cancels out."""

    def __init__(self, mixer: Pooling, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, gain, _ = take_apart(norm)
        self.shortcut, self.size = shortcut, mixer.size
        factor = gain if scale is None else scale if gain is None else gain * scale
        self.scale = None if factor is None else nn.Parameter(factor.clone(), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        if self.scale is not None and isinstance(self.norm, BareGroupNorm) and triton_usable(tokens):
            factor = self.shortcut.factor
            weight = self.scale.expand(tokens.shape[-1])
            y = pool_residual(
                tokens.permute(0, 3, 1, 2),
                weight,
                self.size,
                self.norm.eps,
                0.0 if factor is None else factor,
            )
            return y.permute(0, 2, 3, 1)
        n = self.norm(tokens)
        pooled = F.avg_pool2d(n.permute(0, 3, 1, 2), self.size, 1, self.size // 2, count_include_pad=False)
        branch = pooled.permute(0, 2, 3, 1) - n
        past = self.shortcut(tokens)
        if past is None:
            return branch if self.scale is None else branch * self.scale
        return past + branch if self.scale is None else torch.addcmul(past, branch, self.scale)

    def with_norm(self, tokens: Tensor, next_eps: float) -> tuple[Tensor, Tensor]:
        """Give what `forward` gives, and that normalized over each sample; the own norm is of one group."""
        weight, past = self.kept("constants", lambda: self._constants(tokens.shape[-1]))
        eps: Any = self.norm.eps
        return pool_norm(tokens, weight, past, self.size, eps, next_eps)

    def _constants(self, dim: int) -> tuple[Tensor, Tensor]:
        """The branch's and the shortcut's factors, (C,) in float32."""
        branch = torch.ones(1) if self.scale is None else self.scale.float()
        past = self.shortcut.factor
        past = past.float() if isinstance(past, Tensor) else torch.tensor([past or 0.0])
        return branch.expand(dim).contiguous(), past.expand(dim).contiguous()


class FoldedSepConv(nn.Module):
    """Two products around the convolution of each channel, which StarReLU happens in.

    Its bias cannot move on into the second product: the convolution pads with zeros after it.
    """

    def __init__(self, mixer: SepConv, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, gain, shift = take_apart(norm)
        self.shortcut = shortcut
        self.pwconv1 = folded(mixer.pwconv1.weight, mixer.pwconv1.bias, gain=gain, shift=shift)
        self.act1 = act = mixer.act1
        self.star = (float(act.scale), float(act.bias)) if isinstance(act, StarReLU) else None
        self.dwconv = folded_conv(mixer.dwconv)
        self.pwconv2 = folded(mixer.pwconv2.weight, mixer.pwconv2.bias, scale=scale)

    def width(self, tokens: Tensor) -> int:
        """Channels of the widest map."""
        return self.pwconv2.weight.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        options = kernel_options(self.norm)
        act = self.act1
        if options is not None and isinstance(act, StarReLU) and triton_usable(tokens):
            return self._by_kernels(tokens.permute(0, 3, 1, 2), options, act).permute(0, 2, 3, 1)
        h = self.pwconv1.after(self.norm, tokens)
        h = h if self.star else act(h)
        h = self.dwconv(h.permute(0, 3, 1, 2), self.star).permute(0, 2, 3, 1)
        return self.shortcut.joined(self.pwconv2, h, tokens)

    def _by_kernels(self, x: Tensor, options: dict[str, Any], act: StarReLU) -> Tensor:
        first, second = self.pwconv1, self.pwconv2
        star: dict[str, Any] = {"act_scale": act.scale, "act_bias": act.bias}
        h = pointwise_act(x, first.weight, first.bias, **options, act="star_relu", **star)
        factor = self.shortcut.factor
        return pointwise_residual(self.dwconv(h), second.weight, second.bias, x, shortcut=factor)


class Shift(nn.Module):
    """What `shift_channels` does, as a convolution of each channel with a one and zeros.

    Half the time of copies that take every third channel: it reads and writes whole cache lines.
    """

    weight: Tensor

    def __init__(self, layer: CycleFC) -> None:
        super().__init__()
        kernel, dim = layer.staircase, layer.in_channels
        taps = torch.tensor(staircase(kernel))[torch.arange(dim) % kernel] + kernel // 2
        along_height = AXES[layer.axis] == 2
        shape, self.padding = (
            ((kernel, 1), (kernel // 2, 0)) if along_height else ((1, kernel), (0, kernel // 2))
        )
        weight = F.one_hot(taps, kernel).to(layer.weight.dtype).reshape(dim, 1, *shape)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shift (B, H, W, C)."""
        maps = tokens.permute(0, 3, 1, 2)
        return F.conv2d(maps, self.weight, padding=self.padding, groups=len(self.weight)).permute(0, 2, 3, 1)
