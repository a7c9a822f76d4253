"""Validate a TrainConfig."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from operator import attrgetter
from typing import Any, Final

from metaformer.config import DataConfig, TrainConfig
from metaformer.errors import ConfigError, MissingPackage
from metaformer.serialize import NATURAL, NON_NEGATIVE, POSITIVE, POSITIVE_INT, Range, check_ranges
from metaformer.tasks import TASKS
from metaformer.tasks.base import TaskSpec


@dataclass(frozen=True)
class OrAuto:
    """Numbers, or `auto`."""

    numbers: Range

    def __contains__(self, value: object) -> bool:
        return value == "auto" or value in self.numbers

    def __str__(self) -> str:
        return f"{self.numbers}, or auto"


RATE: Final = Range(0, 1, below=True)
SHARE: Final = Range(0, 1, above=True)
RANGES: Final[Mapping[str, Container[Any]]] = {
    "seed": Range(1 - 2**63, 2**63 - 1, integer=True),  # of PyTorch's generators
    "model.drop_path_rate": RATE,
    "model.head_dropout": RATE,
    "model.freeze": NATURAL,
    "data.val_fraction": Range(0, 1, above=True, below=True),
    "data.image_size": POSITIVE_INT,
    "data.batch_size": OrAuto(POSITIVE_INT),
    "data.eval_batch_size": POSITIVE_INT,
    "data.workers": NATURAL,
    "data.repeated_aug": POSITIVE_INT,
    "augment.aug_splits": POSITIVE_INT,
    "augment.mix_off_epoch": NATURAL,
    "loss.smoothing": RATE,
    "optim.lr": OrAuto(POSITIVE),
    "optim.weight_decay": NON_NEGATIVE,
    "optim.eps": POSITIVE,
    "optim.betas": RATE,
    "optim.clip": POSITIVE,
    "optim.accumulate": POSITIVE_INT,
    "optim.layer_decay": SHARE,
    "schedule.power": POSITIVE,
    "schedule.gamma": POSITIVE,
    "schedule.milestones": POSITIVE_INT,
    "schedule.epochs": POSITIVE_INT,
    "schedule.steps": POSITIVE_INT,
    "schedule.warmup_epochs": NON_NEGATIVE,
    "schedule.warmup_steps": NATURAL,
    "schedule.warmup_lr": NON_NEGATIVE,
    "schedule.min_lr": NON_NEGATIVE,
    "schedule.cooldown_epochs": NATURAL,
    "schedule.patience": POSITIVE_INT,
    "ema.decay": RATE,
    "evaluate.crop": SHARE,
    "evaluate.every": POSITIVE_INT,
    "evaluate.every_steps": NATURAL,
    "runtime.threads": POSITIVE_INT,
    "runtime.save_every": NATURAL,
    "runtime.keep": POSITIVE_INT,
    "runtime.log_every": POSITIVE_INT,
}


def check_config(config: TrainConfig, world_size: int = 1) -> None:
    """Check ranges, fields that depend on each other, and what the task has no use for.

    Raises:
        ConfigError: the first field that is wrong, with what it must be.
        MissingPackage: a field needs a package that is not installed.
    """
    if not isinstance(config, TrainConfig):
        raise ConfigError(
            f"a {type(config).__name__} is no TrainConfig: "
            "metaformer.serialize.from_dict(TrainConfig, …) builds one from plain values"
        )
    check_ranges(config, RANGES)
    _check_dependent(config, world_size)
    spec = TASKS[config.task]
    _check_other_sections(config, spec)
    _check_unused(config, spec)
    if config.data.group is not None and config.data.val_fraction is None:
        raise ConfigError("data.group keeps images together in what data.val_fraction divides: give both")
    if config.data.val_fraction is not None and config.data.val != DataConfig().val:
        raise ConfigError("data.val names a validation split and data.val_fraction holds one out: choose one")
    spec.check_config(config)
    if config.runtime.wandb is not None and find_spec("wandb") is None:
        raise MissingPackage("wandb", "wandb", "runtime.wandb")


def _check_dependent(config: TrainConfig, world_size: int) -> None:
    """Check fields against each other; those that are still `auto` are checked once they are found."""
    parts, batch_size = world_size * config.optim.accumulate, config.data.batch_size
    if isinstance(batch_size, int):
        if batch_size % parts:
            raise ConfigError(
                f"data.batch_size {batch_size} cannot be divided among {world_size} device(s) × "
                f"optim.accumulate {config.optim.accumulate}: choose a multiple of {parts}"
            )
        _check_pooled_norm(config, batch_size, parts, world_size)
    elif config.runtime.parallel == "fsdp" and world_size > 1:
        raise ConfigError(
            "data.batch_size auto measures a whole network on a device, which runtime.parallel fsdp divides: "
            "give a number"
        )
    lr = config.optim.lr
    if config.schedule.name != "constant" and isinstance(lr, float) and config.schedule.min_lr > lr:
        raise ConfigError(
            f"schedule.min_lr {config.schedule.min_lr} is above optim.lr {lr}: the learning rate would rise"
        )
    if not config.data.root:
        raise ConfigError("data.root is empty: give the folder of the data set")


def _check_pooled_norm(config: TrainConfig, batch_size: int, parts: int, world_size: int) -> None:
    """Refuse a batch norm with one value of each channel: UperNet's coarsest level is 1×1 pixel."""
    synchronized = config.runtime.sync_batch_norm and world_size > 1 and config.runtime.device != "cpu"
    one_image = batch_size == parts and not synchronized
    if config.segment.head == "upernet" and one_image:  # other tasks leave the section as it is
        fewer = batch_size // 2 // world_size
        remedy = f"optim.accumulate {fewer}" if fewer else f"data.batch_size {2 * parts}"
        raise ConfigError(
            f"data.batch_size {batch_size} is one image in each pass of a device, and UperNet's "
            f"batch norm over its 1×1 map needs two: set {remedy}"
        )


def other_sections(spec: TaskSpec) -> set[str]:
    """Sections of TrainConfig that only other tasks read."""
    return {other.section for other in TASKS.values()} - {spec.section}


def _check_other_sections(config: TrainConfig, spec: TaskSpec) -> None:
    """Refuse changed fields of sections for other tasks: they would have no effect."""
    default = TrainConfig()
    for section in sorted(other_sections(spec)):
        own, defaults = getattr(config, section), getattr(default, section)
        names = [field.name for field in fields(own)]
        changed = [f"{section}.{n}" for n in names if getattr(own, n) != getattr(defaults, n)]
        if changed:
            raise ConfigError(f"{', '.join(changed)}: no option of {spec.title}; leave it out")


def _check_unused(config: TrainConfig, spec: TaskSpec) -> None:
    """Refuse fields of shared sections that the task does not use."""
    used = [name for name, off in spec.unused.items() if attrgetter(name)(config) != off]
    if used:
        raise ConfigError(
            f"{', '.join(used)}: no option of {spec.title}; start from one of its recipes "
            "(metaformer list --recipes)"
        )
