"""Where in a network numbers stop being finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from torch import Tensor, nn

REMEDIES: Final = {
    "input": "look at these images and the augmentation",
    "weights": "they were so before this step: go on from an earlier checkpoint, or another one",
    "loss": "try a smaller optim.lr, optim.clip 1, or runtime.amp bf16 or none",
    "gradient": "try a smaller optim.lr, or runtime.amp bf16 or none",
}


class Fault(NamedTuple):
    """What was not finite in a step."""

    what: str
    """A key of REMEDIES."""
    place: str
    """The first module, parameter or image."""
    files: list[str]
    """The images that were looked at."""

    def told(self, most: int = 8) -> str:
        """Say it in one line, with a remedy and so many of the images."""
        rest = f" and {len(self.files) - most} more" if len(self.files) > most else ""
        return (
            f"the {self.what} is not finite, first at {self.place}; the step is refused, weights are as "
            f"before it ({REMEDIES[self.what]}). Images: {', '.join(self.files[:most])}{rest}"
        )


class Outputs:
    """The first module of a forward pass whose output is not finite, once there is one."""

    def __init__(self) -> None:
        self.first: str | None = None


@contextmanager
def watched(model: nn.Module) -> Iterator[Outputs]:
    """Watch what the modules of a model give, for as long as it lasts."""
    found = Outputs()

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if found.first is None and isinstance(output, Tensor) and not finite(output):
                found.first = name

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def bad_weight(model: nn.Module) -> str | None:
    """The first parameter or buffer that is not finite."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return next((name for name, value in state.items() if not finite(value)), None)


def bad_gradient(model: nn.Module) -> str | None:
    """The first parameter, in the order of the backward pass, whose gradient is not finite."""
    parameters = [(name, value.grad) for name, value in model.named_parameters()]
    return next((name for name, grad in reversed(parameters) if grad is not None and not finite(grad)), None)


def finite(value: Tensor) -> bool:
    """Tell whether all of a tensor's numbers are."""
    value = getattr(value, "_local_tensor", value)  # of what FSDP shares out, this rank's part
    return not value.is_floating_point() or bool(value.isfinite().all())
