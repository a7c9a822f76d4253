"""Learning-rate schedules as pure functions of the step."""

import math
from dataclasses import dataclass

from metaformer.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine or another shape, then cool-down; lengths are in steps.

    As in timm's and OpenMMLab's recipes the shape spans the whole schedule, and warm-up replaces its start.
    """

    lr: float
    """Peak learning rate."""
    steps: int
    """Steps of warm-up and shape together."""
    warmup_steps: float = 0
    warmup_lr: float = 0.0
    """Learning rate at step 0, where there is a warm-up."""
    min_lr: float = 0.0
    """Learning rate at the end, and in the cool-down."""
    cooldown_steps: int = 0
    shape: str = "cosine"
    """`cosine`, `poly`, `step`, `constant`, or `exponential`, which only range tests have."""
    power: float = 0.9
    """Exponent of `poly`."""
    milestones: tuple[int, ...] = ()
    """Steps at which `step` lowers the rate."""
    gamma: float = 0.1
    """Factor of `step` at each milestone."""

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.steps + self.cooldown_steps

    def __call__(self, step: int) -> float:
        """Learning rate of this step, counted from 0."""
        if step < min(self.warmup_steps, self.steps):
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        if step >= self.steps:
            return self.min_lr
        if self.shape == "constant":
            return self.lr
        if self.shape == "step":
            return self.lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.shape == "exponential":
            return self.lr * (self.min_lr / self.lr) ** (step / self.steps)
        if self.shape == "poly":
            return self.min_lr + (self.lr - self.min_lr) * (1 - step / self.steps) ** self.power
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * step / self.steps)) / 2


def build_schedule(config: TrainConfig, epoch_steps: int) -> Schedule:
    """The schedule of a run whose epochs have this many steps."""
    plan = config.schedule
    return Schedule(
        config.optim.peak_lr,
        plan.epochs * epoch_steps if plan.steps is None else plan.steps,
        plan.warmup_epochs * epoch_steps if plan.warmup_steps is None else plan.warmup_steps,
        plan.warmup_lr,
        plan.min_lr,
        plan.cooldown_epochs * epoch_steps,
        plan.name,
        plan.power,
        tuple(epoch * epoch_steps for epoch in plan.milestones),
        plan.gamma,
    )
