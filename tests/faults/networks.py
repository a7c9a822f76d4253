"""Registered networks grouped by architecture."""

from dataclasses import replace

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.factory import list_models
from metaformer.registry import parse

DIMS = (8, 8, 16, 16)


def shallow(config: MetaFormerConfig) -> MetaFormerConfig:
    """The architecture with the first block of each stage alone."""
    mixers = tuple(config.block_mixers(i)[0] for i in range(config.stages))
    return replace(config, depths=(1,) * config.stages, mixers=mixers)


def structures() -> dict[MetaFormerConfig, list[str]]:
    """Small configuration of each architecture, mixers without options, with the names of its networks."""
    kinds: dict[MetaFormerConfig, list[str]] = {}
    for name in list_models():
        config = shallow(VARIANTS[name])
        small = replace(
            config,
            dims=DIMS[: config.stages],
            mixers=tuple(parse(str(mixer))[0] for mixer in config.mixers),
            layer_scale=tuple(scale and 1.0 for scale in config.layer_scale),
            num_classes=5,
        )
        kinds.setdefault(small, []).append(name)
    return kinds


def one_of_each_kind() -> list[str]:
    """The first and smallest network of each architecture."""
    return [names[0] for names in structures().values()]
