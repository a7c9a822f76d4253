"""Training transform, evaluation preprocessing and padding of images with objects."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from metaformer.data.photometric import photometric_distortion
from metaformer.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels
from metaformer.data.resize_preprocess import DensePreprocess, Divisor, Side, fit_size, normalize, scale_size
from metaformer.errors import ConfigError
from metaformer.models.detection.structures import Size, Targets

MULTIPLE: Final = 32
"""Sides of a padded batch are multiples of this."""
DetectionTransform = Callable[[Image.Image, Targets], tuple[Tensor, Targets]]
"""Maps an RGB image and its objects to (3, h, w) float32 and the objects in its pixels."""
TVTensors = list[Any]
"""Image, boxes and, if there are any, masks, as torchvision's transforms distinguish them."""


@dataclass(frozen=True)
class DetectionPreprocess(DensePreprocess):
    """Resize once to fit into a box, keeping the aspect ratio, and normalize; `pad_images` does the rest."""

    long_side: Side | None = 1333
    """Longer side of the box, in pixels; None keeps an image's own size."""
    short_side: Side | None = 800
    """Shorter side of the box, in pixels."""
    size_divisor: Divisor = MULTIPLE
    """A batch is padded with 0, on the right and below, to multiples of this."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a resized image, without padding."""
        return self.fitted_size(width, height)


def pad_images(images: Sequence[Tensor], multiple: int = MULTIPLE) -> Tensor:
    """Batch (B, 3, H, W) of images (3, h, w) of any size, padded with 0 on the right and below.

    H and W are those of the largest image, rounded up to the multiple.
    """
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (1, 2))
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch


def pad_targets(targets: Sequence[Targets], size: Size) -> tuple[Targets, ...]:
    """Pad the masks of a batch to its height and width.

    Each field of all images shares one storage: a worker passes every storage on as an open file, of which a
    process may have a thousand.
    """
    counts = [len(target) for target in targets]
    boxes = torch.cat([target.boxes for target in targets]).split(counts)
    labels = torch.cat([target.labels for target in targets]).split(counts)
    crowd = torch.cat([target.crowd for target in targets]).split(counts)
    if all(target.masks is None for target in targets):
        return tuple(map(Targets, boxes, labels, [None] * len(targets), crowd))
    masks = torch.zeros(sum(counts), *size, dtype=torch.bool).split(counts)
    for target, padded in zip(targets, masks, strict=True):
        if target.masks is not None:
            padded[:, : target.masks.shape[1], : target.masks.shape[2]] = target.masks
    return tuple(map(Targets, boxes, labels, masks, crowd))


def train_transform(
    sides: Sequence[int] = (800,),
    long_side: Side | None = 1333,
    *,
    hflip: float = 0.5,
    photometric: bool = False,
    jitter: tuple[float, float] | None = None,
    crop: int | None = None,
    min_box: float = 1.0,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> DetectionTransform:
    """Mmdetection's training pipeline: resize or large-scale jitter, flip, photometric distortion, normalize.

    All randomness comes from `random`.

    Args:
        sides: shorter side of the box that an image is resized to fit into; one of them at random.
        long_side: longer side of that box; None keeps an image's own size.
        hflip: probability of mirroring.
        photometric: distort brightness, contrast, saturation and hue, each with probability 0.5.
        jitter: range of the random factor of the size with which an image just fits into a square of side
            `crop`, to which it is then cropped or padded with 0; in place of `sides`.
        crop: side of that square.
        min_box: least width and height of a box, in pixels; smaller objects, and those whose mask has become
            empty, are left out.
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


@dataclass(frozen=True)
class _Train:
    sides: tuple[int, ...]
    long_side: int | None
    hflip: float
    photometric: bool
    jitter: tuple[float, float] | None
    crop: int | None
    min_box: float
    mean: Channels
    std: Channels

    def __call__(self, image: Image.Image, targets: Targets) -> tuple[Tensor, Targets]:
        from torchvision.transforms.v2 import functional as tv

        tensors = _resize(_tv_tensors(image, targets), self._size(*image.size))
        if self.crop is not None:
            tensors = _crop(tensors, self.crop)
        if random.random() < self.hflip:
            tensors = [tv.horizontal_flip(tensor) for tensor in tensors]
        image, targets = tensors[0], self._remaining(tensors, targets)
        if self.photometric:
            image = photometric_distortion(image)
        x = normalize(image, self.mean, self.std)
        return (x, targets) if self.crop is None else _pad(x, targets, self.crop)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if self.jitter is not None and self.crop is not None:
            return scale_size(width, height, random.uniform(*self.jitter) * self.crop / max(width, height))
        if self.long_side is None:
            return width, height
        return fit_size(width, height, (self.long_side, random.choice(self.sides)))

    def _remaining(self, tensors: TVTensors, targets: Targets) -> Targets:
        """Objects that are large enough."""
        from torchvision.transforms.v2 import functional as tv

        boxes = tv.clamp_bounding_boxes(tensors[1]).as_subclass(Tensor)
        masks = tensors[2].as_subclass(Tensor).bool() if len(tensors) > 2 else None
        valid = (boxes[:, 2:] - boxes[:, :2] >= self.min_box).all(dim=1)
        if masks is not None:
            valid &= masks.flatten(1).any(dim=1)
            masks = masks[valid]
        return Targets(boxes[valid], targets.labels[valid], masks, targets.crowd[valid])


def _tv_tensors(image: Image.Image, targets: Targets) -> TVTensors:
    from torchvision.tv_tensors import BoundingBoxes, Mask

    boxes = BoundingBoxes(targets.boxes, format="XYXY", canvas_size=(image.height, image.width))
    if targets.masks is None:
        return [image, boxes]
    return [image, boxes, Mask(targets.masks.view(torch.uint8))]  # torchvision resizes bool as float32


def _resize(tensors: TVTensors, size: tuple[int, int]) -> TVTensors:
    """Resize to a width and height, the image as in evaluation."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv
    from torchvision.tv_tensors import Mask

    image, boxes, *masks = tensors
    if size == image.size:
        return tensors
    shape = [size[1], size[0]]
    # NEAREST_EXACT samples at the centers of the new pixels, NEAREST at their upper left corners.
    nearest = (Mask(tv.resize_image(mask, shape, InterpolationMode.NEAREST_EXACT)) for mask in masks)
    return [image.resize(size, Image.Resampling.BILINEAR), tv.resize(boxes, shape), *nearest]


def _crop(tensors: TVTensors, side: int) -> TVTensors:
    """Crop to a random square of this side, or to what there is; cropped boxes shrink to their masks."""
    from torchvision.transforms.v2 import functional as tv

    width, height = tensors[0].size
    left, top = random.randint(0, max(0, width - side)), random.randint(0, max(0, height - side))
    uncropped = tensors[1].as_subclass(Tensor) - torch.tensor([left, top, left, top])
    tensors = [tv.crop(tensor, top, left, min(side, height), min(side, width)) for tensor in tensors]
    if len(tensors) > 2:
        boxes, masks = tensors[1].as_subclass(Tensor), tensors[2].as_subclass(Tensor).bool()
        _shrink(boxes, masks, (boxes != uncropped).any(dim=1))
    return tensors


def _shrink(boxes: Tensor, masks: Tensor, which: Tensor) -> None:
    """Shrink some boxes, in place, to the bounds of their masks."""
    from torchvision.ops import masks_to_boxes

    which = which & masks.flatten(1).any(dim=1)
    if which.any():
        bounds = masks_to_boxes(masks[which]) + torch.tensor([0, 0, 1, 1])
        old = boxes[which]
        low, high = old[:, :2].maximum(bounds[:, :2]), old[:, 2:].minimum(bounds[:, 2:])
        boxes[which] = torch.cat([low, high], dim=1)


def _pad(image: Tensor, targets: Targets, side: int) -> tuple[Tensor, Targets]:
    """Pad image and masks with 0 to a square of this side."""
    rest = (0, side - image.shape[2], 0, side - image.shape[1])
    masks = None if targets.masks is None else pad(targets.masks, rest)
    return pad(image, rest), Targets(targets.boxes, targets.labels, masks, targets.crowd)
