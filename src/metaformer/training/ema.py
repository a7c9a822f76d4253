"""The exponential moving average of a model's weights and buffers."""

import copy

import torch
from torch import Tensor, nn

from metaformer.distributed import local


class Ema:
    """A copy of the model that follows it: `average = decay * average + (1 - decay) * value` at each step.

    Floating-point buffers (running statistics) are averaged too; whole numbers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model."""
        old, new = (
            {name: local(value) for name, value in of.state_dict().items()} for of in (self.model, model)
        )
        floats = [name for name, value in old.items() if value.is_floating_point()]
        averages: list[Tensor] = [old[name] for name in floats]
        torch._foreach_lerp_(averages, [new[name] for name in floats], 1 - self.decay)
        for name in old.keys() - floats:
            old[name].copy_(new[name])
