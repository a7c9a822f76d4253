"""Mixers swapped in a trained network, which is then fine-tuned."""

from dataclasses import replace
from pathlib import Path

import torch

from metaformer.config import TrainConfig
from metaformer.data.loader import Stop
from metaformer.distributed import World
from metaformer.study.plan import Plan
from metaformer.study.predict import evaluated_weights, last_checkpoint
from metaformer.study.results import Arm
from metaformer.study.runs import Run, run_config
from metaformer.tasks import TASKS
from metaformer.tasks.base import BuildTask, Task


def transfer_run(plan: Plan, arm: Arm, seed: int) -> Run:
    """The fine-tuning of one network, in the shape of the skeleton, whose other weights are there already."""
    assert plan.transfer is not None
    shape = replace(arm, overrides={})
    return Run(f"transfer-{arm.name}-seed{seed}", shape, "final", seed, plan.transfer.learning_rate, arm.name)


def transfer_config(plan: Plan, run: Run) -> TrainConfig:
    """Configuration of a fine-tuning: that of a run, for other epochs."""
    assert plan.transfer is not None
    config = run_config(plan, run)
    schedule = replace(config.schedule, epochs=plan.transfer.epochs, warmup_epochs=0, warmup_steps=None)
    return replace(config, schedule=schedule)


def swapped_task(donor: Path) -> BuildTask:
    """What trains a network that begins with a trained one's weights, in all parts that both have.

    Args:
        donor: run directory of the trained network.
    """

    def build(config: TrainConfig, world: World, stop: Stop | None = None) -> Task:
        task = TASKS[config.task].build(config, world, stop)
        given = last_checkpoint(donor).tensors(evaluated_weights(config))
        own = task.model.state_dict()
        shared = {name for name in own.keys() & given.keys() if own[name].shape == given[name].shape}
        with torch.no_grad():
            for name in shared:
                own[name].copy_(given[name])
        return task

    return build
