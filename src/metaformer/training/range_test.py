"""Learning-rate range test (https://arxiv.org/abs/1506.01186, section 3.3).

A copy of the network is trained for up to STEPS steps, while the rate grows from step to step by the same
factor. The rate at which the loss falls fastest is chosen, as fastai and Lightning do.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from metaformer.checkpoint.checkpoint import random_state_kept
from metaformer.config import EmaConfig, TrainConfig
from metaformer.data.dataset import Batch
from metaformer.data.loader import Stop
from metaformer.data.sampler import TrainSampler
from metaformer.distributed import World, all_reduce_sum, lockstep
from metaformer.errors import TrainingError
from metaformer.report.readable import Readable
from metaformer.tasks.base import Task
from metaformer.training.loop import training_loader
from metaformer.training.schedule import Schedule
from metaformer.training.trainer import NonFiniteError, Trainer

FIRST: Final = 1e-6
LAST: Final = 10.0
"""Learning rates of the first and the last step."""
STEPS: Final = 100
DIVERGED: Final = 4.0
"""Multiple of the lowest loss so far, smoothed, that ends the test."""
SKIPPED: Final = 10
"""First steps, whose rates are too low to be chosen; the loss is compared with theirs."""
WIDTH: Final = 3.0
"""Standard deviation of the Gaussian that smooths the losses, in steps."""
LEAST_FALL: Final = 0.01
"""Share of the first losses by which the loss must fall; it must also fall by more than they scatter."""


@dataclass(frozen=True, repr=False)
class RangeTest(Readable):
    """A learning-rate range test."""

    lr: float
    """The rate at which the smoothed loss falls fastest, rounded to two digits."""
    rates: tuple[float, ...]
    """Learning rate of each step."""
    losses: tuple[float, ...]
    """Loss of each step."""

    def text(self) -> str:
        """The rate, and what was tried."""
        return (
            f"optim.lr {self.lr:g}: the loss falls fastest there, in a range test of {len(self.losses)} "
            f"steps from {self.rates[0]:g} to {self.rates[-1]:.2g}"
        )


def run_range_test(
    config: TrainConfig, task: Task, sampler: TrainSampler, world: World, stop: Stop
) -> RangeTest:
    """Find a run's learning rate on a copy of its network; task, sampler and random state stay as they are.

    Args:
        config: the run; its `optim.lr` is not read, and it has neither EMA nor compilation here.
        task: network, data and losses.
        sampler: order of the training images, of its own for this test.
        world: the run's devices; under torchrun all processes call this.
        stop: asked while data are waited for.

    Raises:
        TrainingError: the loss does not fall, or is not finite from the start.
        Interrupted: `stop` returned True.
    """
    plan = replace(
        config,
        ema=EmaConfig(),
        optim=replace(config.optim, lr=FIRST),
        runtime=replace(config.runtime, compile=False),
    )
    with random_state_kept(world.device):
        trial = copy.copy(task)
        trial.model = copy.deepcopy(task.model)
        schedule = Schedule(FIRST, STEPS - 1, min_lr=LAST, shape="exponential")
        losses = _losses(plan, Trainer(plan, trial, schedule, world), sampler, world, stop)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)  # the log's is that of the run
    rates = [schedule(step) for step in range(len(losses))]
    return RangeTest(steepest(rates, losses), tuple(rates), tuple(losses))


def _losses(
    config: TrainConfig, trainer: Trainer, sampler: TrainSampler, world: World, stop: Stop
) -> list[float]:
    """Loss of each step, up to the last or the one after which it has diverged."""
    losses: list[float] = []
    loader = training_loader(config, trainer.task, sampler, range(STEPS), world, stop)
    try:
        for batches in lockstep(_steps(iter(loader), sampler.accumulate), STEPS):
            epoch = trainer.step // sampler.steps
            try:
                loss = trainer.take_step(batches, epoch)["loss"]
            except NonFiniteError as error:
                if len(losses) <= SKIPPED:
                    raise TrainingError(
                        "optim.lr auto: the loss of the first steps is not finite, though their rates are "
                        f"low, so that there is nothing to search ({error})"
                    ) from error
                break
            losses.append(float(all_reduce_sum(torch.tensor(loss, dtype=torch.float64))) / world.size)
            curve = smoothed(losses)
            if len(losses) > SKIPPED and curve[-1] > DIVERGED * curve.min():
                break
    finally:
        loader.close()
    return losses


def _steps(batches: Iterator[Batch], accumulate: int) -> Iterator[list[Batch]]:
    """The micro-batches of each step."""
    return iter(lambda: list(islice(batches, accumulate)), [])


def smoothed(losses: Sequence[float]) -> NDArray[np.float64]:
    """Losses, averaged with their neighbors."""
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / WIDTH) ** 2)
    average: NDArray[np.float64] = weights @ np.asarray(losses) / weights.sum(axis=1)
    return average


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the smoothed loss falls fastest, rounded to two digits.

    Args:
        rates: of each step, each as many times the one before.
        losses: of each step.

    Raises:
        TrainingError: the loss does not fall.
    """
    first = np.asarray(losses[:SKIPPED])
    before = float(first.mean())
    curve = smoothed(np.minimum(losses, 2 * before).tolist())  # how far it rises does not matter
    lowest = int(curve.argmin())
    if lowest <= SKIPPED or before - curve[lowest] <= max(float(first.std()), LEAST_FALL * before):
        raise TrainingError(
            f"optim.lr auto: the loss does not fall at any rate from {rates[0]:g} to {rates[-1]:.2g} "
            f"({before:.4g} at first, {curve[lowest]:.4g} at best): give optim.lr a number, and check the "
            "labels, model.freeze and data.batch_size"
        )
    slopes = np.gradient(curve)[SKIPPED : lowest + 1]
    return float(f"{rates[SKIPPED + int(slopes.argmin())]:.1e}")
