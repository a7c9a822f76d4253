"""Stochastic depth, https://arxiv.org/abs/1603.09382."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, drop a branch for whole samples at random, and divide the others by 1 − rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors(x)
        return x if factors is None else x * factors

    @property
    def drops(self) -> bool:
        """Whether anything is dropped now."""
        return self.training and self.rate > 0.0

    def factors(self, x: Tensor) -> Tensor | None:
        """Factors of the samples of x, (B, 1, 1, 1), drawn anew; none where nothing is dropped."""
        if not self.drops:
            return None
        survival = 1.0 - self.rate
        return x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(survival).div_(survival)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"
