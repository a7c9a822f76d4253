"""Token mixers with their norm, scale and residual folded in, (B, H, W, C) to the same shape."""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.conv import fold_conv
from metaformer.deploy.folded.linear import (
    ChannelsLastNorm,
    PackedLinear,
    PlainGroupNorm,
    Residual,
    WeightCache,
    fold_linear,
    norm_options,
    split_affine,
)
from metaformer.layers.act import StarReLU
from metaformer.layers.cycle_fc import AXES, CycleFC
from metaformer.layers.norm import NoNorm
from metaformer.mixers.attention import Attention
from metaformer.mixers.cycle_mlp import CycleMLP
from metaformer.mixers.gated_dwconv import GatedDepthwiseConv
from metaformer.mixers.pooling import Pooling
from metaformer.mixers.rep_mixer import RepMixer
from metaformer.mixers.sepconv import SepConv
from metaformer.ops import cpp, triton
from metaformer.ops.attention import attention
from metaformer.ops.cycle import MAX_KERNEL, cycle_means, cycle_mix, cycle_softmax, staircase
from metaformer.ops.linear import linear
from metaformer.ops.pool import pool_residual


class FoldedMixer(nn.Module):
    """residual + scale · mixer(norm(x)) with the mixer as it is, for mixers without a folded form."""

    def __init__(self, mixer: nn.Module, norm: nn.Module, scale: Tensor | None, residual: Residual) -> None:
        super().__init__()
        self.norm, self.mixer, self.residual = ChannelsLastNorm(norm), mixer, residual
        self.scale = None if scale is None else nn.Parameter(scale.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.mixer(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return _scale_and_add(branch, self.scale, self.residual(x))


class FoldedConvMixer(FoldedMixer):
    """The same of a mixer whose parts are convolutions, which are folded in place."""

    def __init__(self, mixer: nn.Module, norm: nn.Module, scale: Tensor | None, residual: Residual) -> None:
        super().__init__(fold_parts(mixer), norm, scale, residual)


def fold_parts(mixer: nn.Module) -> nn.Module:
    """The mixer with folded forms in the places of its parts, which are convolutions."""
    for name, conv in list(mixer.named_children()):
        setattr(mixer, name, fold_conv(cast(nn.Conv2d, conv)))
    return mixer


class FoldedAttention(nn.Module):
    """Self-attention: the norm's constants are in `qkv`, scale and residual in `proj`."""

    def __init__(self, mixer: Attention, norm: nn.Module, scale: Tensor | None, residual: Residual) -> None:
        super().__init__()
        self.norm, gain, shift = split_affine(norm)
        self.residual, self.heads, self.head_dim = residual, mixer.heads, mixer.head_dim
        self.qkv = fold_linear(mixer.qkv.weight, mixer.qkv.bias, gain=gain, shift=shift)
        self.proj = fold_linear(mixer.proj.weight, mixer.proj.bias, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        qkv = self.qkv.after(self.norm, x).view(batch, height * width, 3, self.heads, self.head_dim)
        return self.residual.add_to(self.proj, attention(qkv).view(batch, height, width, -1), x)


class FoldedPooling(WeightCache):
    """residual + γ·s·(pool(n) - n): average pooling preserves constants, so the norm's bias cancels out."""

    def __init__(self, mixer: Pooling, norm: nn.Module, scale: Tensor | None, residual: Residual) -> None:
        super().__init__()
        self.norm, gain, _ = split_affine(norm)
        self.residual, self.size = residual, mixer.size
        factor = gain if scale is None else scale if gain is None else gain * scale
        self.scale = None if factor is None else nn.Parameter(factor.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None and isinstance(self.norm, PlainGroupNorm) and triton.supports(x):
            factor = self.residual.factor
            weight = self.scale.expand(x.shape[-1])
            scale = 0.0 if factor is None else factor
            return pool_residual(x, weight, scale, size=self.size, eps=self.norm.eps)[0]
        n = self.norm(x)
        pooled = F.avg_pool2d(n.permute(0, 3, 1, 2), self.size, 1, self.size // 2, count_include_pad=False)
        return _scale_and_add(pooled.permute(0, 2, 3, 1) - n, self.scale, self.residual(x))

    def forward_with_moments(self, x: Tensor, next_eps: float) -> tuple[Tensor, Tensor | None]:
        """What `forward` gives, and its moments (B, 2) for the next group norm; the own norm is one too."""
        weight, residual_scale = self.get("factors", lambda: self._factors(x.shape[-1]))
        eps: Any = self.norm.eps
        return pool_residual(x, weight, residual_scale, size=self.size, eps=eps, next_eps=next_eps)

    def _factors(self, dim: int) -> tuple[Tensor, Tensor]:
        """The branch's and the residual's factors, (C,) in float32."""
        branch = torch.ones(1) if self.scale is None else self.scale.float()
        factor = self.residual.factor
        residual = factor.float() if isinstance(factor, Tensor) else torch.tensor([factor or 0.0])
        return branch.expand(dim).contiguous(), residual.expand(dim).contiguous()


class FoldedSepConv(nn.Module):
    """Separable convolution: two linear layers around the depthwise convolution, which applies StarReLU.

    StarReLU's bias cannot move on into the second layer: the convolution pads with zeros after it.
    """

    def __init__(self, mixer: SepConv, norm: nn.Module, scale: Tensor | None, residual: Residual) -> None:
        super().__init__()
        self.norm, gain, shift = split_affine(norm)
        self.residual = residual
        self.pwconv1 = fold_linear(mixer.pwconv1.weight, mixer.pwconv1.bias, gain=gain, shift=shift)
        self.act1 = act = mixer.act1
        self.star = (float(act.scale), float(act.bias)) if isinstance(act, StarReLU) else None
        self.dwconv = fold_conv(mixer.dwconv)
        self.pwconv2 = fold_linear(mixer.pwconv2.weight, mixer.pwconv2.bias, scale=scale)

    @property
    def width(self) -> int:
        """Channels of the widest tensor."""
        return self.pwconv2.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        options = norm_options(self.norm)
        act = self.act1
        if options is not None and isinstance(act, StarReLU) and triton.supports(x):
            return self._triton(x, options, act)
        h = self.pwconv1.after(self.norm, x)
        h = h if self.star else act(h)
        h = self.dwconv(h.permute(0, 3, 1, 2), self.star).permute(0, 2, 3, 1)
        return self.residual.add_to(self.pwconv2, h, x)

    def _triton(self, x: Tensor, options: dict[str, Any], act: StarReLU) -> Tensor:
        first, second = self.pwconv1, self.pwconv2
        star: dict[str, Any] = {"act_scale": act.scale, "act_bias": act.bias}
        h = linear(x, first.weight, first.bias, **options, act="star_relu", **star)
        h = self.dwconv(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return linear(h, second.weight, second.bias, **self.residual.options(x))


class FoldedRepMixer(nn.Module):
    """One depthwise convolution: a RepMixer's branches with their batch norms, and the scale.

    Without a norm before it the residual is in it too. A norm stays whole: the convolution pads with zeros
    after the norm's bias.
    """

    def __init__(self, mixer: RepMixer, norm: nn.Module, scale: Tensor | None, residual: Residual) -> None:
        super().__init__()
        self.norm, conv = ChannelsLastNorm(norm), copy.deepcopy(mixer.conv)
        self.residual: Residual | None = residual
        identity = F.pad(torch.ones_like(mixer.point.weight).double(), (conv.kernel_size[0] // 2,) * 4)
        weight, bias = torch.zeros_like(identity), torch.zeros(len(identity)).to(identity)
        for taps, branch_norm, sign in (
            (identity, mixer.skip_norm, 1),
            (identity * mixer.point.weight, mixer.point_norm, 1),
            (mixer.conv.weight, mixer.conv_norm, 1),
            (identity, mixer.norm, -1),
        ):
            _, gain, shift = split_affine(branch_norm)
            assert gain is not None and shift is not None  # of a batch norm
            weight += sign * gain[:, None, None, None] * taps
            bias += sign * shift
        if scale is not None:
            weight, bias = weight * scale.expand(len(bias))[:, None, None, None], bias * scale
        if type(norm) is NoNorm and residual.enabled:
            factor = torch.ones_like(bias) if residual.scale is None else residual.scale
            weight, self.residual = weight + factor[:, None, None, None] * identity, None
        dtype = conv.weight.dtype
        conv.weight, conv.bias = (nn.Parameter(t.detach().to(dtype), False) for t in (weight, bias))
        self.conv = fold_conv(conv)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return branch if self.residual is None else _scale_and_add(branch, None, self.residual(x))


class FoldedGatedConv(nn.Module):
    """Gated depthwise convolution: the norm's constants are in `fc1`, scale and residual in `fc2`.

    `fc1` is a layer of the gates, with their activation in its epilogue, and one of the values.
    """

    def __init__(
        self, mixer: GatedDepthwiseConv, norm: nn.Module, scale: Tensor | None, residual: Residual
    ) -> None:
        super().__init__()
        self.norm, gain, shift = split_affine(norm)
        self.residual, self.parts = residual, mixer.parts[1:]
        act, bias = mixer.act, mixer.fc1.bias
        self.act = None if type(act) is nn.GELU and act.approximate == "none" else act
        weights, biases = mixer.fc1.weight.chunk(2), (None, None) if bias is None else bias.chunk(2)
        self.gates, self.values = (
            fold_linear(*layer, gain=gain, shift=shift) for layer in zip(weights, biases, strict=True)
        )
        self.conv = fold_conv(mixer.conv)
        self.fc2 = fold_linear(mixer.fc2.weight, mixer.fc2.bias, scale=scale)

    @property
    def width(self) -> int:
        """Channels of the widest tensor."""
        return self.values.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates.after(self.norm, x, "gelu" if self.act is None else "none")
        gates = gates if self.act is None else self.act(gates)
        rest, convolved = self.values.after(self.norm, x).split(self.parts, -1)
        convolved = self.conv(convolved.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.residual.add_to(self.fc2, gates * torch.cat((rest, convolved), -1), x)


class FoldedCycleMlp(nn.Module):
    """CycleMLP: the linear layers of two shifted copies and of the input, their weighted sum, a projection.

    The branches' weights depend on the mean of their outputs, which is the linear layer of the inputs' means.
    The norm stays whole: the shifts bring zeros in at the border after its bias.
    """

    def __init__(self, mixer: CycleMLP, norm: nn.Module, scale: Tensor | None, residual: Residual) -> None:
        super().__init__()
        self.norm, self.residual = ChannelsLastNorm(norm), residual
        self.shifts = nn.ModuleList(Shift(layer) for layer in (mixer.sfc_h, mixer.sfc_w))
        self.kernel = mixer.sfc_h.staircase
        layers = (mixer.sfc_h, mixer.sfc_w, mixer.mlp_c)
        self.branches = nn.ModuleList(fold_linear(layer.weight, layer.bias) for layer in layers)
        biases = [layer.bias.detach() for layer in layers if isinstance(layer.bias, Tensor)]
        bias = torch.stack(biases).sum(0) if biases else None
        self.mean_of_branches = fold_linear(torch.cat([layer.weight.flatten(1) for layer in layers], 1), bias)
        self.reweight1 = fold_linear(mixer.reweight.fc1.weight, mixer.reweight.fc1.bias)
        self.reweight2 = fold_linear(mixer.reweight.fc2.weight, mixer.reweight.fc2.bias)
        act = mixer.reweight.act
        self.act = None if type(act) is nn.GELU and act.approximate == "none" else act
        self.proj = fold_linear(mixer.proj.weight, mixer.proj.bias, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        if triton.supports(n):
            return self._triton(n, x)
        if self.kernel <= MAX_KERNEL and cpp.supports(n, x, weight=self.proj.weight):
            return self._cpp(n, x)
        inputs = (*(shift(n) for shift in self.shifts), n)
        means = torch.stack([each.mean((1, 2)) for each in inputs], 1)  # (B, 3, C)
        weights = self._logits(self.mean_of_branches(means.flatten(1))).softmax(-1)[:, None, None]
        outputs = (branch(each) for branch, each in zip(self.branches, inputs, strict=True))
        y = sum(output * weights[..., i] for i, output in enumerate(outputs))
        return self.residual.add_to(self.proj, y, x)

    def _cpp(self, n: Tensor, x: Tensor) -> Tensor:
        branches, proj = [layer.packed for layer in self._layers], self.proj.packed
        residual = self.residual.options(x, float32=True)
        return cycle_mix(n, branches, self._branch_weights(n), proj, self.kernel, **residual)

    def _triton(self, n: Tensor, x: Tensor) -> Tensor:
        branches = [(layer.weight, layer.bias) for layer in self._layers]
        proj = self.proj.weight, self.proj.bias
        residual = self.residual.options(x)
        return cycle_mix(n, branches, self._branch_weights(n), proj, self.kernel, **residual)

    def _branch_weights(self, n: Tensor) -> Tensor:
        """What each branch counts for each sample and channel, (B, 3, C)."""
        means = cycle_means(n, self.kernel).flatten(1)
        return cycle_softmax(self._logits(self.mean_of_branches(means)))

    @property
    def _layers(self) -> list[PackedLinear]:
        return [layer for layer in self.branches if isinstance(layer, PackedLinear)]

    def _logits(self, mean: Tensor) -> Tensor:
        """The branches' logits (B, C, 3) from the mean (B, C) of their sum."""
        h = self.reweight1(mean, "gelu") if self.act is None else self.act(self.reweight1(mean))
        return self.reweight2(h).view(len(mean), -1, 3)


class Shift(nn.Module):
    """The staircase shift as a depthwise convolution with one tap of 1 per channel.

    oneDNN takes half the time of strided copies of every third channel: it reads whole cache lines.
    """

    weight: Tensor

    def __init__(self, layer: CycleFC) -> None:
        super().__init__()
        kernel, dim = layer.staircase, layer.in_channels
        taps = torch.tensor(staircase(kernel))[torch.arange(dim) % kernel] + kernel // 2
        vertical = AXES[layer.axis] == 2
        self.padding = (kernel // 2, 0) if vertical else (0, kernel // 2)
        one_hot = F.one_hot(taps, kernel).to(layer.weight.dtype)
        weight = one_hot.reshape(dim, 1, *((kernel, 1) if vertical else (1, kernel)))
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2)
        return F.conv2d(image, self.weight, padding=self.padding, groups=len(self.weight)).permute(0, 2, 3, 1)


def _scale_and_add(branch: Tensor, scale: Tensor | None, residual: Tensor | None) -> Tensor:
    if residual is None:
        return branch if scale is None else branch * scale
    return residual + branch if scale is None else torch.addcmul(residual, branch, scale)
