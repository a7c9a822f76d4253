"""Convolutions with batch norm and ReLU folded in, their weights packed for oneDNN and the C++ kernels."""

from functools import partial
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from metaformer.deploy.folded.linear import WeightCache
from metaformer.deploy.folded.replay import has_hooks
from metaformer.models.segmentation.layers import ConvNorm
from metaformer.ops import conv as ops
from metaformer.ops import cpp, onednn
from metaformer.ops.depthwise_conv import Star, depthwise_conv, pack, star_relu, supports_weight
from metaformer.ops.norm import needs_gradient


class FoldedConv(WeightCache):
    """Convolution that packs its weight for an input shape when that shape comes again.

    Args:
        conv: the convolution.
        relu: a ReLU follows it.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias, self.relu = conv.weight, conv.bias, relu
        padding = [int(side) for side in conv.padding]
        self.geometry: onednn.Geometry = list(conv.stride), padding, list(conv.dilation), conv.groups

    def forward(self, x: Tensor, star: Star | None = None) -> Tensor:
        """Map (B, in, H, W) to (B, out, h, w), through a StarReLU first where one is given."""
        x = x if star is None else star_relu(x, star)
        packed = None
        if onednn.supports(x) and self.weight.device == x.device:
            make = partial(onednn.pack_convolution, self.weight, x.shape, self.geometry)
            packed = self.get_repeated(x.shape, make) if x.numel() else None
        if packed is not None:
            return onednn.convolution(x, packed, self.bias, self.geometry, "relu" if self.relu else "none")
        stride, padding, dilation, groups = self.geometry
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        return F.relu(y, inplace=True) if self.relu else y


class FoldedPatchConv(FoldedConv):
    """Strided convolution, a product of patches where C++ kernels run."""

    def forward(self, x: Tensor, star: Star | None = None) -> Tensor:
        """Map (B, in, H, W) to (B, out, h, w), through a StarReLU first where one is given."""
        tokens = x.permute(0, 2, 3, 1)
        if star is not None or not self._runs_in_cpp(tokens):
            return super().forward(x, star)
        stride, padding, _, _ = self.geometry
        packed = self.get("patches", lambda: ops.pack(self.weight, self.bias))
        return ops.conv(tokens, packed, self.weight.shape[-1], stride[0], padding[0]).permute(0, 3, 1, 2)

    def _runs_in_cpp(self, tokens: Tensor) -> bool:
        _, height, width, channels = tokens.shape
        _, in_channels, kernel, _ = self.weight.shape
        return (
            cpp.supports(tokens)
            and cpp.has_linear(tokens.dtype)
            and (self.weight.dtype, self.weight.device) == (tokens.dtype, tokens.device)
            and channels == in_channels
            and min(height, width) + 2 * self.geometry[1][0] >= kernel
            and not needs_gradient(self.weight, self.bias)
        )


class FoldedDepthwise(WeightCache):
    """Depthwise convolution that keeps the size."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor, star: Star | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape, through a StarReLU first where one is given."""
        packed = self.get("weight", lambda: pack(self.weight))
        y = depthwise_conv(x.permute(0, 2, 3, 1), self.weight, self.bias, star, packed)
        return y.permute(0, 3, 1, 2)


def fold_conv(conv: nn.Conv2d) -> FoldedConv | FoldedDepthwise:
    """The inference form of a convolution that `can_fold` accepts."""
    side = conv.kernel_size[0]
    same = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding == (side // 2, side // 2)
    per_channel = conv.groups == conv.in_channels == conv.out_channels
    if same and per_channel and supports_weight(conv.weight):
        return FoldedDepthwise(conv)
    square = all(len(set(sides)) == 1 for sides in (conv.kernel_size, conv.stride, conv.padding))
    if square and conv.stride[0] > 1 and conv.dilation == (1, 1) and conv.groups == 1:
        return FoldedPatchConv(conv)
    return FoldedConv(conv)


def fold_conv_norm(part: ConvNorm) -> FoldedConv:
    """The inference form of a `ConvNorm` that `can_fold_norm` accepts, folded in float64."""
    conv, norm = part.conv, part.norm
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - norm.running_mean.double() * gain
    folded, dtype = FoldedConv(conv, relu=True), conv.weight.dtype
    weight = conv.weight.double() * gain[:, None, None, None]
    folded.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    folded.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
    return folded


def can_fold_norm(module: nn.Module) -> TypeGuard[ConvNorm]:
    """Whether a module is a `ConvNorm` as this library makes it, or with its batch norm synchronized."""
    return (
        type(module) is ConvNorm
        and can_fold(module.conv)
        and module.conv.bias is None
        and type(module.norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and module.norm.affine
        and module.norm.running_var is not None
        and not any(map(has_hooks, (module, module.norm)))
    )


def can_fold_relu(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a module is a convolution that `can_fold` accepts, and a ReLU."""
    return (
        type(module) is nn.Sequential
        and [type(part) for part in module] == [nn.Conv2d, nn.ReLU]
        and can_fold(module[0])
        and not any(map(has_hooks, (module, module[1])))
    )


def can_fold(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a plain convolution with numeric zero padding."""
    return (
        isinstance(module, nn.Conv2d)
        and not is_parametrized(module)
        and not has_hooks(module)
        and module.padding_mode == "zeros"
        and module.padding not in ("same", "valid")
    )
