"""Where a training step first produces NaN or infinity."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

from torch import Tensor, nn

REMEDIES: Final = {
    "input": "check these images and the augmentation",
    "weights": "they already were before this step: resume from an earlier checkpoint",
    "loss": "try a smaller optim.lr, optim.clip 1, or runtime.amp bf16 or none",
    "gradient": "try a smaller optim.lr, or runtime.amp bf16 or none",
}


class NonFinite(NamedTuple):
    """The first NaN or infinity of a step."""

    kind: str
    """A key of REMEDIES."""
    location: str
    """The first module, parameter or image."""
    files: list[str]
    """Image files of the batch."""

    def message(self, max_files: int = 8) -> str:
        """One line with the remedy and up to `max_files` of the images."""
        rest = f" and {len(self.files) - max_files} more" if len(self.files) > max_files else ""
        return (
            f"the {self.kind} is not finite, first at {self.location}; the step was not taken, weights are "
            f"unchanged ({REMEDIES[self.kind]}). Images: {', '.join(self.files[:max_files])}{rest}"
        )


@contextmanager
def record_nonfinite(model: nn.Module) -> Iterator[list[str]]:
    """Record the first module of a forward pass whose output is not finite: a list of at most one name."""
    found: list[str] = []

    def record(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if not found and isinstance(output, Tensor) and not is_finite(output):
            found.append(name)

    hooks = [
        module.register_forward_hook(partial(record, name)) for name, module in model.named_modules() if name
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def nonfinite_weight(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer that is not finite."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return next((name for name, value in state.items() if not is_finite(value)), None)


def nonfinite_gradient(model: nn.Module) -> str | None:
    """Name of the parameter whose gradient was the first in the backward pass not to be finite."""
    gradients = [(name, value.grad) for name, value in model.named_parameters() if value.grad is not None]
    return next((name for name, grad in reversed(gradients) if not is_finite(grad)), None)


def is_finite(value: Tensor) -> bool:
    """Whether all values of a tensor are finite; of a sharded one, this rank's shard."""
    value = getattr(value, "_local_tensor", value)
    return not value.is_floating_point() or bool(value.isfinite().all())
