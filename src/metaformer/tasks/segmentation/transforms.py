"""Image and label map transformed together: the training pipeline of the published segmentation runs."""

import math
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels
from metaformer.data.resize_preprocess import fit, normalized, scaled_size
from metaformer.errors import ConfigError
from metaformer.tasks.segmentation.labels import IGNORE, LabelMap

JointTransform = Callable[[Image.Image, LabelMap], tuple[Tensor, Tensor]]
_TRIES: Final = 10
_BRIGHTNESS: Final = 32
_FACTORS: Final = (0.5, 1.5)
"""Between which contrast and saturation are drawn."""
_HUE: Final = 18
"""Of 180: twice as many degrees, either way."""


def train_transform(
    crop: int = 512,
    resize: tuple[int, int] | None = (2048, 512),
    scale: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    hflip: float = 0.5,
    photometric: bool = True,
    ignore_index: int = IGNORE,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> JointTransform:
    """Make mmsegmentation's training pipeline: random size, crop, flip, colors, normalize, pad.

    The result maps an RGB image and its label map (H, W) to (3, crop, crop) float32 and (crop, crop) of
    uint8, or int32 for uint16 label maps. Everything random comes from `random`.

    Args:
        crop: height and width of the result; what a smaller image leaves over is 0, and ignored.
        resize: longer and shorter side of the box that an image is fitted into, its shape kept; None for
            its own size.
        scale: smallest and largest random factor of that size.
        cat_max_ratio: a crop of which one class has this share or more is drawn anew, up to ten times.
        hflip: probability of mirroring.
        photometric: distort brightness, contrast, saturation and hue, each with probability 0.5.
        ignore_index: label of pixels that do not count.
        mean: per-channel mean that is subtracted.
        std: per-channel standard deviation that is divided by.

    Raises:
        ConfigError: a value out of range.
    """
    if crop < 1 or (resize is not None and min(resize) < 1):
        raise ConfigError(f"crop is {crop}, resize {resize}: sides must be at least 1 pixel")
    if not (0 < scale[0] <= scale[1] and math.isfinite(scale[1])):
        raise ConfigError(f"scale is {tuple(scale)}: it must be (smaller, larger), above 0")
    for field, value in (("cat_max_ratio", cat_max_ratio), ("hflip", hflip)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{field} is {value}: it must lie between 0 and 1")
    return _Train(crop, resize, scale, cat_max_ratio, hflip, photometric, ignore_index, mean, std)


class _Cut(NamedTuple):
    """A rectangle of the resized image."""

    left: int
    top: int
    width: int
    height: int


class _Train:
    def __init__(
        self,
        crop: int,
        resize: tuple[int, int] | None,
        scale: tuple[float, float],
        cat_max_ratio: float,
        hflip: float,
        photometric: bool,
        ignore_index: int,
        mean: Channels,
        std: Channels,
    ) -> None:
        self.crop, self.resize, self.scale, self.cat_max_ratio = crop, resize, scale, cat_max_ratio
        self.hflip, self.photometric, self.ignore_index = hflip, photometric, ignore_index
        self.mean, self.std = mean, std

    def __call__(self, image: Image.Image, labels: LabelMap) -> tuple[Tensor, Tensor]:
        size = self._size(*image.size)
        cut, part = self._cut(labels, size)
        piece = _resized_part(image, size, cut)
        if random.random() < self.hflip:
            piece, part = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT), part[:, ::-1]
        if self.photometric:
            piece = distorted(piece)
        x = torch.zeros(3, self.crop, self.crop)
        x[:, : cut.height, : cut.width] = normalized(piece, self.mean, self.std)
        wide = torch.uint8 if labels.dtype == np.uint8 else torch.int32
        target = torch.full((self.crop, self.crop), self.ignore_index, dtype=wide)
        target[: cut.height, : cut.width] = torch.from_numpy(part.astype(np.int32)).to(wide)
        return x, target

    def _size(self, width: int, height: int) -> tuple[int, int]:
        factor = random.uniform(*self.scale)
        if self.resize is None:
            return scaled_size(width, height, factor)
        longer, shorter = (max(1, int(side * factor)) for side in self.resize)
        return fit(width, height, (longer, shorter))

    def _cut(self, labels: LabelMap, size: tuple[int, int]) -> tuple[_Cut, LabelMap]:
        """Draw a crop, and again while one class has too much of it; no other labels are resized."""
        for attempt in range(_TRIES + 1):
            cut = self._draw(*size)
            part = _nearest(labels, size, cut)
            if attempt == _TRIES or self.cat_max_ratio >= 1 or self._mixed(part):
                return cut, part
        raise AssertionError("the last attempt returns")

    def _draw(self, width: int, height: int) -> _Cut:
        left = random.randint(0, max(0, width - self.crop))
        top = random.randint(0, max(0, height - self.crop))
        return _Cut(left, top, min(self.crop, width), min(self.crop, height))

    def _mixed(self, labels: LabelMap) -> bool:
        counts = np.bincount(labels.ravel())
        counts[self.ignore_index :] = 0
        most, everything = int(counts.max()), int(counts.sum())
        return most < everything and most < self.cat_max_ratio * everything


def _resized_part(image: Image.Image, size: tuple[int, int], cut: _Cut) -> Image.Image:
    """Give what a crop of the resized image would show, without making the rest."""
    across, down = image.width / size[0], image.height / size[1]
    left, top = cut.left * across, cut.top * down
    right = min((cut.left + cut.width) * across, image.width)
    bottom = min((cut.top + cut.height) * down, image.height)
    return image.resize((cut.width, cut.height), Image.Resampling.BILINEAR, (left, top, right, bottom))


def _nearest(labels: LabelMap, size: tuple[int, int], cut: _Cut) -> LabelMap:
    """Give a crop of the resized label map: at each pixel the label that lies under its center."""
    rows = _under(cut.top, cut.height, labels.shape[0], size[1])
    columns = _under(cut.left, cut.width, labels.shape[1], size[0])
    part: NDArray[Any] = labels[rows[:, None], columns]
    return part


def _under(first: int, count: int, old: int, new: int) -> NDArray[np.int64]:
    """Places of the old pixels that lie under the centers of new ones, in whole numbers."""
    return (2 * np.arange(first, first + count, dtype=np.int64) + 1) * old // (2 * new)


def distorted(image: Image.Image) -> Image.Image:
    """Change brightness, contrast, saturation and hue, each or not; contrast comes before or after color."""
    if random.random() < 0.5:
        delta = random.uniform(-_BRIGHTNESS, _BRIGHTNESS)
        image = image.point(_curve(1.0, delta) * 3)
    early = random.random() < 0.5
    contrast = random.uniform(*_FACTORS) if random.random() < 0.5 else 1.0
    if early:
        image = _contrasted(image, contrast)
    image = _recolored(image)
    return image if early else _contrasted(image, contrast)


def _contrasted(image: Image.Image, factor: float) -> Image.Image:
    return image if factor == 1 else image.point(_curve(factor, 0.0) * 3)


def _recolored(image: Image.Image) -> Image.Image:
    saturation = random.uniform(*_FACTORS) if random.random() < 0.5 else 1.0
    turn = random.randint(-_HUE, _HUE - 1) if random.random() < 0.5 else 0
    if saturation == 1 and turn == 0:
        return image
    hue = [(value + round(turn * 256 / 180)) % 256 for value in range(256)]
    return image.convert("HSV").point(hue + _curve(saturation, 0.0) + list(range(256))).convert("RGB")


def _curve(factor: float, shift: float) -> list[int]:
    return [min(255, max(0, round(value * factor + shift))) for value in range(256)]
