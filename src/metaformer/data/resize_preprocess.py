"""Preprocessing of segmentation and detection: the whole image, its aspect ratio kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metaformer.color import Color
from metaformer.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels, Deviations, Transform
from metaformer.errors import ConfigError
from metaformer.serialize import Range, Serializable

Side = Annotated[int, Range(1, 2**15, integer=True)]
Divisor = Annotated[int, Range(1, 2**12, integer=True)]
MAX_SCALE: Final = 100
MAX_INPUT_PIXELS: Final = 200_000_000


@dataclass(frozen=True)
class DensePreprocess(Serializable):
    """Fit into a box with the aspect ratio kept, round both sides up to a multiple, normalize."""

    long_side: Side | None = 2048
    """Longer side of the box, in pixels; None for an image's own size."""
    short_side: Side | None = 512
    """Shorter side of the box, in pixels."""
    size_divisor: Divisor = 32
    """Both sides are rounded up to multiples of this, by a second resize; 1 leaves them."""
    mean: Channels = IMAGENET_MEAN
    """Per-channel mean that is subtracted (RGB in 0 ... 1)."""
    std: Deviations = IMAGENET_STD
    """Per-channel standard deviation that is divided by."""
    scale: Annotated[float, Range(0, MAX_SCALE, above=True)] = 1.0
    """Factor of the box, or of an image's own size: a scale of test-time augmentation."""
    background: Color | None = None
    """Color that transparent pixels are blended on; None drops transparency."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.long_side is None) != (self.short_side is None):
            raise ConfigError(
                f"long_side: {self.long_side} beside short_side {self.short_side}: give both, or neither"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; before 0.1.0 the size divisor was called `multiple`."""
        if isinstance(values, Mapping):
            values = {"size_divisor" if key == "multiple" else key: value for key, value in values.items()}
        return super().from_dict(values)

    def fitted_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the first resize."""
        if self.long_side is None or self.short_side is None:
            return scale_size(width, height, self.scale)
        return fit_size(width, height, (int(self.long_side * self.scale), int(self.short_side * self.scale)))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the network's input for an image of this size."""
        input_width, input_height = (
            -(-side // self.size_divisor) * self.size_divisor for side in self.fitted_size(width, height)
        )
        return input_width, input_height

    def input_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image of this size that becomes input, left, top, right and bottom: all of it."""
        return 0.0, 0.0, float(width), float(height)

    def scaled(self, factor: float) -> Self:
        """The same preprocessing for another scale of test-time augmentation."""
        return replace(self, scale=self.scale * factor)

    def resize(self, image: Image.Image) -> Image.Image:
        """Resize an RGB image to the size of the network's input."""
        for size in (self.fitted_size(*image.size), self.size(*image.size)):
            if size[0] * size[1] > MAX_INPUT_PIXELS:
                sizes = f"{image.width}x{image.height} becomes {size[0]}x{size[1]} pixels"
                raise ConfigError(f"scale: {self.scale}: {sizes}, more than {MAX_INPUT_PIXELS:,}")
            if size != image.size:
                image = image.resize(size, Image.Resampling.BILINEAR)
        return image

    def to_tensor(self, image: Image.Image) -> Tensor:
        """Normalize a resized image, or a crop of one, to (3, h, w) float32."""
        return normalize(image, self.mean, self.std)

    def transform(self) -> Transform:
        """Build the transform: RGB image to (3, h, w)."""
        return _Transform(self)


class _Transform:
    def __init__(self, preprocess: DensePreprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, image: Image.Image) -> Tensor:
        return self.preprocess.to_tensor(self.preprocess.resize(image))


def fit_size(width: int, height: int, box: tuple[int, int]) -> tuple[int, int]:
    """Width and height scaled to fit into a box of a longer and a shorter side, in either orientation."""
    factor = min(max(box) / max(width, height), min(box) / min(width, height))
    return scale_size(width, height, factor)


def scale_size(width: int, height: int, factor: float) -> tuple[int, int]:
    """Width and height times a factor, rounded to the nearest integer, at least 1."""
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def normalize(image: Image.Image, mean: Channels, std: Channels) -> Tensor:
    """Convert an RGB image to (3, H, W) float32, and subtract the mean and divide by std of each channel."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    tensor = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    # (x / 255 − mean) / std as one multiplication and one subtraction
    scale = torch.tensor(std).mul(255).reciprocal()
    shift = torch.tensor(mean) / torch.tensor(std)
    return tensor.mul_(scale[:, None, None]).sub_(shift[:, None, None])
