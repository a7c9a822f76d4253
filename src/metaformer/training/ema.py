"""Exponential moving average of a model's weights and buffers."""

import copy

import torch
from torch import Tensor, nn

from metaformer.distributed import local


class Ema:
    """A copy of the model, updated as `average = decay * average + (1 - decay) * value` at each step.

    Floating-point buffers (running statistics) are averaged too; integers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average in the model's current weights."""
        average, current = (
            {name: local(value) for name, value in source.state_dict().items()}
            for source in (self.model, model)
        )
        floats = [name for name, value in average.items() if value.is_floating_point()]
        averages: list[Tensor] = [average[name] for name in floats]
        torch._foreach_lerp_(averages, [current[name] for name in floats], 1 - self.decay)
        for name in average.keys() - floats:
            average[name].copy_(current[name])
