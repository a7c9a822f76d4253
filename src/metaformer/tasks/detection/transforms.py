"""Image and objects transformed together: the training pipeline of the published detection runs."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from metaformer.data.photometric import photometric_distortion
from metaformer.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels
from metaformer.data.resize_preprocess import fit_size, normalize, scale_size
from metaformer.errors import ConfigError
from metaformer.models.detection.structures import Targets

SceneTransform = Callable[[Image.Image, Targets], tuple[Tensor, Targets]]
Parts = list[Any]
"""An image, its boxes and, where there are any, its masks, as torchvision's transforms tell them apart."""


def train_transform(
    sides: Sequence[int] = (800,),
    long_side: int | None = 1333,
    *,
    hflip: float = 0.5,
    photometric: bool = False,
    jitter: tuple[float, float] | None = None,
    crop: int | None = None,
    min_box: float = 1.0,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> SceneTransform:
    """Make mmdetection's training pipeline: size, large-scale jitter, flip, colors, normalize.

    The result maps an RGB image and its objects to (3, h, w) float32 and the objects in its pixels.
    Everything random comes from `random`.

    Args:
        sides: shorter side of the box that an image is fitted into, its shape kept; one of them by chance.
        long_side: longer side of that box; None for an image's own size.
        hflip: probability of mirroring.
        photometric: distort brightness, contrast, saturation and hue, each with probability 0.5.
        jitter: smallest and largest random factor of the size with which an image just fits into a square
            of `crop`, to which it is then cut, or filled up with 0; takes the place of `sides`.
        crop: side of that square.
        min_box: objects whose box has become narrower or lower than this, in pixels, are left out, as are
            those whose mask has become empty.
        mean: per-channel mean that is subtracted.
        std: per-channel standard deviation that is divided by.

    Raises:
        ConfigError: a value out of range.
    """
    if not sides or min((*sides, 1 if long_side is None else long_side)) < 1:
        raise ConfigError(
            f"short sides are {list(sides)}, the long side {long_side}: give at least one, all above 0"
        )
    if (jitter is None) != (crop is None):
        raise ConfigError(f"jitter is {jitter}, crop {crop}: give both, or neither")
    if crop is not None and crop < 1:
        raise ConfigError(f"crop is {crop}: it must be at least 1 pixel")
    if jitter is not None and not (0 < jitter[0] <= jitter[1] and math.isfinite(jitter[1])):
        raise ConfigError(f"jitter is {tuple(jitter)}: it must be (smaller, larger), above 0")
    if not min_box > 0:
        raise ConfigError(f"min_box is {min_box}: it must be above 0 pixels")
    if not 0 <= hflip <= 1:
        raise ConfigError(f"hflip is {hflip}: it must lie between 0 and 1")
    return _Train(tuple(sides), long_side, hflip, photometric, jitter, crop, min_box, mean, std)


class _Train:
    def __init__(
        self,
        sides: tuple[int, ...],
        long_side: int | None,
        hflip: float,
        photometric: bool,
        jitter: tuple[float, float] | None,
        crop: int | None,
        min_box: float,
        mean: Channels,
        std: Channels,
    ) -> None:
        self.sides, self.long_side, self.hflip, self.photometric = sides, long_side, hflip, photometric
        self.jitter, self.crop, self.min_box, self.mean, self.std = jitter, crop, min_box, mean, std

    def __call__(self, image: Image.Image, targets: Targets) -> tuple[Tensor, Targets]:
        from torchvision.transforms.v2 import functional as tv

        parts = _resized(_parts(image, targets), self._size(*image.size))
        if self.crop is not None:
            parts = _cut(parts, self.crop)
        if random.random() < self.hflip:
            parts = [tv.horizontal_flip(part) for part in parts]
        image, found = parts[0], self._kept(parts, targets)
        if self.photometric:
            image = photometric_distortion(image)
        x = normalize(image, self.mean, self.std)
        return (x, found) if self.crop is None else _filled(x, found, self.crop)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if self.jitter is not None and self.crop is not None:
            return scale_size(width, height, random.uniform(*self.jitter) * self.crop / max(width, height))
        if self.long_side is None:
            return width, height
        return fit_size(width, height, (self.long_side, random.choice(self.sides)))

    def _kept(self, parts: Parts, targets: Targets) -> Targets:
        """Objects of which enough is left."""
        from torchvision.transforms.v2 import functional as tv

        boxes = tv.clamp_bounding_boxes(parts[1]).as_subclass(Tensor)
        masks = parts[2].as_subclass(Tensor).bool() if len(parts) > 2 else None
        keep = (boxes[:, 2:] - boxes[:, :2] >= self.min_box).all(dim=1)
        if masks is not None:
            keep &= masks.flatten(1).any(dim=1)
            masks = masks[keep]
        return Targets(boxes[keep], targets.labels[keep], masks, targets.crowd[keep])


def _parts(image: Image.Image, targets: Targets) -> Parts:
    from torchvision.tv_tensors import BoundingBoxes, Mask

    boxes = BoundingBoxes(targets.boxes, format="XYXY", canvas_size=(image.height, image.width))
    if targets.masks is None:
        return [image, boxes]
    return [image, boxes, Mask(targets.masks.view(torch.uint8))]  # torchvision resizes bool as float32


def _resized(parts: Parts, size: tuple[int, int]) -> Parts:
    """Give the image a size (width, height), as evaluation does, and what lies on it the same."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv
    from torchvision.tv_tensors import Mask

    image, boxes, *masks = parts
    if size == image.size:
        return parts
    shape = [size[1], size[0]]
    # Under the centers of the new pixels; plain `nearest` looks at their upper left corners.
    nearest = (Mask(tv.resize_image(mask, shape, InterpolationMode.NEAREST_EXACT)) for mask in masks)
    return [image.resize(size, Image.Resampling.BILINEAR), tv.resize(boxes, shape), *nearest]


def _cut(parts: Parts, side: int) -> Parts:
    """Keep a random square of this side, or what there is of it; boxes shrink to what masks still show."""
    from torchvision.transforms.v2 import functional as tv

    width, height = parts[0].size
    left, top = random.randint(0, max(0, width - side)), random.randint(0, max(0, height - side))
    whole = parts[1].as_subclass(Tensor) - torch.tensor([left, top, left, top])
    parts = [tv.crop(part, top, left, min(side, height), min(side, width)) for part in parts]
    if len(parts) > 2:
        boxes, masks = parts[1].as_subclass(Tensor), parts[2].as_subclass(Tensor).bool()
        _tighten(boxes, masks, (boxes != whole).any(dim=1))
    return parts


def _tighten(boxes: Tensor, masks: Tensor, which: Tensor) -> None:
    """Shrink boxes, in place, to the outermost pixels of their masks."""
    from torchvision.ops import masks_to_boxes

    which = which & masks.flatten(1).any(dim=1)
    if which.any():
        seen = masks_to_boxes(masks[which]) + torch.tensor([0, 0, 1, 1])
        old = boxes[which]
        boxes[which] = torch.cat([old[:, :2].maximum(seen[:, :2]), old[:, 2:].minimum(seen[:, 2:])], dim=1)


def _filled(image: Tensor, targets: Targets, side: int) -> tuple[Tensor, Targets]:
    """Fill image and masks up to a square of this side."""
    rest = (0, side - image.shape[2], 0, side - image.shape[1])
    masks = None if targets.masks is None else pad(targets.masks, rest)
    return pad(image, rest), Targets(targets.boxes, targets.labels, masks, targets.crowd)
