"""Stochastic depth, https://arxiv.org/abs/1603.09382."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, drop a branch for whole samples at random, and divide the others by 1 − rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        survival = 1.0 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(survival).div_(survival)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"
