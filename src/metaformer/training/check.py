"""What can be known to be wrong before any work is done."""

import math
from dataclasses import fields
from importlib.util import find_spec

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, MissingPackage

TASKS = {"classify": "classification", "segment": "segmentation", "detect": "detection"}
OTHERS = {"classify": ("segment", "detect"), "segment": ("loss", "detect"), "detect": ("loss", "segment")}
"""Sections that are for other tasks."""
SEEDS = 2**63
"""PyTorch's generators take no larger numbers."""


def check(config: TrainConfig, world_size: int = 1) -> None:
    """Compare the values of a configuration with what they may be, and with each other.

    Raises:
        ConfigError: the first field that cannot be, with what it must be.
        MissingPackage: a field asks for what is not installed.
    """
    _check_counts(config)
    if not abs(config.seed) < SEEDS:
        raise ConfigError(f"seed is {config.seed}: it must lie between {-SEEDS + 1} and {SEEDS - 1}")
    _check_shares(config)
    _check_positive(config)
    _check_together(config, world_size)
    _check_foreign(config)
    if config.task != "classify":
        _check_unused(config)
    if config.task == "segment":
        _check_segment(config)
    if config.task == "detect":
        _check_detect(config)
    if config.runtime.wandb is not None and find_spec("wandb") is None:
        raise MissingPackage("wandb", "wandb", "runtime.wandb")


def _check_counts(config: TrainConfig) -> None:
    runtime, data = config.runtime, config.data
    for field, value, least in (
        ("data.batch_size", data.batch_size, 1),
        ("data.eval_batch_size", data.eval_batch_size, 1),
        ("data.image_size", data.image_size, 1),
        ("data.workers", data.workers, 0),
        ("data.repeated_aug", data.repeated_aug, 1),
        ("augment.aug_splits", config.augment.aug_splits, 1),
        ("augment.mix_off_epoch", config.augment.mix_off_epoch, 0),
        ("optim.accumulate", config.optim.accumulate, 1),
        ("schedule.epochs", config.schedule.epochs, 1),
        ("schedule.steps", 1 if config.schedule.steps is None else config.schedule.steps, 1),
        ("schedule.warmup_steps", config.schedule.warmup_steps or 0, 0),
        ("schedule.cooldown_epochs", config.schedule.cooldown_epochs, 0),
        *(("schedule.milestones", epoch, 1) for epoch in config.schedule.milestones),
        ("evaluate.every", config.evaluate.every, 1),
        ("evaluate.every_steps", config.evaluate.every_steps, 0),
        ("runtime.save_every", runtime.save_every, 0),
        ("runtime.keep", runtime.keep, 1),
        ("runtime.log_every", runtime.log_every, 1),
        ("runtime.threads", 1 if runtime.threads is None else runtime.threads, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{field} is {value}: it must be a whole number of at least {least}")


def _check_shares(config: TrainConfig) -> None:
    for field, value in (
        ("model.drop_path_rate", config.model.drop_path_rate),
        ("model.head_dropout", config.model.head_dropout),
        ("loss.smoothing", config.loss.smoothing),
        ("ema.decay", config.ema.decay or 0.0),
        ("optim.betas", min(config.optim.betas)),
        ("optim.betas", max(config.optim.betas)),
    ):
        if not 0 <= value < 1:
            raise ConfigError(f"{field} is {value}: it must be at least 0 and below 1")
    if not 0 < config.evaluate.crop <= 1:
        raise ConfigError(f"evaluate.crop is {config.evaluate.crop}: it must be above 0 and at most 1")
    if not 0 < config.optim.layer_decay <= 1:
        raise ConfigError(
            f"optim.layer_decay is {config.optim.layer_decay}: it must be above 0 and at most 1"
        )


def _check_positive(config: TrainConfig) -> None:
    optim, schedule = config.optim, config.schedule
    for field, value, zero in (
        ("optim.lr", optim.lr, False),
        ("optim.eps", optim.eps, False),
        ("optim.clip", 1.0 if optim.clip is None else optim.clip, False),
        ("optim.weight_decay", optim.weight_decay, True),
        ("schedule.power", schedule.power, False),
        ("schedule.gamma", schedule.gamma, False),
        ("schedule.warmup_epochs", schedule.warmup_epochs, True),
        ("schedule.warmup_lr", schedule.warmup_lr, True),
        ("schedule.min_lr", schedule.min_lr, True),
    ):
        if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise ConfigError(f"{field} is {value}: it must be {'0 or more' if zero else 'above 0'}")


def _check_together(config: TrainConfig, world_size: int) -> None:
    shares = world_size * config.optim.accumulate
    if config.data.batch_size % shares:
        raise ConfigError(
            f"data.batch_size {config.data.batch_size} cannot be shared by {world_size} device(s) × "
            f"{config.optim.accumulate} accumulation step(s): choose a multiple of {shares}"
        )
    if config.schedule.name != "constant" and config.schedule.min_lr > config.optim.lr:
        raise ConfigError(
            f"schedule.min_lr {config.schedule.min_lr} is above optim.lr {config.optim.lr}: "
            "the learning rate would rise"
        )
    mixed = config.augment.mixup > 0 or config.augment.cutmix > 0
    if config.augment.aug_splits > 1 and mixed:
        raise ConfigError(
            "augment.aug_splits compares views of one image: set augment.mixup and augment.cutmix to 0"
        )
    if config.loss.name == "jsd" and config.augment.aug_splits < 2:
        raise ConfigError("loss.name 'jsd' compares views of an image: set augment.aug_splits to 2 or 3")
    if config.loss.distill != "none" and config.loss.teacher is None:
        raise ConfigError(
            f"loss.distill {config.loss.distill!r} needs loss.teacher: a model name, or timm:NAME"
        )
    if not config.data.root:
        raise ConfigError("data.root is empty: give the folder that holds the data set")


def _check_segment(config: TrainConfig) -> None:
    plan = config.segment
    for field, value, least in (
        ("segment.fpn_dim", plan.fpn_dim, 1),
        ("segment.head_dim", 1 if plan.head_dim is None else plan.head_dim, 1),
        ("segment.size_divisor", plan.size_divisor, 1),
        ("segment.window", plan.window, 1),
        ("segment.stride", plan.stride, 1),
        ("segment.resize", 1 if plan.resize is None else min(plan.resize), 1),
    ):
        if value < least:
            raise ConfigError(f"{field} is {value}: it must be at least {least}")
    if not 0 < plan.scale[0] <= plan.scale[1] < math.inf:
        raise ConfigError(f"segment.scale is {plan.scale}: a smaller and a larger factor, both above 0")
    for field, number, low, high in (
        ("segment.dropout", plan.dropout, 0.0, 0.999),
        ("segment.cat_max_ratio", plan.cat_max_ratio, 1e-9, 1.0),
        ("segment.ohem", 1.0 if plan.ohem is None else plan.ohem, 1e-9, 1.0),
        ("segment.dice", plan.dice, 0.0, math.inf),
        *(("segment.scales", scale, 1e-9, 100.0) for scale in plan.scales),
        *(("segment.class_weights", weight, 0.0, 1e9) for weight in plan.class_weights or ()),
    ):
        if not (isinstance(number, int | float) and low <= number <= high):
            raise ConfigError(f"{field} is {number}: it must lie between {low:g} and {high:g}")
    if not plan.scales:
        raise ConfigError("segment.scales is empty: give 1 for the images' own size")


def _check_detect(config: TrainConfig) -> None:
    plan = config.detect
    for field, value, least in (
        ("detect.fpn_dim", plan.fpn_dim, 1),
        ("detect.head_dim", 1 if plan.head_dim is None else plan.head_dim, 1),
        ("detect.box_fc_dim", plan.box_fc_dim, 1),
        ("detect.roi_batch_size", plan.roi_batch_size, 1),
        ("detect.long_side", 1 if plan.long_side is None else plan.long_side, 1),
        ("detect.max_detections", plan.max_detections, 1),
        *(("detect.short_sides", side, 1) for side in plan.short_sides),
    ):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{field} is {value}: it must be a whole number of at least {least}")
    jitter = plan.jitter or (1.0, 1.0)
    if not 0 < jitter[0] <= jitter[1] <= 100:
        raise ConfigError(
            f"detect.jitter is {plan.jitter}: a smaller and a larger factor, above 0 and up to 100"
        )
    for field, number, low, high in (
        ("detect.anchor_scale", 1.0 if plan.anchor_scale is None else plan.anchor_scale, 1e-3, 1e3),
        ("detect.score_threshold", plan.score_threshold, 0.0, 1.0),
        ("detect.nms_threshold", plan.nms_threshold, 0.0, 1.0),
        *(("detect.scales", scale, 1e-9, 100.0) for scale in plan.scales),
    ):
        if not (isinstance(number, int | float) and low <= number <= high):
            raise ConfigError(f"{field} is {number}: it must lie between {low:g} and {high:g}")
    if not plan.scales or not plan.short_sides:
        field = "detect.short_sides" if plan.scales else "detect.scales"
        raise ConfigError(f"{field} is empty: give at least one")


def _check_foreign(config: TrainConfig) -> None:
    """Refuse changed fields of sections that are for other tasks: they would do nothing."""
    default = TrainConfig()
    for section in OTHERS[config.task]:
        ours, theirs = getattr(config, section), getattr(default, section)
        changed = [
            f"{section}.{f.name}" for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)
        ]
        if changed:
            raise ConfigError(f"{', '.join(changed)}: not for {TASKS[config.task]}; leave it out")


def _check_unused(config: TrainConfig) -> None:
    """Refuse what only classification does to images and their measuring."""
    named = {
        "augment": ("mixup", "cutmix", "erase", "vflip"),
        "evaluate": ("real_labels", "class_subset"),
        "model": ("head_dropout",),
    }
    unused = [
        f"{section}.{name}"
        for section, names in named.items()
        for name in names
        if getattr(getattr(config, section), name)
    ]
    unused += ["augment.aug_splits"] if config.augment.aug_splits > 1 else []
    unused += ["evaluate.crops"] if config.evaluate.crops > 1 else []
    if unused:
        raise ConfigError(
            f"{', '.join(unused)}: not for {TASKS[config.task]}; start from one of its recipes "
            "(metaformer list --recipes)"
        )
