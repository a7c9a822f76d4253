"""MetaFormer networks: the classifier and the feature pyramid, on stem and stages."""

import re
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.head import Head
from metaformer.backbones.hub import HubMixin
from metaformer.backbones.stage import Recompute, Stage
from metaformer.errors import ConfigError, SizeError
from metaformer.layers.embed import Stem
from metaformer.layers.init import init_by_name, init_normal, init_part
from metaformer.layers.norm import NORMS
from metaformer.ops.backend import is_transformed


class FeatureInfo(list[dict[str, Any]]):
    """Levels of a pyramid: `num_chs`, `reduction` (pixels per position) and `module` of each, as in timm."""

    @classmethod
    def of(cls, config: MetaFormerConfig) -> "FeatureInfo":
        """The levels of all stages of a network."""
        info, reduction = cls(), 1
        for stage, dim in enumerate(config.dims):
            reduction *= prod(stride for _, stride, _ in config.strided_convs(stage))
            info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{stage}"})
        return info

    def pick(self, indices: Sequence[int]) -> "FeatureInfo":
        """Some of the levels."""
        return FeatureInfo(self[i] for i in indices)

    def channels(self) -> list[int]:
        """Channels of each level."""
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        """Input pixels per position, of each level."""
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        """Module that outputs each level."""
        return [level["module"] for level in self]


class Trunk(HubMixin, nn.Module):
    """Stem and stages, which classifier and pyramid share."""

    converts_images = False
    """Whether images of another type than the weights' are converted to it; else they are refused."""

    def __init__(self, config: MetaFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.in_chans = config.in_chans
        self.num_features = config.dims[-1]
        self.feature_info = FeatureInfo.of(config)
        self.min_size = _min_size(config)
        self.pretrained_cfg: dict[str, Any] = {}
        self.stem = init_part(
            "stem",
            Stem,
            config.in_chans,
            config.dims[0],
            config.stem_kernel,
            config.stem_stride,
            config.stem_padding,
            order=config.stem,
            norm=config.embed_norm,
            eps=config.norm_eps,
            act=config.act,
        )
        self.stages = nn.Sequential(
            *(init_part(f"stages.{i}", Stage, config, i) for i in range(config.stages))
        )
        if config.conv_init == "trunc_normal":
            for name, module in self.named_modules():
                if isinstance(module, nn.Conv2d) and re.fullmatch(r"(stem|.*\.downsample)\.conv2?", name):
                    init_part(name, init_normal, module)

    @property
    def default_cfg(self) -> dict[str, Any]:
        """Older name, in timm, of `pretrained_cfg`."""
        return self.pretrained_cfg

    @default_cfg.setter
    def default_cfg(self, value: dict[str, Any]) -> None:
        self.pretrained_cfg = value

    def forward_features(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w) of the last stage, before the final norm, of images (B, in_chans, H, W).

        Raises:
            SizeError: the image is smaller than the network's minimum, or has another number of channels.
        """
        return self.stages(self.stem(self._checked(x)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return (last features, list of the stages' features), or the list alone; timm's arguments.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages to return; a number n means the last n; all by default.
            norm: normalize the last stage's features with the final norm.
            stop_early: run no stage after the last one asked for.
            output_fmt: `NCHW` or `NHWC`.
            intermediates_only: return the list alone.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt {output_fmt!r} is neither 'NCHW' nor 'NHWC'")
        wanted = resolve_indices(indices, len(self.stages))
        x, features = self.stem(self._checked(x)), []
        for i, stage in enumerate(self.stages):
            if stop_early and i > max(wanted):
                break
            x = stage(x)
            if i in wanted:
                level = self._final_norm(x) if norm and i == self.config.stages - 1 else x
                features.append(level.permute(0, 2, 3, 1) if output_fmt == "NHWC" else level)
        return features if intermediates_only else (x, features)

    def set_grad_checkpointing(self, enable: Recompute = True) -> None:
        """Recompute blocks in the backward pass instead of saving their activations.

        Args:
            enable: `"mlp"` recomputes the hidden activations of the MLPs alone: most of the memory for little
                time.

        Raises:
            ConfigError: `enable` is something else.
        """
        if enable not in (False, True, "mlp"):
            raise ConfigError(f"set_grad_checkpointing: {enable!r} is none of True, False and 'mlp'")
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups by depth, as regular expressions for timm's layer-wise decay."""
        blocks = (
            r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(?:downsample|pos_embed)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            ]
        )
        return {"stem": r"^stem", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay beside vectors and biases: none, as in the original recipes."""
        return set()

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` takes in the network's place: its trace, in its current mode.

        TorchScript's language lacks what the modules are written in.
        """
        training, parameter = self.training, next(self.parameters())
        images = torch.zeros(2, self.in_chans, *self.config.image_size).to(parameter)
        with torch.no_grad():
            return _Traced(torch.jit.trace(self, images, check_trace=False)).train(training)

    def _final_norm(self, x: Tensor) -> Tensor:
        return x

    def _checked(self, x: Tensor) -> Tensor:
        """The images, checked and channels-last, in which every later operation is fastest."""
        if not torch.compiler.is_compiling() and not isinstance(x, Proxy):
            if x.ndim != 4 or x.shape[1] != self.in_chans:
                raise SizeError(f"expected images (B, {self.in_chans}, H, W), got {tuple(x.shape)}")
            if min(x.shape[2:]) < self.min_size:
                raise SizeError(
                    f"image of {x.shape[2]}×{x.shape[3]} pixels: the network needs at least "
                    f"{self.min_size}×{self.min_size}"
                )
        x = x.to(next(self.parameters()).dtype) if self.converts_images else x
        if is_transformed():  # vmap knows no memory formats
            return x
        return x.contiguous(memory_format=torch.channels_last)


class _Traced(nn.Module):
    """A traced network, as a module that `torch.jit.script` takes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class MetaFormer(Trunk):
    """Classifier; everything about it is in `config`."""

    @init_by_name
    def __init__(self, config: MetaFormerConfig) -> None:
        super().__init__(config)
        self.num_classes = config.num_classes
        self.head = Head(config)

    @property
    def head_hidden_size(self) -> int:
        """Channels of what `forward_head(x, pre_logits=True)` returns."""
        return self.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last features (B, C, h, w); `pre_logits` stops at the vector (B, C) before them."""
        return self.head(x, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        """The last layer, behind norm and pooling."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of the same device and dtype; 0 classes leave it out."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head.reset(
            self.num_features, num_classes, self.head.global_pool if global_pool is None else global_pool
        )
        self.head.fc.to(like.device, like.dtype)
        self.head.train(self.training)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last one asked for, and the head; timm's arguments.

        Args:
            indices: stages to keep the outputs of; a number n means the last n.
            prune_norm: drop the final norm where the classifier stays; it goes with the head.
            prune_head: drop the head even where the last stage stays.

        Returns:
            The stages asked for, counted from 0.
        """
        wanted = resolve_indices(indices, len(self.stages))
        shortened = max(wanted) < len(self.stages) - 1
        self.stages = self.stages[: max(wanted) + 1]
        if shortened:
            self.num_features = self.config.dims[max(wanted)]
        if prune_norm or prune_head or shortened:
            self.head.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return list(wanted)

    def _final_norm(self, x: Tensor) -> Tensor:
        return (
            self.head.norm(x)
            if self.head.norm_first
            else self.head.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        )


class MetaFormerFeatures(Trunk):
    """Feature pyramid for dense tasks: the stages' outputs, each with a norm of its own by `feature_norm`."""

    @init_by_name
    def __init__(self, config: MetaFormerConfig, out_indices: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__(config)
        self.out_indices = resolve_indices(out_indices, config.stages)
        self.stages = self.stages[: max(self.out_indices) + 1]
        self.feature_info = self.feature_info.pick(self.out_indices)
        self.norms = nn.ModuleDict()
        if config.feature_norm != "none":
            for i in self.out_indices:
                self.norms[str(i)] = NORMS.build(config.norm, config.dims[i], eps=config.norm_eps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (B, C_i, H_i, W_i), finest first, of images (B, in_chans, H, W)."""
        levels = self.forward_intermediates(x, self.out_indices, intermediates_only=True)
        if not self.norms:
            return levels
        return [self.norms[str(i)](level) for i, level in zip(self.out_indices, levels, strict=True)]


def resolve_indices(indices: int | Sequence[int] | None, stages: int) -> tuple[int, ...]:
    """Sorted stage numbers: negative ones are counted from the end, a number n means the last n, None all.

    Raises:
        ConfigError: a number that names no stage.
    """
    wanted = range(-indices, 0) if isinstance(indices, int) else range(stages) if indices is None else indices
    if any(not -stages <= i < stages for i in wanted) or not len(wanted):
        raise ConfigError(f"out_indices: {list(wanted)} must name stages 0 … {stages - 1}")
    return tuple(sorted({i % stages for i in wanted}))


def _min_size(config: MetaFormerConfig) -> int:
    """Smallest input side that leaves every stage one position."""
    size = 1
    for stage in reversed(range(config.stages)):
        for kernel, stride, padding in config.strided_convs(stage):
            size = max(1, (size - 1) * stride + kernel - 2 * padding)
    return size
