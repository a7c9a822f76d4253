"""Base of mixers whose weights belong to the positions of one grid."""

import logging
from abc import abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from metaformer.errors import GridError

_log = logging.getLogger(__name__)


class FixedGrid(nn.Module):
    """Mixer over the positions of one grid.

    At another size it raises `GridError`, or, with `grid_mode="interpolate"`, resamples the tokens to its
    grid, mixes, and resamples back.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in cls.__dict__:
            _log.warning(
                "%s overrides FixedGrid.forward: other sizes then neither raise GridError nor are resampled; "
                "define mix(tokens) instead, or derive from nn.Module",
                cls.__qualname__,
            )

    def __init__(self, grid: tuple[int, int], grid_mode: str = "strict") -> None:
        super().__init__()
        self.grid = grid
        self.grid_mode = grid_mode

    @abstractmethod
    def mix(self, tokens: Tensor) -> Tensor:
        """Mix the tokens (B, C, N) of the grid's N = H·W positions."""

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        if isinstance(x, Proxy) or size == self.grid:  # a symbolic size cannot be compared
            return self.mix(x.flatten(2)).reshape(x.shape)
        if self.grid_mode == "strict":
            raise GridError(f"{type(self).__name__} mixer", self.grid, size)
        on_grid = F.interpolate(x, self.grid, mode="bilinear", align_corners=False)
        mixed = self.mix(on_grid.flatten(2)).reshape(on_grid.shape)
        return F.interpolate(mixed, size, mode="bilinear", align_corners=False)
