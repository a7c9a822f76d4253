"""Logits of an image in windows, resized and merged one block of rows at a time.

The published pipeline resizes the logits of each window bilinearly to the window's pixels, averages windows
where they overlap, and resizes the average from the network's input to the original image. Done literally,
150 classes at 8000 × 6000 pixels take 29 GB. But bilinear resizing is linear and separable, so all of this is
one matrix per window and axis:

    result[k] = Σ_windows  A · logits[k] · Bᵀ        (H, h) · (h, w) · (w, W)
    A[y, i]   = Σ_v  outer[y, v] · weight[v] · inner[v, i]

`inner` resizes the cells i of the logits to the window's pixels v, `weight` is the window's share in pixel v
(over all windows the shares sum to 1), `outer` resizes the pixels v of the input to the rows y of the result;
B is the same along the width. Rows of A are independent: the result is computed in blocks of rows, and the
logits of a row of windows are freed once no later block needs them.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from metaformer.errors import TrainingError

LogitsFn = Callable[[Tensor], Tensor]
"""Normalized images (B, 3, H, W) to logits (B, K, h, w) at any stride; a larger one takes less memory."""
TILE_GRID = 32
"""Tiles begin at multiples of the largest stride, so that their cells are those of the whole image."""


class Window(NamedTuple):
    """Window along one axis of the network's input."""

    start: int
    """First pixel."""
    weight: Tensor
    """Share of the window in each of its pixels; over all windows these sum to 1."""

    @property
    def stop(self) -> int:
        """Pixel after the last."""
        return self.start + len(self.weight)


def single_window(side: int) -> list[Window]:
    """One window over the whole side."""
    return [Window(0, torch.ones(side))]


def sliding_windows(side: int, window: int, stride: int) -> list[Window]:
    """Windows a stride apart, averaged on overlaps; the last ends with the side, as in mmsegmentation."""
    window = min(window, side)
    count = -(-(side - window) // stride) + 1
    starts = [min(i * stride, side - window) for i in range(count)]
    return _normalized(side, starts, torch.ones(window))


def tile_windows(side: int, tile: int, overlap: int) -> list[Window]:
    """Evenly spaced tiles that overlap by at least `overlap` pixels and are blended linearly there."""
    if side <= tile:
        return single_window(side)
    count = -(-(side - tile) // (tile - overlap)) + 1
    stride = -(-(side - tile) // (count - 1) // TILE_GRID) * TILE_GRID
    starts = [min(i * stride, side - tile) for i in range(count)]
    ramp = ((torch.arange(tile) + 0.5) / overlap).clamp_(max=1)
    return _normalized(side, starts, torch.minimum(ramp, ramp.flip(0)))


def _normalized(side: int, starts: list[int], weight: Tensor) -> list[Window]:
    """Windows of equal weights, divided by the sum over all windows at each pixel."""
    total = torch.zeros(side)
    for start in starts:
        total[start : start + len(weight)] += weight
    return [Window(start, weight / total[start : start + len(weight)]) for start in starts]


def _mirrored(window: Window, side: int) -> Window:
    return Window(side - window.stop, window.weight.flip(0))


def bilinear_taps(source: int, target: int) -> tuple[Tensor, Tensor]:
    """Indices and weights of the two source pixels of each target pixel, both (target, 2).

    The values of `F.interpolate(mode="bilinear", align_corners=False)`, rounding included.
    """
    if source == target:
        return torch.arange(target)[:, None].expand(-1, 2), torch.tensor([1.0, 0.0]).expand(target, 2)
    scale = float(torch.tensor(source / target, dtype=torch.float32))
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5
    position = position.clamp_(min=0).float()  # rounded only now, as in torch's fused multiply-add
    low = position.long().clamp_(max=source - 1)
    fraction = (position - low).clamp_(0, 1)
    return torch.stack([low, (low + 1).clamp_(max=source - 1)], 1), torch.stack([1 - fraction, fraction], 1)


def output_range(window: Window, side: int, pixels: int) -> tuple[int, int]:
    """Range of the result's pixels to which a window contributes; (0, 0) if there are none."""
    taps, weights = bilinear_taps(side, pixels)
    touched = ((taps >= window.start) & (taps < window.stop) & (weights > 0)).any(dim=1).nonzero()
    return (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 0)


class MatrixBlock(NamedTuple):
    """Rows of a resize matrix, without the columns that are zero in all of them."""

    cells: slice
    """The columns: cells of the logits."""
    weights: Tensor
    """(rows, cells)."""


class ResizeMatrix:
    """The matrix A (or B) of the module's formula for one window and one axis, as four taps per row.

    Args:
        cells: logits of the window along this axis.
        window: the window.
        side: pixels of the network's input along this axis.
        pixels: pixels of the result along this axis.
        device: device of the blocks.
    """

    def __init__(self, cells: int, window: Window, side: int, pixels: int, device: torch.device) -> None:
        self.start, self.stop = output_range(window, side, pixels)  # all other rows are zero
        self._device = device
        self._blocks: dict[tuple[int, int], MatrixBlock] = {}
        outer, outer_weights = (taps[self.start : self.stop] for taps in bilinear_taps(side, pixels))
        inner, inner_weights = bilinear_taps(cells, len(window.weight))
        inside = (outer >= window.start) & (outer < window.stop)
        v = (outer - window.start).clamp_(0, len(window.weight) - 1)  # (rows, 2) pixels of the window
        weights = (outer_weights * window.weight[v] * inside)[..., None] * inner_weights[v]  # (rows, 2, 2)
        self._cells, self._weights = inner[v].flatten(1), weights.flatten(1)  # (rows, 4)

    def block(self, start: int, stop: int) -> MatrixBlock:
        """Rows `start` to `stop`, of which some must be in the matrix's own range."""
        if (start, stop) not in self._blocks:
            first, last = max(start, self.start), min(stop, self.stop)
            cells = self._cells[first - self.start : last - self.start]
            weights = self._weights[first - self.start : last - self.start]
            low, high = (int(end) for end in cells.aminmax())
            dense = torch.zeros(stop - start, high + 1 - low)
            dense[first - start : last - start].scatter_add_(1, cells - low, weights)
            self._blocks[start, stop] = MatrixBlock(slice(low, high + 1), dense.to(self._device))
        return self._blocks[start, stop]


class ImageView(Protocol):
    """An image at the size of the network's input."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    def crop(self, rows: slice, columns: slice) -> Tensor:
        """A normalized crop (1, 3, h, w)."""


class TensorView:
    """`ImageView` of a normalized tensor (3, H, W)."""

    def __init__(self, image: Tensor) -> None:
        self.image, self.size = image, (image.shape[1], image.shape[2])

    def crop(self, rows: slice, columns: slice) -> Tensor:
        """A crop (1, 3, h, w)."""
        return self.image[None, :, rows, columns]


class PILView:
    """`ImageView` of a resized PIL image; only crops become tensors, which take four times the memory.

    Args:
        image: RGB.
        to_tensor: RGB image to normalized tensor (3, h, w).
    """

    def __init__(self, image: Image.Image, to_tensor: Callable[[Image.Image], Tensor]) -> None:
        self.image, self.size, self.to_tensor = image, (image.height, image.width), to_tensor

    def crop(self, rows: slice, columns: slice) -> Tensor:
        """A normalized crop (1, 3, h, w)."""
        return self.to_tensor(self.image.crop((columns.start, rows.start, columns.stop, rows.stop)))[None]


class LogitsStrip(NamedTuple):
    """The row product A · logits of a block of rows, summed over a column of windows."""

    matrix: ResizeMatrix
    """B: the cells of the columns to the result's columns."""
    logits: Tensor
    """(K, rows of the block, cells of the columns)."""


class View:
    """Logits of one view of an image (one scale, mirrored or not), by blocks of rows from top to bottom.

    Args:
        forward: the network.
        image: the image at the size of this view.
        windows: windows along the height, and along the width.
        size: height and width of the result.
        mirrored: mirror the image for the network, and its logits back.
        name: name of the image in errors.
    """

    def __init__(
        self,
        forward: LogitsFn,
        image: ImageView,
        windows: tuple[list[Window], list[Window]],
        size: tuple[int, int],
        *,
        mirrored: bool = False,
        name: str | Path = "the image",
    ) -> None:
        self.forward, self.image, self.mirrored, self.name = forward, image, mirrored, name
        self.height, self.width = size
        height, width = image.size
        ranges = [(output_range(window, height, self.height), window) for window in windows[0]]
        # (first row of the result, window); downsampling may leave windows without any row or column
        self._waiting = deque((start, window) for (start, stop), window in ranges if stop > start)
        columns = [_mirrored(window, width) for window in reversed(windows[1])] if mirrored else windows[1]
        self._columns = [window for window in columns if output_range(window, width, self.width)[1]]
        self._matrices: dict[tuple[int, int], ResizeMatrix] = {}
        self._open: list[_WindowRow] = []

    def row_block(self, start: int, stop: int) -> list[LogitsStrip]:
        """Strips that make up rows `start` to `stop` of the result, one per column of windows.

        Raises:
            TrainingError: logits are not finite.
        """
        self._open = [row for row in self._open if row.matrix.stop > start]
        while self._waiting and self._waiting[0][0] < stop:
            for row in self._open:
                row.trim(start)  # before the next row of windows takes memory
            self._open.append(self._run(self._waiting.popleft()[1]))
        strips = []
        for column, window in enumerate(self._columns):
            logits = self._open[0].row_block(column, start, stop)
            for row in self._open[1:]:
                logits += row.row_block(column, start, stop)
            strips.append(LogitsStrip(self._column_matrix(window, logits), logits))
        return strips

    def _column_matrix(self, window: Window, logits: Tensor) -> ResizeMatrix:
        key = window.start, logits.shape[-1]
        if key not in self._matrices:
            self._matrices[key] = ResizeMatrix(key[1], window, self.image.size[1], self.width, logits.device)
        return self._matrices[key]

    def _run(self, rows: Window) -> "_WindowRow":
        logits = [self._logits(rows, columns) for columns in self._columns]
        cells, device = logits[0].shape[1], logits[0].device
        return _WindowRow(ResizeMatrix(cells, rows, self.image.size[0], self.height, device), logits)

    def _logits(self, rows: Window, columns: Window) -> Tensor:
        """Logits (K, h, w) of a window."""
        x = self.image.crop(slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        logits = self.forward(x.flip(-1) if self.mirrored else x)[0].float()
        low, high = logits.aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise TrainingError(f"{self.name}: the model's logits are not finite")
        return (logits.flip(-1) if self.mirrored else logits).contiguous()  # rows are sliced from each class


class _WindowRow:
    """Logits (K, h, w) of the windows side by side, without the cells above the current block."""

    def __init__(self, matrix: ResizeMatrix, logits: list[Tensor]) -> None:
        self.matrix, self.logits = matrix, logits
        self._trimmed = 0  # cells that are gone: cell i is at row i − trimmed

    def row_block(self, column: int, start: int, stop: int) -> Tensor:
        """A · logits for rows `start` to `stop` of the result, (K, rows, w)."""
        cells, weights = self.matrix.block(start, stop)
        cells = slice(cells.start - self._trimmed, cells.stop - self._trimmed)
        return torch.matmul(weights, self.logits[column][:, cells])

    def trim(self, start: int) -> None:
        """Free the cells that blocks from `start` on do not need."""
        first = max(start, self.matrix.start)
        above = self.matrix.block(first, first + 1).cells.start
        for column, logits in enumerate(self.logits):
            self.logits[column] = logits[:, above - self._trimmed :].clone()
        self._trimmed = above


def sum_strips(strips: list[LogitsStrip], left: int, right: int) -> Tensor:
    """Logits (K, rows, columns) of columns `left` to `right` of the result: Σ strip · Bᵀ."""
    logits: Tensor | None = None
    for matrix, strip in strips:
        if matrix.start < right and left < matrix.stop:
            cells, weights = matrix.block(left, right)
            part = strip[:, :, cells] @ weights.T
            logits = part if logits is None else logits.add_(part)
    assert logits is not None  # windows leave no gap
    return logits
