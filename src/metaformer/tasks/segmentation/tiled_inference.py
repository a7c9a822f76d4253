"""One look of a network at an image: in windows, row by row, as bands of the result need them."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from metaformer.errors import TrainingError
from metaformer.tasks.segmentation.resize_matrix import Axis, Span, reach

DenseForward = Callable[[Tensor], Tensor]
"""Normalized images (B, 3, h, w) to logits (B, K, *, *) at any resolution; the coarser, the less memory."""


class Sight(Protocol):
    """An image at the size that the network sees it in."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    def cut(self, rows: slice, columns: slice) -> Tensor:
        """A part of it, normalized (1, 3, h, w)."""


class TensorSight:
    """A normalized tensor (3, h, w)."""

    def __init__(self, image: Tensor) -> None:
        self.image = image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]

    def cut(self, rows: slice, columns: slice) -> Tensor:
        """A part of it (1, 3, h, w)."""
        return self.image[None, :, rows, columns]


class ImageSight:
    """A resized image; its parts become tensors when they are wanted, which take four times the room.

    Args:
        image: RGB.
        finish: makes an RGB image a normalized tensor (3, h, w).
    """

    def __init__(self, image: Image.Image, finish: Callable[[Image.Image], Tensor]) -> None:
        self.image, self.finish = image, finish

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.height, self.image.width

    def cut(self, rows: slice, columns: slice) -> Tensor:
        """A part of it, normalized (1, 3, h, w)."""
        return self.finish(self.image.crop((columns.start, rows.start, columns.stop, rows.stop)))[None]


class Strip(NamedTuple):
    """A band's part of the maps of windows that lie below each other."""

    axis: Axis
    """How their columns make the result's."""
    logits: Tensor
    """(K, rows of the band, columns of the map)."""


class Look:
    """Logits of an image by bands of rows of the result, which are asked for from top to bottom.

    The maps of a row of windows are held from the first band that needs them to the last.

    Args:
        forward: the network.
        sight: the image.
        grid: windows along its height, and along its width.
        size: height and width of the result.
        mirrored: show the network its mirror image, and mirror the answer back.
        name: what errors call the image.
    """

    def __init__(
        self,
        forward: DenseForward,
        sight: Sight,
        grid: tuple[list[Span], list[Span]],
        size: tuple[int, int],
        *,
        mirrored: bool = False,
        name: str | Path = "the image",
    ) -> None:
        self.forward, self.sight, self.mirrored, self.name = forward, sight, mirrored, name
        self.height, self.width = size
        rows = [(reach(span, sight.size[0], self.height), span) for span in grid[0]]
        self._waiting = deque((begin, span) for (begin, end), span in rows if end > begin)
        columns = [_mirrored(span, sight.size[1]) for span in reversed(grid[1])] if mirrored else grid[1]
        self._columns = [span for span in columns if reach(span, sight.size[1], self.width)[1]]
        self._axes: dict[tuple[int, int], Axis] = {}
        self._open: list[_Row] = []

    def band(self, start: int, stop: int) -> list[Strip]:
        """What the result's rows from `start` to `stop` are made of.

        Raises:
            TrainingError: logits that are not finite.
        """
        self._open = [row for row in self._open if row.axis.stop > start]
        while self._waiting and self._waiting[0][0] < stop:
            for row in self._open:
                row.trim(start)
            self._open.append(self._run(self._waiting.popleft()[1]))
        strips = []
        for column, span in enumerate(self._columns):
            logits = self._open[0].band(column, start, stop)
            for row in self._open[1:]:
                logits += row.band(column, start, stop)
            strips.append(Strip(self._axis(span, logits), logits))
        return strips

    def _axis(self, span: Span, logits: Tensor) -> Axis:
        cells = logits.shape[-1]
        if (span.start, cells) not in self._axes:
            side = self.sight.size[1]
            self._axes[span.start, cells] = Axis(cells, span, side, self.width, logits.device)
        return self._axes[span.start, cells]

    def _run(self, rows: Span) -> "_Row":
        maps = [self._logits(rows, columns) for columns in self._columns]
        axis = Axis(maps[0].shape[1], rows, self.sight.size[0], self.height, maps[0].device)
        return _Row(axis, maps)

    def _logits(self, rows: Span, columns: Span) -> Tensor:
        """Logits (K, *, *) of a window."""
        image = self.sight.cut(slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        logits = self.forward(image.flip(-1) if self.mirrored else image)[0].float()
        low, high = logits.aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise TrainingError(f"{self.name}: the model's logits are not finite")
        return (logits.flip(-1) if self.mirrored else logits).contiguous()  # bands are cut from planes


class _Row:
    """The maps of a row of windows, without what lies above the bands to come."""

    def __init__(self, axis: Axis, maps: list[Tensor]) -> None:
        self.axis, self.maps = axis, maps
        self._above = 0

    def band(self, column: int, start: int, stop: int) -> Tensor:
        """(K, rows, columns of the map)."""
        cells, matrix = self.axis.part(start, stop)
        cells = slice(cells.start - self._above, cells.stop - self._above)
        return torch.matmul(matrix, self.maps[column][:, cells])

    def trim(self, start: int) -> None:
        """Free what bands from `start` on do not need."""
        first = max(start, self.axis.start)
        above = self.axis.part(first, first + 1).cells.start
        for column, logits in enumerate(self.maps):
            self.maps[column] = logits[:, above - self._above :].clone()
        self._above = above


def _mirrored(span: Span, side: int) -> Span:
    return Span(side - span.stop, span.weight.flip(0))


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
    """Tiles evenly apart that overlap by `overlap` at least, each fading out into its neighbors there."""
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
