"""What the loop knows of a task."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from metaformer.data.dataset import AugmentedDataset, Batch

Forward = Callable[..., Any]
"""Images as the loader gives them to logits or objects, wherever and however precisely the run computes."""


class StepContext(NamedTuple):
    """Where in a run a batch stands: all that its randomness may depend on, with the seed."""

    step: int
    """Optimizer step since the start of the run."""
    epoch: int
    part: int = 0
    """Which of the step's batches, over ranks and micro-batches."""


class Report(Protocol):
    """What an evaluation found."""

    @property
    def metrics(self) -> dict[str, float]: ...

    def to_dict(self) -> dict[str, Any]: ...

    def text(self) -> str: ...


class Task(Protocol):
    """Model, data, losses and figures of one thing to learn; the loop needs nothing else."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def train(self) -> AugmentedDataset: ...

    @property
    def metric(self) -> str:
        """The figure of the report by which the best weights are chosen; higher is better."""

    def losses(self, model: nn.Module, batch: Batch, moment: StepContext) -> dict[str, Tensor]:
        """Losses of a batch on the model's device; `loss` is what is minimized, the others are logged."""

    def names(self, batch: Batch) -> list[str]:
        """Files that a batch came from."""

    def evaluate(self, forward: Forward) -> Report:
        """Measure on the validation data."""

    def close(self) -> None:
        """Stop the processes that read validation data."""

    def card(self) -> dict[str, Any]:
        """Everything that a checkpoint must say for the model to be built and used again, as plain values."""

    def hub_card(self) -> dict[str, Any]:
        """The same as `from_pretrained` reads it."""
