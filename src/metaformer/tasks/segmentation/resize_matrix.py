"""Bilinear resizes written out along one side, so that any band of the result can be had alone."""

from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """A window along one side of the network's input."""

    start: int
    """Its first pixel."""
    weight: Tensor
    """How much each of its pixels counts (pixels,); over all windows these sum to 1."""

    @property
    def stop(self) -> int:
        """The pixel after its last."""
        return self.start + len(self.weight)


class Part(NamedTuple):
    """How some pixels of the result are made."""

    cells: slice
    """What they are made of."""
    matrix: Tensor
    """Weights (pixels, cells)."""


class Axis:
    """How cells along one side of a window's map spread over that side of the result.

    They are resized to the window's pixels, weighted, and resized with the whole input to the result.

    Args:
        cells: of the map.
        span: the window.
        side: pixels of the network's input.
        pixels: of the result.
        device: where the weights are wanted.
    """

    def __init__(self, cells: int, span: Span, side: int, pixels: int, device: torch.device) -> None:
        self.start, self.stop = reach(span, side, pixels)
        self._device = device
        self._parts: dict[tuple[int, int], Part] = {}
        outer, share = bilinear(side, pixels)
        outer, share = outer[self.start : self.stop], share[self.start : self.stop]
        inside = (outer >= span.start) & (outer < span.stop)
        place = (outer - span.start).clamp_(0, len(span.weight) - 1)
        inner, inner_share = bilinear(cells, len(span.weight))
        weight = (share * span.weight[place] * inside)[..., None] * inner_share[place]  # (pixels, 2, 2)
        self._cells, self._weight = inner[place].flatten(1), weight.flatten(1)

    def part(self, start: int, stop: int) -> Part:
        """How the result's pixels from `start` to `stop` are made; some of them must be within reach."""
        made = self._parts.get((start, stop))
        if made is None:
            made = self._parts[start, stop] = self._part(start, stop)
        return made

    def _part(self, start: int, stop: int) -> Part:
        first, last = max(start, self.start), min(stop, self.stop)
        cells, weight = (rows[first - self.start : last - self.start] for rows in (self._cells, self._weight))
        low, high = (int(end) for end in cells.aminmax())
        matrix = torch.zeros(stop - start, high + 1 - low)
        matrix[first - start : last - start].scatter_add_(1, cells - low, weight)
        return Part(slice(low, high + 1), matrix.to(self._device))


def reach(span: Span, side: int, pixels: int) -> tuple[int, int]:
    """First of the result's pixels that a window has part in, and the one after the last; (0, 0) of none."""
    outer, share = bilinear(side, pixels)
    touched = ((outer >= span.start) & (outer < span.stop) & (share > 0)).any(dim=1).nonzero()
    return (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 0)


def bilinear(source: int, target: int) -> tuple[Tensor, Tensor]:
    """Which two of `source` pixels make each of `target`, and their shares, both (target, 2).

    As `F.interpolate(mode="bilinear", align_corners=False)` has it, rounding included.
    """
    if source == target:
        return torch.arange(target)[:, None].expand(-1, 2), torch.tensor([1.0, 0.0]).expand(target, 2)
    scale = float(torch.tensor(source / target, dtype=torch.float32))
    place = (torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5
    place = place.clamp_(min=0).float()  # rounded only now, as torch's fused operations do
    low = place.long().clamp_(max=source - 1)
    share = (place - low).clamp_(0, 1)
    return torch.stack([low, (low + 1).clamp_(max=source - 1)], 1), torch.stack([1 - share, share], 1)
