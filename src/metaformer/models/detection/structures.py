"""Detections and targets of an image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.errors import ConfigError

Size = tuple[int, int]
"""Height and width."""
BLOCK = 1 << 22
"""Pixels that are pasted at once."""


def level_shapes(levels: Sequence[Tensor]) -> list[Size]:
    """Height and width of each pyramid level (B, C, H_i, W_i)."""
    return [(level.shape[2], level.shape[3]) for level in levels]


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects detected in one image, best first.

    Values are checked on the CPU alone: elsewhere a check would wait for the device.

    Raises:
        ConfigError: tensors that do not fit each other, or values that are not finite.
    """

    boxes: Tensor
    """Left, top, right and bottom (N, 4), float32, in pixels of the network's input or of the image."""
    scores: Tensor
    """(N,), float32, 0 … 1."""
    labels: Tensor
    """Classes (N,), int64, from 0; there is no background."""
    masks: Tensor | None = None
    """Probabilities (N, 28, 28), float32, that the cells of the box belong to the object; None without."""

    def __post_init__(self) -> None:
        count = _check_boxes(self.boxes, "Detections")
        _check("scores", self.scores, (count,), torch.float32)
        _check("labels", self.labels, (count,), torch.int64)
        if self.masks is not None:
            side = self.masks.shape[-1] if self.masks.ndim == 3 else 28
            _check("masks", self.masks, (count, side, side), torch.float32)
        if self.boxes.is_cpu and not self.scores.isfinite().all():
            raise ConfigError("Detections: a score is not finite")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Self:
        """Select by indices, a slice, or one bool per object."""
        return type(self)(**{name: value[index] for name, value in _tensors(self)})

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        return type(self)(**{name: value.to(device) for name, value in _tensors(self)})

    def paste(self, size: Size) -> Tensor:
        """Paste the masks into an image of this height and width, in the frame of the boxes: (N, H, W), bool.

        A pixel belongs to the object where the mask is at least 0.5 at its center; an empty box has none.

        Raises:
            ConfigError: there are no masks.
        """
        if self.masks is None:
            raise ConfigError("Detections: masks is None: the detector predicts boxes alone")
        pasted = torch.zeros((len(self), *size), dtype=torch.bool, device=self.boxes.device)
        for rows, columns, index in _regions(self.boxes, size):
            probabilities = _interpolated(self.masks[index], self.boxes[index], rows, columns)
            pasted[index, rows.start : rows.stop, columns.start : columns.stop] = probabilities >= 0.5
        return pasted


@dataclass(frozen=True, eq=False)
class Targets:
    """Objects annotated in one image.

    Values are checked on the CPU alone: elsewhere a check would wait for the device.

    Raises:
        ConfigError: tensors that do not fit each other, or a box without area.
    """

    boxes: Tensor
    """Left, top, right and bottom (N, 4), float32, in pixels of the network's input."""
    labels: Tensor
    """Classes (N,), int64, from 0."""
    masks: Tensor | None = None
    """Object masks (N, H, W), bool, at the size of the input."""
    crowd: Tensor = None  # type: ignore[assignment]
    """COCO `iscrowd` flags (N,), bool; none set by default."""

    def __post_init__(self) -> None:
        count = _check_boxes(self.boxes, "Targets")
        if self.crowd is None:
            object.__setattr__(self, "crowd", torch.zeros(count, dtype=torch.bool, device=self.boxes.device))
        _check("labels", self.labels, (count,), torch.int64)
        _check("crowd", self.crowd, (count,), torch.bool)
        if self.masks is not None:
            size = self.masks.shape[1:] if self.masks.ndim == 3 else (0, 0)
            _check("masks", self.masks, (count, *size), torch.bool)
        if not self.boxes.is_cpu:
            return
        if not (self.boxes[:, 2:] > self.boxes[:, :2]).all():
            raise ConfigError("Targets: a box has no area: leave such objects out")
        if (self.labels < 0).any():
            raise ConfigError("Targets: a label is negative")

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Move to a device."""
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in _tensors(self)}
        return type(self)(**moved)

    def pin_memory(self) -> Self:
        """Copy into page-locked memory."""
        return type(self)(**{name: value.pin_memory() for name, value in _tensors(self)})

    def without_crowd(self) -> Self:
        """Leave out crowds."""
        single = ~self.crowd
        return type(self)(**{name: value[single] for name, value in _tensors(self)})


def _tensors(results: Detections | Targets) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in vars(results).items() if value is not None)


def _check_boxes(boxes: Any, what: str) -> int:
    if not isinstance(boxes, Tensor) or boxes.ndim != 2:
        raise ConfigError(f"{what}: boxes must be a tensor (N, 4)")
    _check("boxes", boxes, (len(boxes), 4), torch.float32)
    if boxes.is_cpu and not boxes.isfinite().all():
        raise ConfigError(f"{what}: a box is not finite")
    return len(boxes)


def _check(name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != dtype:
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ConfigError(f"{name}: {found} should be {dtype} {shape}")


def _regions(boxes: Tensor, size: Size) -> Iterator[tuple[range, range, slice]]:
    """Rows, columns and objects to paste at once: one object on a CPU, many on a device, `BLOCK` pixels.

    Interpolation reaches half a cell beyond the box, but stays below 0.5 there.
    """
    height, width = size
    many = 1 if boxes.is_cpu else max(1, BLOCK // max(1, height * width))
    corners = boxes.tolist()
    for first in range(0, len(boxes), many):
        lefts, tops, rights, bottoms = zip(*corners[first : first + many], strict=True)
        columns = range(max(0, floor(min(lefts)) - 1), min(width, ceil(max(rights)) + 1))
        top, bottom = max(0, floor(min(tops)) - 1), min(height, ceil(max(bottoms)) + 1)
        step = max(1, BLOCK // max(1, len(columns)))
        for row in range(top, bottom, step):
            if columns:
                yield range(row, min(bottom, row + step)), columns, slice(first, first + many)


def _interpolated(masks: Tensor, boxes: Tensor, rows: range, columns: range) -> Tensor:
    """Interpolate masks (N, 28, 28) at the centers of pixels."""
    left, top, right, bottom = (side[:, None] for side in boxes.unbind(1))
    coordinates = []
    for span, low, high in ((columns, left, right), (rows, top, bottom)):
        centers = torch.arange(span.start, span.stop, dtype=torch.float32, device=boxes.device) + 0.5
        relative = (centers - low) / (high - low) * 2 - 1  # −1 … 1 inside the box, as grid_sample takes it
        coordinates.append(torch.where(high > low, relative, 2.0))  # an empty box: all outside
    x, y = coordinates
    shape = (len(masks), len(rows), len(columns))
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], 3)
    return F.grid_sample(masks[:, None].float(), grid, align_corners=False)[:, 0]
