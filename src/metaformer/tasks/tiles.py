"""Where windows and tiles lie along one side of the network's input, and how they blend."""

import torch

from metaformer.tasks.bands import Span

GRID = 32
"""Tiles begin at multiples of it: there their maps of any stride fall on those of the whole."""


def whole(side: int) -> list[Span]:
    """One window over all."""
    return [Span(0, torch.ones(side))]


def windows(side: int, window: int, stride: int) -> list[Span]:
    """Windows a stride apart, the last moved back to end with the side; where they overlap, all count alike.

    So they lie in mmsegmentation, too.
    """
    window = min(window, side)
    count = -(-(side - window) // stride) + 1
    starts = [min(i * stride, side - window) for i in range(count)]
    return _shared(side, starts, torch.ones(window))


def tiles(side: int, tile: int, overlap: int) -> list[Span]:
    """Tiles evenly apart that overlap by `overlap` at least, each fading out into its neighbours there."""
    if side <= tile:
        return whole(side)
    count = -(-(side - tile) // (tile - overlap)) + 1
    stride = -(-(side - tile) // (count - 1) // GRID) * GRID
    starts = [min(i * stride, side - tile) for i in range(count)]
    rise = ((torch.arange(tile) + 0.5) / overlap).clamp_(max=1)
    return _shared(side, starts, torch.minimum(rise, rise.flip(0)))


def _shared(side: int, starts: list[int], weight: torch.Tensor) -> list[Span]:
    """Windows whose weights, these at first, sum to 1 at each pixel."""
    total = torch.zeros(side)
    for start in starts:
        total[start : start + len(weight)] += weight
    return [Span(start, weight / total[start : start + len(weight)]) for start in starts]
