"""Published variants that a checkpoint may be of, by its tensors."""

from collections.abc import Mapping

from torch import Tensor

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.registry import parse

MIXER_SIGNS = {
    "token_mixer.qkv.weight": "attention",
    "token_mixer.pwconv1.weight": "sepconv",
    "token_mixer.mlp_c.weight": "cycle_mlp",
    "token_mixer.fc.weight": "spatial_fc",
    "token_mixer.random_matrix": "random",
}
"""Suffixes of names that only one mixer has."""
WITHOUT_WEIGHTS = frozenset({"pooling", "identity"})
"""Mixers without weights."""


def candidates(state: Mapping[str, Tensor]) -> list[str]:
    """Variants that tensors (by our names) may be of; several if they differ in mixers without weights."""
    return [name for name, config in VARIANTS.items() if _fits(state, config)]


def _fits(state: Mapping[str, Tensor], config: MetaFormerConfig) -> bool:
    if _depths(state) != config.depths or _dims(state) != config.dims:
        return False
    return all(_stage_fits(state, config, stage) for stage in range(config.stages)) and (
        ("stem.norm.weight" in state) == (config.embed_norm != "none")
    )


def _stage_fits(state: Mapping[str, Tensor], config: MetaFormerConfig, stage: int) -> bool:
    block = f"stages.{stage}.blocks.0."
    hidden = state.get(f"{block}mlp.fc1.weight")
    if hidden is None or hidden.shape[0] != int(config.dims[stage] * config.mlp_ratios[stage]):
        return False
    present = {
        f"{block}layer_scale1.scale": config.layer_scale[stage] is not None,
        f"{block}res_scale1.scale": config.res_scale[stage] is not None,
        f"{block}mlp.act.scale": config.act == "star_relu",
        f"stages.{stage}.pos_embed.weight": config.pos_embed[stage],
    }
    if any((name in state) != there for name, there in present.items()):
        return False
    spec = config.block_mixers(stage)[0]
    found = {mixer for end, mixer in MIXER_SIGNS.items() if block + end in state} or WITHOUT_WEIGHTS
    return isinstance(spec, str) and parse(spec)[0] in found


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    blocks = {tuple(name.split(".")[1:4:2]) for name in state if name.endswith(".mlp.fc1.weight")}
    stages = [stage for stage, *_ in blocks]
    return tuple(stages.count(str(stage)) for stage in range(len(set(stages))))


def _dims(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    names = (f"stages.{stage}.blocks.0.mlp.fc1.weight" for stage in range(len(_depths(state))))
    return tuple(int(state[name].shape[1]) for name in names if name in state and state[name].ndim > 1)
