"""What can be known to be wrong before any work is done."""

import math
from dataclasses import fields
from importlib.util import find_spec
from operator import attrgetter

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, MissingPackage
from metaformer.tasks import TASKS
from metaformer.tasks.base import TaskSpec

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
    spec = TASKS[config.task]
    _check_sections(config, spec)
    _check_unused(config, spec)
    spec.check_config(config)
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
    if not config.data.root:
        raise ConfigError("data.root is empty: give the folder that holds the data set")


def other_sections(spec: TaskSpec) -> set[str]:
    """Sections of TrainConfig that only other tasks read."""
    return {other.section for other in TASKS.values()} - {spec.section}


def _check_sections(config: TrainConfig, spec: TaskSpec) -> None:
    """Refuse changed fields of sections that are for other tasks: they would do nothing."""
    default = TrainConfig()
    for section in sorted(other_sections(spec)):
        ours, theirs = getattr(config, section), getattr(default, section)
        changed = [
            f"{section}.{f.name}" for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)
        ]
        if changed:
            raise ConfigError(f"{', '.join(changed)}: no option of {spec.title}; leave it out")


def _check_unused(config: TrainConfig, spec: TaskSpec) -> None:
    """Refuse fields of shared sections that the task does not use."""
    named = {name: attrgetter(name)(config) for name in spec.unused}
    used = [name for name, value in named.items() if value != spec.unused[name]]
    if used:
        raise ConfigError(
            f"{', '.join(used)}: no option of {spec.title}; start from one of its recipes "
            "(metaformer list --recipes)"
        )
