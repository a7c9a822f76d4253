"""The network of a run whose weights come from a directory that brings its own."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from metaformer.backbones.variants import VARIANTS
from metaformer.config import ModelConfig, TrainConfig
from metaformer.errors import ConfigError
from metaformer.factory import find_local
from metaformer.models.build import kind_of
from metaformer.serialize import differences, to_dict
from metaformer.tasks import TASKS
from metaformer.weights.saved import SavedNetwork, find_saved, fitting

OWN_FIELDS = ("num_classes", "drop_path_rate", "head_dropout", "image_size", "feature_norm")
"""Fields of the backbone that a run sets by fields of its own."""
SHARED = ("fpn_dim", "head_dim", "box_fc_dim", "auxiliary", "anchor_scale")
"""Fields of a network on a backbone that decide the shapes of its weights or what they mean."""


def resolve_network(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Take network and weights from the directory that `model.name` or `model.checkpoint` names, if any.

    Such a directory is a run, a checkpoint, or what `save_pretrained` wrote. With the weights alone comes
    their network, where `model.name` is that or was left at its default; overrides hold on top of it.

    Returns:
        The configuration with the network spelled out, and a line for each field that differs.

    Raises:
        ConfigError: the checkpoint is of another network than asked for.
        WeightsError: the directory holds none.
    """
    model = config.model
    saved = find_local(model.name, VARIANTS)
    if saved is not None:
        own = str(saved.path) if model.checkpoint is None else model.checkpoint
        model = replace(model, checkpoint=own, pretrained=False)
    elif model.checkpoint is not None:
        saved = find_saved(model.checkpoint)
        if saved is not None and not _is_meant(saved, config):
            saved = None
    if saved is None:
        return config, []
    if saved.backbone is None:
        raise ConfigError(f"{saved.path}: its backbone is a module, which no configuration describes")
    resolved = _spelled_out(replace(config, model=model), saved)
    return resolved, differences(to_dict(config), to_dict(resolved))


def _is_meant(saved: SavedNetwork, config: TrainConfig) -> bool:
    """Whether a checkpoint's network is to be taken, and not the one that is named."""
    name = config.model.name
    if name == ModelConfig().name or name.partition(".")[0] not in VARIANTS:
        return True
    from metaformer.tasks.dense import backbone_config

    return fitting(saved, name.partition(".")[0], backbone_config(config.model)) is not None


def _spelled_out(config: TrainConfig, saved: SavedNetwork) -> TrainConfig:
    kind, section = kind_of(saved.config), TASKS[config.task].section
    same_task = kind is not None and kind.task == config.task
    but = OWN_FIELDS if same_task or kind is None else (*OWN_FIELDS, "grid_mode")
    variant = saved.variant
    overrides = {**saved.changes(variant, but), **config.model.overrides}
    model = replace(config.model, name=variant, overrides=overrides)
    changes: dict[str, Any] = {"model": model}
    if same_task:
        own: Any = saved.config
        options = getattr(config, section)
        taken = {one.name: getattr(own, one.name) for one in fields(options) if one.name in SHARED}
        if own.backbone.feature_norm in ("fresh", "none"):
            taken["feature_norm"] = own.backbone.feature_norm
        changes[section] = replace(options, head=own.kind, **taken)
    return replace(config, **changes)


def describe_network(config: TrainConfig, changed: list[str]) -> list[str]:
    """Lines that say what a run took from a directory."""
    if not changed:
        return []
    name = Path(str(config.model.checkpoint))
    return [f"network of {name}: {config.model.name}", *(f"  {line}" for line in changed)]
