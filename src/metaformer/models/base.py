"""What every dense network asks of its backbone."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormerFeatures
from metaformer.backbones.stage import Recompute
from metaformer.errors import ConfigError, UnknownName


class DenseNetwork(nn.Module):
    """A network on a backbone that gives maps; it tells what its backbone tells.

    Args:
        config: the backbone's, or None with a module.
        backbone: a module that gives a list of maps, finest first, and whose `feature_info.channels()` tells
            their channels, in place of `config`.

    Raises:
        ConfigError: no backbone, or a module that does not say what it gives.
    """

    num_classes: int

    def __init__(self, config: MetaFormerConfig | None, backbone: nn.Module | None) -> None:
        super().__init__()
        self.pretrained_cfg: dict[str, Any] = {}
        if backbone is None:
            if config is None:
                raise ConfigError("backbone: neither a MetaFormerConfig nor a module was given")
            backbone = MetaFormerFeatures(config)
        self.backbone = backbone

    @property
    def min_size(self) -> int:
        """The smallest height and width of an image."""
        return int(getattr(self.backbone, "min_size", 1))

    def levels(self) -> tuple[list[int], list[int]]:
        """Channels of the backbone's maps, and input pixels per position."""
        info: Any = getattr(self.backbone, "feature_info", None)
        if info is None or not callable(getattr(info, "channels", None)):
            raise ConfigError(
                f"backbone: {type(self.backbone).__name__} does not say what maps it gives: it needs "
                "feature_info.channels(), as timm's models with features_only=True have it"
            )
        channels = list(info.channels())
        if callable(getattr(info, "reduction", None)):
            return channels, list(info.reduction())
        return channels, [4 << i for i in range(len(channels))]

    def set_grad_checkpointing(self, enable: Recompute = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping their activations.

        Args:
            enable: `"mlp"` recomputes the wide maps of the blocks' MLPs alone.

        Raises:
            ConfigError: the backbone is a foreign module that cannot do so, or `enable` is something else.
        """
        own: Any = getattr(self.backbone, "set_grad_checkpointing", None)
        if own is None:
            raise ConfigError(f"{type(self.backbone).__name__}: this backbone has no gradient checkpointing")
        own(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups by depth, as regular expressions for timm's layer-wise decay."""
        own: Any = getattr(self.backbone, "group_matcher", None)
        if own is None:
            raise ConfigError(f"{type(self.backbone).__name__}: this backbone tells no groups by depth")
        return _under_backbone(own(coarse=coarse))

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay beside vectors and biases: what the backbone says."""
        own: Any = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in own()}


def _under_backbone(value: Any) -> Any:
    """The same patterns for names that begin with `backbone.`."""
    if isinstance(value, str):
        return value.replace("^", r"^backbone\.", 1)
    if isinstance(value, dict):
        return {name: _under_backbone(pattern) for name, pattern in value.items()}
    if isinstance(value, list):
        return [(_under_backbone(pattern), order) for pattern, order in value]
    return value


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Everything that defines a network on a backbone."""

    backbone: MetaFormerConfig | None = None
    """The network that gives the maps; None for a module that is none of this library's."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as saved in JSON.

        Raises:
            ConfigError: the backbone is a foreign module, or has a mixer that is not a registered name.
        """
        if self.backbone is None:
            raise ConfigError(
                "backbone: a module that is none of this library's cannot be saved in a configuration: build "
                "the network with a name or a MetaFormerConfig, or save the weights alone (state_dict())"
            )
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"backbone": self.backbone.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` gave.

        Raises:
            UnknownName: a field that this version does not know.
            ConfigError: a value out of range, or no backbone.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise UnknownName(f"{cls.__name__} field", name, known)
        backbone = values.get("backbone")
        if not isinstance(backbone, dict):
            raise ConfigError(f"backbone: {backbone!r} must hold the fields of a MetaFormerConfig")
        return cls(**{**values, "backbone": MetaFormerConfig.from_dict(backbone)})


PRECISIONS = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Mixed precision of this name (`none`, `bf16`, `fp16`) on this device."""
    dtype = PRECISIONS[amp]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def answer_of(model: nn.Module) -> Any:
    """What gives a network's answer: objects, or logits as they come, for pixels at a quarter of the size."""
    answer: Any = getattr(model, "detect", None) or getattr(model, "raw", model)
    return answer
