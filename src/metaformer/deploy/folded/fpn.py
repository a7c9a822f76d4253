"""Semantic FPN's pyramid and head with their convolutions composed.

Between a level's 1×1 lateral convolution, the pyramid's 3×3 output convolution and the head's first 3×3
convolution lie only sums. So the backbone's features add one 5×5 convolution of themselves, and the coarser
levels one 5×5 convolution of an upsampled tensor, which equals smaller convolutions before upsampling: the
2×2 positions that repeat one pixel see nearly the same neighborhood. With few channels this halves the
multiply-adds; it rounds differently.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.conv import can_fold_norm, fold_conv_norm
from metaformer.deploy.folded.linear import WeightCache
from metaformer.deploy.folded.replay import has_hooks
from metaformer.models.fpn import FeaturePyramid
from metaformer.models.segmentation.layers import Classifier, ConvNorm
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.models.segmentation.semantic_fpn import SemanticFPNHead

Kernel = tuple[Tensor, Tensor]
"""Weight and bias of a convolution that keeps the size."""
FOLDABLE = (
    *(FeaturePyramid, SemanticFPNHead, ConvNorm, Classifier),
    *(nn.ModuleList, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Dropout2d),
)
"""Layers whose arithmetic is known; a subclass may compute something else."""
MIN_POSITIONS = 64 * 64
"""Positions of the finest level, over the batch, from which the composed form is faster."""


@dataclass(frozen=True)
class _Level:
    lateral: Kernel
    output: Kernel
    convs: list[Kernel]
    """The head's."""
    composed: Kernel | None
    """Lateral, output and first head convolution in one, 5×5; None where that saves no work."""
    coarser: tuple[Tensor, ...]
    """3×3, 2×3, 3×2 and 2×2 kernels for the coarser level and its differences."""


class FoldedSemanticFPN(WeightCache):
    """Backbone features to logits: Semantic FPN's head after its neck, in evaluation.

    The composed form runs on a CPU in float32 or float64, without gradients, where every level is exactly
    half the finer one; elsewhere, and while a layer has hooks, the layers run one by one.
    """

    def __init__(self, neck: FeaturePyramid, head: SemanticFPNHead) -> None:
        super().__init__()
        self.neck, self.head = neck, head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        if not self._supports(features):
            return self.head(self.neck(features))
        return self.head.classifier(self._features(features, self.get("levels", self._levels)))

    def _supports(self, features: Sequence[Tensor]) -> bool:
        finest = features[0]
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        if finest.device.type != "cpu" or finest.dtype not in (torch.float32, torch.float64):
            return False
        batch, _, height, width = finest.shape
        halved = all(
            x.shape[2] << i == height and x.shape[3] << i == width and self.head.doublings[i] == i
            for i, x in enumerate(features)
        )
        return halved and batch * height * width >= MIN_POSITIONS and not any(map(has_hooks, self.modules()))

    def _levels(self) -> list[_Level]:
        levels: list[_Level] = []  # coarsest first
        for lateral, output, convs in zip(
            map(_kernel, reversed(self.neck.laterals)),
            map(_kernel, reversed(self.neck.outputs)),
            ([_kernel(conv) for conv in convs.children()] for convs in reversed(self.head.scales)),
            strict=True,
        ):
            composed = _compose(lateral, output, convs[0]) if levels else (None, ())
            levels.append(_Level(lateral, output, convs, *composed))
        return levels[::-1]

    def _features(self, features: Sequence[Tensor], levels: Sequence[_Level]) -> Tensor:
        """The head's sum over the levels, (B, dim, H_0, W_0)."""
        coarser: Tensor | None = None
        sums: list[Tensor | None] = [None, None]  # at the finest level's size, and at half of it
        for i in reversed(range(len(levels))):
            x, level = features[i].contiguous(memory_format=torch.channels_last), levels[i]
            merged = None
            if level.composed is None or i:
                merged = _conv(x, level.lateral)
                if coarser is not None:
                    merged = merged + F.interpolate(coarser, merged.shape[2:], mode="nearest")
            if level.composed is None or coarser is None:
                assert merged is not None
                x = _conv(_conv(merged, level.output), level.convs[0])
            else:
                x = _convolve_composed(x, coarser, level)
            coarser = merged
            x = x.relu_()
            for kernel in level.convs[1:]:
                x = _conv(_upsample(x), kernel).relu_()
            total = sums[min(i, 1)]
            sums[min(i, 1)] = x if total is None else total + x
        finest, half = sums
        assert finest is not None
        return finest if half is None else finest + _upsample(half)


def fold_semantic_fpn(segmenter: Segmenter) -> None:
    """Put a `FoldedSemanticFPN` in place of a segmenter's neck and head, where these are plain."""
    neck, head = segmenter.neck, segmenter.head
    if type(neck) is FeaturePyramid and type(head) is SemanticFPNHead:
        modules = (*neck.modules(), *head.modules())
        known = all(type(module) in FOLDABLE and not has_hooks(module) for module in modules)
        if known and all(can_fold_norm(conv) for convs in head.scales for conv in cast(nn.ModuleList, convs)):
            head.scales = nn.ModuleList(
                nn.ModuleList(fold_conv_norm(cast(ConvNorm, conv)) for conv in convs.children())
                for convs in head.scales
            )
            segmenter.neck, segmenter.head = None, FoldedSemanticFPN(neck, head)


def _kernel(conv: Any) -> Kernel:
    return _channels_last(conv.weight, conv.weight.dtype), conv.bias.detach()


def _channels_last(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)


def _compose(lateral: Kernel, output: Kernel, first: Kernel) -> tuple[Kernel | None, tuple[Tensor, ...]]:
    """A `_Level`'s composed kernels, computed in float64."""
    channels, middle, dim = lateral[0].shape[1], output[0].shape[0], first[0].shape[0]
    if 25 * channels * dim >= 9 * middle * middle:
        return None, ()
    dtype = first[0].dtype
    both = F.conv_transpose2d(first[0].double(), output[0].double())  # (dim, middle, 5, 5)
    own = torch.einsum("omhw,mc->ochw", both, lateral[0].double()[:, :, 0, 0])
    bias = first[1].double() + torch.einsum("omhw,m->o", first[0].double(), output[1].double())
    coarser = tuple(_channels_last(weight, dtype) for weight in _before_upsampling(both))
    return (_channels_last(own, dtype), bias.to(dtype)), coarser


def _before_upsampling(weight: Tensor) -> tuple[Tensor, ...]:
    """A 5×5 kernel for a nearest-upsampled tensor as four smaller ones, for the tensor and its differences.

    Along an axis, the two positions that repeat pixel j see, by the five taps a … e,

        right: a·x[j-1] + (b + c)·x[j] + (d + e)·x[j+1]
        left:  the same + b·(x[j-1] - x[j]) + d·(x[j] - x[j+1])

    so that 5×5 products per pixel do where four positions of 3×3 are 36.
    """

    def right(weight: Tensor, dim: int) -> Tensor:
        a, b, c, d, e = weight.unbind(dim)
        return torch.stack((a, b + c, d + e), dim)

    def left_minus_right(weight: Tensor, dim: int) -> Tensor:
        _, b, _, d, _ = weight.unbind(dim)
        return torch.stack((b, d), dim)

    lower, upper = right(weight, 2), left_minus_right(weight, 2)
    return right(lower, 3), right(upper, 3), left_minus_right(lower, 3), left_minus_right(upper, 3)


def _convolve_composed(x: Tensor, coarser: Tensor, level: _Level) -> Tensor:
    """The head's first convolution at a level, from backbone features (B, C, H, W) and the coarser level."""
    coarser = coarser + level.lateral[1][:, None, None]  # this level's bias is constant too
    assert level.composed is not None
    out = _conv(x, level.composed).permute(0, 2, 3, 1).contiguous()
    batch, height, width, dim = out.shape
    quarters = out.view(batch, height // 2, 2, width // 2, 2, dim)  # [:, :, row, :, column] of each 2×2
    lower_right, upper, left, both = (part.permute(0, 2, 3, 1) for part in _quarters(coarser, level.coarser))
    quarters[:, :, 1, :, 1] += lower_right
    quarters[:, :, 0, :, 1] += lower_right + upper
    lower_left = lower_right + left
    quarters[:, :, 1, :, 0] += lower_left
    quarters[:, :, 0, :, 0] += lower_left.add_(upper).add_(both)
    out = out.permute(0, 3, 1, 2)
    _correct_border(out, x, coarser, level)
    return out


def _quarters(x: Tensor, kernels: Sequence[Tensor]) -> Iterator[Tensor]:
    """What the lower right of each 2×2 positions gets, and what upper, left and upper left ones get more."""
    rows = _differences(x, 2)
    inputs = (x, (1, 1)), (rows, (0, 1)), (_differences(x, 3), (1, 0)), (_differences(rows, 3), (0, 0))
    for (values, padding), kernel in zip(inputs, kernels, strict=True):
        yield F.conv2d(values, kernel, padding=padding)


def _differences(x: Tensor, dim: int) -> Tensor:
    """Each position's predecessor minus itself, one position more than there are; outside is zero."""
    padded = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0))
    return padded.narrow(dim, 0, x.shape[dim] + 1) - padded.narrow(dim, 1, x.shape[dim] + 1)


def _correct_border(out: Tensor, x: Tensor, coarser: Tensor, level: _Level) -> None:
    """Subtract what the pyramid's output would be one position outside, where the head pads with zeros.

    The outermost rows and columns of `out` include it: a composed kernel has no padding between its parts.
    """
    (weight, bias), first = level.output, level.convs[0][0]

    def merged(x: Tensor, coarser: Tensor, dim: int) -> Tensor:
        return F.conv2d(x, level.lateral[0]) + coarser.repeat_interleave(2, dim)

    # (outermost line, the output kernel's tap that reads it from outside, the head's tap that reads outside);
    # rows take the corners
    for line, tap, back in (
        (slice(0, 1), slice(2, 3), slice(0, 1)),
        (slice(-1, None), slice(0, 1), slice(2, 3)),
    ):
        row = merged(x[:, :, line], coarser[:, :, line], 3)
        outside = F.conv2d(row, weight[:, :, tap], bias, padding=(0, 2))
        out[:, :, line] -= F.conv2d(outside, first[:, :, back])
        column = merged(x[..., line], coarser[..., line], 2)
        outside = F.conv2d(column, weight[..., tap], bias, padding=(1, 0))
        out[..., line] -= F.conv2d(outside, first[..., back], padding=(1, 0))


def _conv(x: Tensor, kernel: Kernel) -> Tensor:
    return F.conv2d(x, *kernel, padding=kernel[0].shape[-1] // 2)


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
