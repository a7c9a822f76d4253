"""Preprocessing of classification: one configuration for evaluation, prediction and checkpoints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metaformer.color import Color
from metaformer.data.image import MAX_PIXELS
from metaformer.errors import ConfigError
from metaformer.serialize import POSITIVE_INT, OneOf, Range, Serializable, from_dict

Transform = Callable[[Image.Image], Tensor]
Mean = Annotated[float, Range(-1e6, 1e6)]
Channels = tuple[Mean, Mean, Mean]
Deviation = Annotated[float, Range(0, 1e6, above=True)]
Deviations = tuple[Deviation, Deviation, Deviation]
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess(Serializable):
    """Resize, center crop and normalize, as timm and the original repositories evaluate."""

    image_size: Annotated[int, POSITIVE_INT] = 224
    """Height and width of the input, in pixels."""
    crop: Annotated[float, Range(0, 1, above=True)] = 0.9
    """Side of the center crop, as a fraction of the resized image."""
    interpolation: Annotated[str, OneOf(("bicubic", "bilinear"))] = "bicubic"
    """Resampling: bicubic or bilinear."""
    mean: Channels = IMAGENET_MEAN
    """Per-channel mean that is subtracted (RGB in 0 ... 1)."""
    std: Deviations = IMAGENET_STD
    """Per-channel standard deviation that is divided by."""
    background: Color | None = None
    """Color that transparent pixels are blended on; None drops transparency."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size / self.crop > math.isqrt(MAX_PIXELS):
            raise ConfigError(
                f"image_size: {self.image_size} with crop {self.crop} would resize images to more than "
                f"{math.isqrt(MAX_PIXELS)} pixels a side"
            )

    @property
    def resize(self) -> int:
        """Shorter edge before the crop; rounded down, as the original evaluations do (0.95: 235)."""
        return math.floor(self.image_size / self.crop)

    def input_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image of this size that becomes input: left, top, right and bottom in its pixels."""
        return self.crop_regions(width, height)[-1]

    def crop_regions(self, width: int, height: int) -> list[tuple[float, float, float, float]]:
        """The same of five crops: the four corners in rows, then the center."""
        scaled = self.resized(width, height)
        across, down = (
            self.image_size * own / side for own, side in zip((width, height), scaled, strict=True)
        )
        left, top = (
            round((side - self.image_size) / 2) * own / side
            for own, side in zip((width, height), scaled, strict=True)
        )
        corners = [(x, y) for y in (0.0, height - down) for x in (0.0, width - across)]
        return [(x, y, x + across, y + down) for x, y in (*corners, (left, top))]

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image of this size before the crop."""
        short = min(width, height)
        across, down = (
            self.resize if side == short else int(self.resize * side / short) for side in (width, height)
        )
        return across, down

    def transform(self, crops: int = 1) -> Transform:
        """Transform of an RGB image to (3, H, W); with `crops=5`, corners and center, to (5, 3, H, W).

        Raises:
            ConfigError: another number of crops.
        """
        from torchvision import transforms
        from torchvision.transforms import InterpolationMode

        if crops not in (1, 5):
            raise ConfigError(f"crops is {crops}: choose 1 or 5")
        size = (self.image_size, self.image_size)
        crop = transforms.CenterCrop(size) if crops == 1 else transforms.FiveCrop(size)
        resize = transforms.Resize(self.resize, InterpolationMode(self.interpolation))
        return _Transform(self, crops, transforms.Compose([resize, crop]))

    @classmethod
    def from_pretrained_cfg(cls, cfg: Mapping[str, Any]) -> "Preprocess":
        """Preprocessing of a model's `pretrained_cfg`: timm's keys and `background`, or their defaults."""
        known = from_dict(_PretrainedCfg, cfg, "pretrained_cfg", others=True)
        size, crop = known.input_size[-1], known.crop_pct
        return cls(size, crop, known.interpolation, known.mean, known.std, known.background)


@dataclass(frozen=True)
class _PretrainedCfg(Serializable):
    """What timm's `pretrained_cfg` says of preprocessing."""

    input_size: tuple[int, int, int] = (3, Preprocess.image_size, Preprocess.image_size)
    crop_pct: float = Preprocess.crop
    interpolation: str = Preprocess.interpolation
    mean: Channels = Preprocess.mean
    std: Deviations = Preprocess.std
    background: Color | None = None


class Normalize:
    """8-bit RGB image to normalized float32 (3, H, W), bit for bit as torchvision's transforms.

    torchvision's `ToTensor` and `Normalize` allocate four floating-point images; this allocates one.

    Args:
        mean: mean of each channel (RGB in 0 … 1).
        std: standard deviation of each channel.
    """

    def __init__(self, mean: Channels, std: Channels) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        planes = np.empty((3, image.height, image.width), dtype=np.uint8)
        for plane, channel in zip(planes, image.split(), strict=True):
            plane[...] = np.asarray(channel)
        return torch.from_numpy(planes).float().div_(255).sub_(self.mean).div_(self.std)


class _Transform:
    """Picklable composition of resize, crop or five crops, and normalize."""

    def __init__(self, preprocess: Preprocess, crops: int, crop: Any) -> None:
        self.preprocess, self.crops, self.crop = preprocess, crops, crop
        self.normalize = Normalize(preprocess.mean, preprocess.std)

    def __call__(self, image: Image.Image) -> Tensor:
        found = self._cut(image) if self._is_long(image) else self.crop(image)
        if isinstance(found, tuple):
            return torch.stack([self.normalize(crop) for crop in found])
        return self.normalize(found)

    def _is_long(self, image: Image.Image) -> bool:
        """Whether it is so long a strip that resized it would fill the memory, however few bytes it has."""
        return math.prod(self.preprocess.resized(*image.size)) > MAX_PIXELS

    def _cut(self, image: Image.Image) -> Any:
        """What `crop` gives, up to resampling's rounding; nothing else of the image is resized."""
        preprocess, kinds = self.preprocess, Image.Resampling
        kind = kinds.BICUBIC if preprocess.interpolation == "bicubic" else kinds.BILINEAR
        size = (preprocess.image_size, preprocess.image_size)
        cuts = tuple(
            image.resize(size, kind, (max(0.0, left), max(0.0, top), min(right, width), min(bottom, height)))
            for width, height in [image.size]
            for left, top, right, bottom in preprocess.crop_regions(width, height)[-self.crops :]
        )
        return cuts if self.crops > 1 else cuts[0]
