"""What a caller of `train` may do on the way: own logging, own rules of when to stop."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class TrainState:
    """A run after a step."""

    run: Path
    """Its directory."""
    step: int
    """Steps done."""
    total: int
    """Steps of the whole run."""
    epoch: int
    """Epochs begun, from 1."""
    metrics: Mapping[str, float]
    """In `on_step` losses, gradient norm and learning rate of this process; else the last evaluation's."""
    best: float
    """Best value so far of the metric that weights are chosen by; -inf before the first evaluation."""
    model: nn.Module
    """The network, to look at: a change of its weights is not part of a resumed run."""
    main: bool
    """Whether this process is the first of the run, which writes files."""


class Callback:
    """Base of callbacks: override what you need.

    Under torchrun every process calls its own. A method that returns True, in any of them, ends the run after
    this step, evaluated and saved like at its planned end.
    """

    def on_step(self, state: TrainState) -> bool | None:
        """After every optimizer step; a step that was skipped as not finite has no metrics."""

    def on_epoch(self, state: TrainState) -> bool | None:
        """After the last step of an epoch, and its evaluation where there is one."""

    def on_evaluate(self, state: TrainState) -> bool | None:
        """After every evaluation, also the one of a run that is ended early."""
