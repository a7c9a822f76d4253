"""CycleMLP's three products with their norm, scale and shortcut."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from metaformer.deploy.folded.norm import TokenNorm
from metaformer.deploy.folded.product import Product, folded
from metaformer.deploy.folded.shift import Shift
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.mixers.cycle_mlp import CycleMLP
from metaformer.ops import packed
from metaformer.ops.backend import triton_usable
from metaformer.ops.cycle_mix import cycle_mean, cycle_mix
from metaformer.ops.cycle_product import FARTHEST, cycle_means, cycle_product, cycle_shares


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
