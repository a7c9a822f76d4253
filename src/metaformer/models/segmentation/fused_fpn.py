"""Neck and head of Semantic FPN multiplied out, for inference.

Between a level's lateral convolution, the pyramid's output convolution and the head's first one lie only
sums. So what a map adds to its level is one 5×5 convolution of it, and what the coarser levels add is one 5×5
convolution of a doubled map, that is smaller ones of the map itself, as a position is doubled to four places
that see much the same. With few channels in the map that takes far fewer multiply-adds; it rounds otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.models.fpn import FeaturePyramid
from metaformer.models.segmentation.layers import Classifier, ConvNorm
from metaformer.models.segmentation.semantic_fpn import SemanticFPNHead

Kernel = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""
PLAIN = (
    *(FeaturePyramid, SemanticFPNHead, ConvNorm, Classifier),
    *(nn.ModuleList, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Dropout2d),
)
"""Classes that are multiplied out; a subclass, or one changed by a hook, may do something else."""
WORTHWHILE = 64 * 64
"""Positions of the finest maps of a batch from which what is saved outweighs comparing the weights."""


@dataclass(frozen=True)
class _Level:
    """The three convolutions of a level as two, and what is too much at the map's border."""

    own: Kernel
    """5×5, on the backbone's map."""
    doubled: tuple[Tensor, ...]
    """3×3, 2×3, 3×2 and 2×2, on the coarser level and its differences."""
    lateral: Kernel
    output: Kernel
    first: Tensor
    """The head's first convolution, its norm multiplied in."""


class FusedSemanticFPN:
    """What `head.features(neck(maps))` gives in evaluation, for maps that `fits` lets in."""

    def __init__(self, neck: FeaturePyramid, head: SemanticFPNHead) -> None:
        self._copies = [tensor.clone() for tensor in _tensors(neck, head)]
        self.laterals = [_kernel(conv) for conv in neck.laterals]
        self.outputs = [_kernel(conv) for conv in neck.outputs]
        self.scales = [[_normed(conv) for conv in convs.children()] for convs in head.scales]
        self.levels = [self._multiplied_out(i) for i in range(len(self.laterals))]

    def current(self, neck: FeaturePyramid, head: SemanticFPNHead) -> bool:
        """Tell whether the weights are still those that were multiplied out; it takes a millisecond or two.

        PyTorch's counters of changes would be quicker to read, but its fused optimizers do not count.
        """
        now = _tensors(neck, head)
        return len(now) == len(self._copies) and all(map(torch.equal, self._copies, now))

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the backbone's maps to the sum over the levels, (B, dim, H_0, W_0)."""
        coarser: Tensor | None = None
        sums: list[Tensor | None] = [None, None]  # at the finest level's size, and at half of it
        for i in reversed(range(len(maps))):
            x = maps[i].contiguous(memory_format=torch.channels_last)
            level = self.levels[i]
            merged = None
            if level is None or i:
                merged = _conv(x, self.laterals[i])
                if coarser is not None:
                    merged = merged + F.interpolate(coarser, merged.shape[2:], mode="nearest")
            if level is None or coarser is None:
                assert merged is not None
                x = _conv(_conv(merged, self.outputs[i]), self.scales[i][0])
            else:
                x = _composed(x, coarser, level)
            coarser = merged
            x = self._head(x.relu_(), self.scales[i][1:])
            total = sums[min(i, 1)]
            sums[min(i, 1)] = x if total is None else total + x
        finest, half = sums
        assert finest is not None
        return finest if half is None else finest + _doubled(half)

    def _head(self, x: Tensor, convs: Sequence[Kernel]) -> Tensor:
        """The rest of a level's part of the head, but for its last doubling."""
        for kernel in convs:
            x = _conv(_doubled(x), kernel).relu_()
        return x

    def _multiplied_out(self, i: int) -> _Level | None:
        """A level's convolutions as one, where that saves work."""
        (lateral, _), (output, bias), (first, shift) = self.laterals[i], self.outputs[i], self.scales[i][0]
        middle, dim = output.shape[0], first.shape[0]
        if i + 1 == len(self.laterals) or 25 * lateral.shape[1] * dim >= 9 * middle * middle:
            return None
        both = F.conv_transpose2d(first.double(), output.double())  # one kernel after the other
        own = torch.einsum("omhw,mc->ochw", both, lateral.double()[:, :, 0, 0])
        constant = shift.double() + torch.einsum("omhw,m->o", first.double(), bias.double())
        return _Level(
            (_laid_out(own, first), constant.to(first.dtype)),
            tuple(_laid_out(kernel, first) for kernel in _on_doubled(both)),
            self.laterals[i],
            self.outputs[i],
            first,
        )


def fits(neck: nn.Module | None, head: nn.Module, maps: Sequence[Tensor]) -> bool:
    """Tell whether maps may take this way: on a CPU, in full precision, without gradients or hooks.

    Sizes must halve exactly from level to level, and each level of the head double accordingly.
    """
    first = maps[0]
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if type(neck) is not FeaturePyramid or type(head) is not SemanticFPNHead:
        return False
    if first.shape[0] * first.shape[2] * first.shape[3] < WORTHWHILE:
        return False
    height, width = first.shape[2:]
    for i, level in enumerate(maps):
        if level.shape[2] << i != height or level.shape[3] << i != width or head.doublings[i] != i:
            return False
    return all(_plain(module) for part in (neck, head) for module in part.modules())


def _plain(module: nn.Module) -> bool:
    """Tell whether a module does what its class says, and nobody looks on."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module.training
    return (
        type(module) in PLAIN
        and not hooked
        and all(type(value) is nn.Parameter for value in module._parameters.values() if value is not None)
    )


def _tensors(neck: nn.Module, head: SemanticFPNHead) -> list[Tensor]:
    """All that is multiplied out: everything but the classifier."""
    parts = (neck, head.scales)
    return [tensor.detach() for part in parts for tensor in (*part.parameters(), *part.buffers())]


def _conv(x: Tensor, kernel: Kernel) -> Tensor:
    return F.conv2d(x, *kernel, padding=kernel[0].shape[-1] // 2)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _kernel(conv: nn.Module) -> Kernel:
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    return _laid_out(conv.weight, conv.weight), conv.bias.detach()


def _normed(part: nn.Module) -> Kernel:
    """A convolution with the norm behind it multiplied in."""
    assert isinstance(part, ConvNorm)
    weight, norm = part.conv.weight, part.norm
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * factor
    return _laid_out(weight.double() * factor[:, None, None, None], weight), shift.to(weight.dtype)


def _laid_out(weight: Tensor, like: Tensor) -> Tensor:
    return weight.detach().to(like.dtype).contiguous(memory_format=torch.channels_last)


def _on_doubled(weight: Tensor) -> tuple[Tensor, ...]:
    """5×5 kernels for a doubled map as four smaller ones: for the map, and for its differences.

    Along one axis the right of two places sees the map by (a, b + c, d + e); the left one differs from it by
    (b, d) of the differences between neighbors. So 5 × 5 products do where 3 × 3 for four places are 36.
    """

    def right(weight: Tensor, dim: int) -> Tensor:
        a, b, c, d, e = weight.unbind(dim)
        return torch.stack((a, b + c, d + e), dim)

    def less(weight: Tensor, dim: int) -> Tensor:
        _, b, _, d, _ = weight.unbind(dim)
        return torch.stack((b, d), dim)

    rows, differing = right(weight, 2), less(weight, 2)
    return right(rows, 3), right(differing, 3), less(rows, 3), less(differing, 3)


def _composed(x: Tensor, coarser: Tensor, level: _Level) -> Tensor:
    """The first convolution's output at a level, from the backbone's map and the coarser level."""
    coarser = coarser + level.lateral[1][:, None, None]  # what a doubled map adds is as constant as a bias
    out = _conv(x, level.own).permute(0, 2, 3, 1).contiguous()
    batch, height, width, dim = out.shape
    quarters = out.view(batch, height // 2, 2, width // 2, 2, dim)
    base, upper, left, both = (part.permute(0, 2, 3, 1) for part in _places(coarser, level.doubled))
    quarters[:, :, 1, :, 1] += base
    quarters[:, :, 0, :, 1] += base + upper
    base = base + left
    quarters[:, :, 1, :, 0] += base
    quarters[:, :, 0, :, 0] += base.add_(upper).add_(both)
    out = out.permute(0, 3, 1, 2)
    _mend_border(out, x, coarser, level)
    return out


def _places(x: Tensor, kernels: Sequence[Tensor]) -> Iterator[Tensor]:
    """What the lower right of the four places gets, and what the others get more: above, left, and both."""
    rows = _differences(x, 2)
    sights = (x, (1, 1)), (rows, (0, 1)), (_differences(x, 3), (1, 0)), (_differences(rows, 3), (0, 0))
    for (seen, padding), kernel in zip(sights, kernels, strict=True):
        yield F.conv2d(seen, kernel, padding=padding)


def _differences(x: Tensor, dim: int) -> Tensor:
    """What each position lacks of the one before it, one position more than there are; outside is zero."""
    padded = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0))
    return padded.narrow(dim, 0, x.shape[dim] + 1) - padded.narrow(dim, 1, x.shape[dim] + 1)


def _mend_border(out: Tensor, x: Tensor, coarser: Tensor, level: _Level) -> None:
    """Take away what the pyramid's output would be just outside the map, where its padding is zero."""
    (weight, bias), first = level.output, level.first

    def merged(x: Tensor, coarser: Tensor, dim: int) -> Tensor:
        return F.conv2d(x, level.lateral[0]) + coarser.repeat_interleave(2, dim)

    for here, there, back in (
        (slice(0, 1), slice(2, 3), slice(0, 1)),
        (slice(-1, None), slice(0, 1), slice(2, 3)),
    ):
        row = merged(x[:, :, here], coarser[:, :, here], 3)
        outside = F.conv2d(row, weight[:, :, there], bias, padding=(0, 2))
        out[:, :, here] -= F.conv2d(outside, first[:, :, back])
        column = merged(x[..., here], coarser[..., here], 2)
        outside = F.conv2d(column, weight[..., there], bias, padding=(1, 0))
        out[..., here] -= F.conv2d(outside, first[..., back], padding=(1, 0))
