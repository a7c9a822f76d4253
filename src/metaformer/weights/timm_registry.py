"""Make every model available in timm, and so in what builds on it, under the prefix `mf_`."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import VARIANTS
from metaformer.errors import MissingPackage
from metaformer.weights.card import pretrained_cfg
from metaformer.weights.keymap import State, to_ours
from metaformer.weights.load import load_weights
from metaformer.weights.sources import SOURCES, Source

PREFIX = "mf_"
FIELDS = {
    *("url", "num_classes", "input_size", "fixed_input_size", "crop_pct", "interpolation", "mean", "std"),
    *("pool_size", "first_conv", "classifier", "license"),
}
"""Fields that timm's `PretrainedCfg` shares with our cards."""
RENAMED = {"drop_rate": "head_dropout", "proj_drop_rate": "dropout", "img_size": "image_size"}
"""timm's names of our fields."""

default_cfgs: dict[str, Any] = {}
"""Where timm looks for configurations: the module of the functions that it registers."""


class TimmMetaFormer(MetaFormer):
    """The same network, in timm's memory format, loading weights by timm's interface."""

    def __init__(self, config: MetaFormerConfig) -> None:
        super().__init__(config)
        # timm's feature extractors call stem and stages themselves: the weights decide the memory format
        self.to(memory_format=torch.channels_last)

    def load_pretrained(self, path: str, prefix: str = "") -> None:
        """Load a published file; a classifier of other classes stays as initialized."""
        load_weights(self, path, classifier="reset")


def register_timm() -> list[str]:
    """Register every variant with timm as `mf_NAME`, once, and return the names.

    After it `timm.create_model("mf_poolformer_s12", features_only=True)` works, so do `tu-mf_…` encoders of
    segmentation_models_pytorch. timm's own `poolformer_s12` stays what it is.

    Raises:
        MissingPackage: timm is not installed.
    """
    try:
        from timm.models import generate_default_cfgs, is_model, register_model
    except ImportError as error:
        raise MissingPackage("timm", None, "registering models with timm") from error
    default_cfgs.update(generate_default_cfgs(_cards()))
    for variant in VARIANTS:
        if not is_model(PREFIX + variant):
            register_model(_entry(variant))
    return [PREFIX + variant for variant in VARIANTS]


def _cards() -> dict[str, dict[str, Any]]:
    """Configurations for timm of each variant and each of its published weights."""
    cards = {}
    for variant in VARIANTS:
        published: list[Source | None] = [source for source in SOURCES.values() if source.model == variant]
        for source in published or [None]:
            card = pretrained_cfg(variant, VARIANTS[variant], source)
            name = f"{PREFIX}{variant}.{source.tag}" if source else PREFIX + variant
            cards[name] = {field: card[field] for field in FIELDS if field in card} | {"custom_load": True}
    return cards


def _entry(variant: str) -> Callable[..., nn.Module]:
    """The function that timm calls to build a variant."""

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        from timm.models import build_model_with_cfg

        model: nn.Module = build_model_with_cfg(
            partial(_assemble, VARIANTS[variant]),
            PREFIX + variant,
            pretrained,
            pretrained_filter_fn=_ours,
            feature_cfg={"out_indices": tuple(range(VARIANTS[variant].stages)), "flatten_sequential": True},
            **options,
        )
        return model

    build.__name__ = PREFIX + variant
    build.__doc__ = f"Build {variant} of this library."
    return build


def _assemble(config: MetaFormerConfig, **options: Any) -> TimmMetaFormer:
    """Build a network from timm's options, which are our fields but for a few names."""
    device, dtype = options.pop("device", None), options.pop("dtype", None)
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name == "img_size":
            value = (value, value) if isinstance(value, int) else tuple(value)
        fields[RENAMED.get(name, name)] = value
    with nullcontext() if device is None else torch.device(device):
        return TimmMetaFormer(replace(config, **fields)).to(dtype=dtype)


def _ours(state: Mapping[str, Tensor], model: nn.Module) -> State:
    """Rename a state that timm read itself."""
    return to_ours(state).state
