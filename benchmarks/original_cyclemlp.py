"""CycleMLP in the form in which it was published, https://arxiv.org/abs/2107.10224, to measure ours against.

It takes a model's weights and none of its code: no rewrite of the library makes the yardstick longer.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.backbones.metaformer import MetaFormer
from metaformer.errors import ConfigError
from metaformer.layers.cycle_fc import CycleFC
from metaformer.mixers.cycle_mlp import CycleMLP
from metaformer.ops.cycle import staircase

Form = Callable[[CycleFC], nn.Module]


class Padded(nn.Module):
    """A CycleFC by padding, one slice for each step of the staircase, and a 1×1 product: plain PyTorch."""

    def __init__(self, layer: CycleFC) -> None:
        super().__init__()
        self.steps = staircase(layer.staircase)
        kernel, self.margin = layer.staircase, layer.staircase // 2
        self.axis = 3 if layer.axis == "width" else 2
        self.border = [self.margin] * 2 if layer.axis == "width" else [0, 0, self.margin, self.margin]
        order = torch.cat([torch.arange(start, layer.in_channels, kernel) for start in range(kernel)])
        self.weight = nn.Parameter(layer.weight.detach()[:, order].clone())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        length, kernel = x.shape[self.axis], len(self.steps)
        x = F.pad(x, self.border)
        parts = [
            x[:, start::kernel].narrow(self.axis, self.margin + step, length)
            for start, step in enumerate(self.steps)
        ]
        return F.conv2d(torch.cat(parts, 1), self.weight, self.bias)


class Deformable(nn.Module):
    """A CycleFC by deformable convolution, as the authors wrote it."""

    offset: Tensor

    def __init__(self, layer: CycleFC) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        steps = torch.tensor(staircase(layer.staircase))[torch.arange(layer.in_channels) % layer.staircase]
        offset = torch.zeros(layer.in_channels, 2)
        offset[:, 1 if layer.axis == "width" else 0] = steps.float()
        self.register_buffer("offset", offset.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        from torchvision.ops import deform_conv2d

        known = _known_type(x)
        offset = self.offset.to(known).expand(len(x), -1, *x.shape[2:])
        bias = None if self.bias is None else self.bias.to(known)
        return deform_conv2d(x.to(known), offset, self.weight.to(known), bias).to(x.dtype)


FORMS: dict[str, Form] = {"deformable": Deformable, "padded": Padded}


def original(model: MetaFormer, form: str = "deformable") -> nn.Module:
    """Rebuild a CycleMLP as it was published; its CycleFC by deformable convolution, or `padded`.

    Raises:
        ConfigError: the model is no CycleMLP.
    """
    stages: Any = model.stages
    if any(not isinstance(block.token_mixer, CycleMLP) for stage in stages for block in stage.blocks):
        raise ConfigError(f"original: a CycleMLP is needed, and the mixers are {model.config.mixers}")
    return OriginalCycleMLP(copy.deepcopy(model), FORMS[form])


class OriginalCycleMLP(nn.Module):
    """The classifier: stem, stages, norm, average, classifier."""

    def __init__(self, model: MetaFormer, form: Form) -> None:
        super().__init__()
        self.stem = model.stem.conv
        self.stages = nn.ModuleList()
        stages: Any = model.stages
        for stage in stages:
            down = getattr(stage.downsample, "conv", nn.Identity())
            self.stages.append(nn.Sequential(down, *(_Block(block, form) for block in stage.blocks)))
        self.norm, self.fc = model.head.norm, model.head.fc

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, K)."""
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            x = stage(x)
        return self.fc(_normed(x, self.norm).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, block: Any, form: Form) -> None:
        super().__init__()
        self.norm1, self.mix = block.norm1, _Mixing(block.token_mixer, form)
        self.norm2, self.fc1, self.fc2 = block.norm2, block.mlp.fc1, block.mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(_normed(x, self.norm1))
        return x + _linear(F.gelu(_linear(_normed(x, self.norm2), self.fc1)), self.fc2)


class _Mixing(nn.Module):
    """All three products in full, then their means, then their weighted sum."""

    def __init__(self, mixer: Any, form: Form) -> None:
        super().__init__()
        self.width, self.height = form(mixer.sfc_h), form(mixer.sfc_w)
        self.plain, self.proj = mixer.mlp_c, mixer.proj
        self.fc1, self.fc2 = mixer.reweight.fc1, mixer.reweight.fc2

    def forward(self, x: Tensor) -> Tensor:
        h, w, c = self.width(x), self.height(x), _linear(x, self.plain)
        mean = h.mean((2, 3), keepdim=True) + w.mean((2, 3), keepdim=True) + c.mean((2, 3), keepdim=True)
        weights = _linear(F.gelu(_linear(mean, self.fc1)), self.fc2)
        of_h, of_w, of_c = weights.unflatten(1, (-1, 3)).softmax(2).unbind(2)  # each (B, C, 1, 1)
        return _linear(torch.addcmul(torch.addcmul(h * of_h, w, of_w), c, of_c), self.proj)


def _known_type(x: Tensor) -> torch.dtype:
    """A type that the operation is written for: not bf16, of which float16 is the equal in speed."""
    if x.dtype != torch.bfloat16:
        return x.dtype
    return torch.float16 if x.is_cuda else torch.float32


def _linear(x: Tensor, layer: Any) -> Tensor:
    """A product over channels by `nn.Linear`'s function, as the original has it."""
    return F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


def _normed(x: Tensor, norm: Any) -> Tensor:
    x = F.layer_norm(x.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return x.permute(0, 3, 1, 2)
