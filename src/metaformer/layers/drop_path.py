"""Stochastic depth, https://arxiv.org/abs/1603.09382."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Leave a branch out for whole samples by chance while training; the others are scaled up for it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"
