"""Joint transform of an image and its label map: the training pipeline of the published runs."""

import math
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.data.photometric import photometric_distortion
from metaformer.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels
from metaformer.data.resize_preprocess import fit_size, normalize, scale_size
from metaformer.errors import ConfigError
from metaformer.tasks.segmentation.labels import IGNORE, LabelMap

JointTransform = Callable[[Image.Image, LabelMap], tuple[Tensor, Tensor]]
"""RGB image and label map (H, W) to tensors."""
_TRIES: Final = 10
"""Crops that are rejected at most for `cat_max_ratio`."""


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
    """Build mmsegmentation's training pipeline: resize, crop, flip, photometric distortion, normalize, pad.

    The transform maps an RGB image and its label map (H, W) to (3, crop, crop) float32 and (crop, crop)
    uint8, or int32 for uint16 label maps. Everything random comes from `random`.

    Args:
        crop: height and width of the result; smaller images are padded with 0 and `ignore_index`.
        resize: longer and shorter side of the box that an image is fitted into, its aspect ratio kept; None
            for its own size.
        scale: range of the random factor of that size.
        cat_max_ratio: crops are redrawn while one class has at least this share of the labeled pixels, up to
            ten times.
        hflip: probability of a horizontal flip.
        photometric: distort brightness, contrast, saturation and hue, each with probability 0.5.
        ignore_index: label of ignored pixels.
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
    return _TrainTransform(crop, resize, scale, cat_max_ratio, hflip, photometric, ignore_index, mean, std)


class _Crop(NamedTuple):
    """A rectangle of the resized image."""

    left: int
    top: int
    width: int
    height: int


class _TrainTransform:
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
        size = self._random_size(*image.size)
        crop, cropped_labels = self._random_crop(labels, size)
        cropped = _resized_crop(image, size, crop)
        if random.random() < self.hflip:
            cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            cropped_labels = cropped_labels[:, ::-1]
        if self.photometric:
            cropped = photometric_distortion(cropped)
        x = torch.zeros(3, self.crop, self.crop)
        x[:, : crop.height, : crop.width] = normalize(cropped, self.mean, self.std)
        dtype = torch.uint8 if labels.dtype == np.uint8 else torch.int32
        target = torch.full((self.crop, self.crop), self.ignore_index, dtype=dtype)
        target[: crop.height, : crop.width] = torch.from_numpy(cropped_labels.astype(np.int32)).to(dtype)
        return x, target

    def _random_size(self, width: int, height: int) -> tuple[int, int]:
        factor = random.uniform(*self.scale)
        if self.resize is None:
            return scale_size(width, height, factor)
        longer, shorter = (max(1, int(side * factor)) for side in self.resize)
        return fit_size(width, height, (longer, shorter))

    def _random_crop(self, labels: LabelMap, size: tuple[int, int]) -> tuple[_Crop, LabelMap]:
        """Draw a crop, again while one class dominates; only labels inside crops are resized."""
        for attempt in range(_TRIES + 1):
            crop = self._draw(*size)
            cropped = _nearest_crop(labels, size, crop)
            if attempt == _TRIES or self.cat_max_ratio >= 1 or self._is_mixed(cropped):
                return crop, cropped
        raise AssertionError("the last attempt returns")

    def _draw(self, width: int, height: int) -> _Crop:
        left = random.randint(0, max(0, width - self.crop))
        top = random.randint(0, max(0, height - self.crop))
        return _Crop(left, top, min(self.crop, width), min(self.crop, height))

    def _is_mixed(self, labels: LabelMap) -> bool:
        counts = np.bincount(labels.ravel())
        counts[self.ignore_index :] = 0
        largest, total = int(counts.max()), int(counts.sum())
        return largest < total and largest < self.cat_max_ratio * total


def _resized_crop(image: Image.Image, size: tuple[int, int], crop: _Crop) -> Image.Image:
    """Crop of the image resized to `size` (width, height); nothing else of it is resized."""
    x_scale, y_scale = image.width / size[0], image.height / size[1]
    left, top = crop.left * x_scale, crop.top * y_scale
    right = min((crop.left + crop.width) * x_scale, image.width)
    bottom = min((crop.top + crop.height) * y_scale, image.height)
    return image.resize((crop.width, crop.height), Image.Resampling.BILINEAR, (left, top, right, bottom))


def _nearest_crop(labels: LabelMap, size: tuple[int, int], crop: _Crop) -> LabelMap:
    """Crop of the label map resized to `size` (width, height) by nearest neighbor."""
    rows = _nearest(crop.top, crop.height, labels.shape[0], size[1])
    columns = _nearest(crop.left, crop.width, labels.shape[1], size[0])
    cropped: NDArray[Any] = labels[rows[:, None], columns]
    return cropped


def _nearest(first: int, count: int, old: int, new: int) -> NDArray[np.int64]:
    """Old pixel under the center of each new pixel `first` … `first + count − 1`, of a side resized to `new`.

    The center of new pixel i is at (i + ½) · old / new; its floor in integers is (2i + 1) · old // (2 · new).
    """
    return (2 * np.arange(first, first + count, dtype=np.int64) + 1) * old // (2 * new)
