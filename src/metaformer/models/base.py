"""Base class and base configuration of segmenters and detectors."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.hub import HubMixin
from metaformer.backbones.metaformer import MetaFormerFeatures
from metaformer.backbones.stage import Recompute
from metaformer.errors import ConfigError
from metaformer.layers.init import init_part
from metaformer.serialize import Serializable

Size = tuple[int, int]
"""Height and width."""


class DenseNetwork(HubMixin, nn.Module):
    """Network on a backbone that returns a list of features; its utilities delegate to the backbone.

    Subclasses define `forward_head` (tensors only: what is compiled and exported), `decode` (tensors to
    results) and `compute_losses`; `forward` dispatches.

    Args:
        config: configuration of the backbone, or None if a module is given.
        backbone: a module that returns a list of features, finest first, with `feature_info.channels()`; used
            in place of `config`.

    Raises:
        ConfigError: no backbone, or a module without `feature_info`.
    """

    num_classes: int

    def __init__(self, config: MetaFormerConfig | None, backbone: nn.Module | None) -> None:
        super().__init__()
        self.pretrained_cfg: dict[str, Any] = {}
        if backbone is None:
            if config is None:
                raise ConfigError("backbone: neither a MetaFormerConfig nor a module was given")
            backbone = init_part("backbone", MetaFormerFeatures, config)
        self.backbone = backbone

    def forward_head(self, x: Tensor) -> Any:
        """Map images (B, 3, H, W) to tensors whose shapes depend on H and W alone."""
        raise NotImplementedError

    def decode(
        self, outputs: Any, image_sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Any]:
        """Turn the outputs of `forward_head` into one result per image.

        Args:
            outputs: outputs of `forward_head`.
            image_sizes: height and width of each image inside the padded batch.
            original_sizes: height and width that each result is scaled to; `image_sizes` by default.
        """
        raise NotImplementedError

    @property
    def min_size(self) -> int:
        """Smallest height and width of an input image."""
        return int(getattr(self.backbone, "min_size", 1))

    def levels(self) -> tuple[list[int], list[int]]:
        """Channels and strides of the backbone's features, finest first."""
        info: Any = getattr(self.backbone, "feature_info", None)
        if info is None or not callable(getattr(info, "channels", None)):
            raise ConfigError(
                f"backbone: {type(self.backbone).__name__} needs feature_info.channels(), as timm's models "
                "have with features_only=True"
            )
        channels = list(info.channels())
        if callable(getattr(info, "reduction", None)):
            return channels, list(info.reduction())
        return channels, [4 << i for i in range(len(channels))]

    def set_grad_checkpointing(self, enable: Recompute = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of storing their activations.

        Args:
            enable: True for whole blocks, `"mlp"` for the hidden activations of their MLPs alone.

        Raises:
            ConfigError: the backbone has no gradient checkpointing, or `enable` is unknown.
        """
        method: Any = getattr(self.backbone, "set_grad_checkpointing", None)
        if method is None:
            raise ConfigError(f"backbone: {type(self.backbone).__name__} has no gradient checkpointing")
        method(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions of parameter groups by depth, for timm's layer-wise learning rate decay."""
        method: Any = getattr(self.backbone, "group_matcher", None)
        if method is None:
            raise ConfigError(f"backbone: {type(self.backbone).__name__} has no group_matcher")
        return _under_backbone(method(coarse=coarse))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, in addition to vectors and biases."""
        names: Any = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in names()}


def _under_backbone(value: Any) -> Any:
    """Prefix the patterns of a group matcher with `backbone.`."""
    if isinstance(value, str):
        return value.replace("^", r"^backbone\.", 1)
    if isinstance(value, dict):
        return {name: _under_backbone(pattern) for name, pattern in value.items()}
    if isinstance(value, list):
        return [(_under_backbone(pattern), order) for pattern, order in value]
    return value


@dataclass(frozen=True, kw_only=True)
class DenseConfig(Serializable):
    """Configuration of a network on a backbone."""

    backbone: MetaFormerConfig | None = None
    """Configuration of the backbone; None if the network is given a module."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON.

        Raises:
            ConfigError: the backbone is a module, or has a mixer that is not a registered name.
        """
        if self.backbone is None:
            raise ConfigError(
                "backbone: a module cannot be saved in a configuration: build the network with a name or a "
                "MetaFormerConfig, or save the weights alone (state_dict())"
            )
        return super().to_dict() | {"backbone": self.backbone.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            UnknownName: an unknown field or choice; the nearest ones are offered.
            ConfigError: a value of another type or out of range, or no backbone; it names the field.
        """
        if isinstance(values, Mapping) and values.get("backbone") is None:
            raise ConfigError("backbone: missing")
        return super().from_dict(values)


PRECISIONS = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Mixed precision context for `amp` (`none`, `bf16` or `fp16`) on a device."""
    dtype = PRECISIONS[amp]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
