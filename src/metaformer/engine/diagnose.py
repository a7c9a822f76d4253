"""Where in a network numbers stop being finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


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
