"""Published variants that a checkpoint may be of, by its tensors."""

from collections.abc import Mapping
from functools import cache

from torch import Tensor

from metaformer.backbones.block import build_block
from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.mixers import MIXERS
from metaformer.models.build import on_meta
from metaformer.registry import parse


def candidates(state: Mapping[str, Tensor]) -> list[str]:
    """Variants that tensors (by our names) may be of; several if they differ in mixers without weights."""
    depths, dims = _depths(state), _dims(state)
    return [
        name
        for name, config in VARIANTS.items()
        if (config.depths, config.dims) == (depths, dims) and _fits(state, config)
    ]


def _fits(state: Mapping[str, Tensor], config: MetaFormerConfig) -> bool:
    present = {
        "stem.norm.weight": config.embed_norm != "none",
        "stem.mid_norm.weight": "norm" in config.stem,
        **{f"stages.{i}.pos_embed.weight": there for i, there in enumerate(config.pos_embed)},
    }
    return all((name in state) == there for name, there in present.items()) and all(
        _block_fits(state, config, stage) for stage in range(config.stages)
    )


def _block_fits(state: Mapping[str, Tensor], config: MetaFormerConfig, stage: int) -> bool:
    prefix, sizes = f"stages.{stage}.blocks.0.", _block_sizes(config, stage)
    found = {name.removeprefix(prefix): state[name].numel() for name in state if name.startswith(prefix)}
    return found.keys() == sizes.keys() and all(sizes[name] in (None, found[name]) for name in sizes)


@cache
def _block_sizes(config: MetaFormerConfig, stage: int) -> dict[str, int | None]:
    """Numbers in each tensor of a stage's first block; None where they follow the size of images."""
    mixer = config.block_mixers(stage)[0]
    block = on_meta(lambda: build_block(config, stage, mixer, 0.0))
    assert block is not None and isinstance(mixer, str), "of this library's mixers"
    unknown = ("token_mixer.",) if MIXERS.fixed_grid(parse(mixer)[0]) else ()
    state = block.state_dict()
    return {name: None if name.startswith(unknown) else state[name].numel() for name in state}


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    parts = (name.split(".") for name in state if name.startswith("stages."))
    blocks = {(part[1], part[3]) for part in parts if len(part) > 4 and part[2] == "blocks"}
    stages = [stage for stage, _ in blocks]
    return tuple(stages.count(str(stage)) for stage in range(len(set(stages))))


def _dims(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Channels of each stage, by its first norm."""
    blocks = (f"stages.{stage}.blocks.0." for stage in range(len(_depths(state))))
    norms = (state.get(f"{block}norm1.weight", state.get(f"{block}norm.weight")) for block in blocks)
    return tuple(norm.numel() for norm in norms if norm is not None)
