"""What a map explains, and how it comes back from a network's input to the image."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metaformer.visualize.canvas import Box

Heat = NDArray[np.float32]
"""A map (H, W) from 0 to 1."""


@dataclass(frozen=True)
class Subject:
    """What a map explains: a class of the whole image, or in a box of it."""

    index: int
    """The class."""
    label: str
    """Its name."""
    score: float
    """How sure the network is, or the class's share of the pixels."""
    box: Box | None = None
    """In the image's pixels; None for the whole."""


@dataclass(frozen=True)
class Claim:
    """What a network says of an image, or what is true of it."""

    caption: str
    index: int
    """The class."""
    box: Box | None = None
    """In the image's pixels; None for the whole."""


class Input(NamedTuple):
    """An image as a network is given it."""

    images: Tensor
    """(1, C, H, W), normalized."""
    size: tuple[int, int]
    """Height and width of the image inside it; padding follows on the right and below."""
    region: Box
    """The part of the original image that it shows, in that image's pixels."""
    original: tuple[int, int]
    """Height and width of the original image."""

    @property
    def is_flat(self) -> bool:
        """Whether it is of one color."""
        pixels = self.images[..., : self.size[0], : self.size[1]].flatten(2)
        return bool((pixels.amax(2) == pixels.amin(2)).all())

    def scaled(self, box: Box) -> Box:
        """A box of the original image in pixels of the input."""
        left, top, right, bottom = self.region
        across, down = self.size[1] / (right - left), self.size[0] / (bottom - top)
        return (
            (box[0] - left) * across, (box[1] - top) * down, (box[2] - left) * across, (box[3] - top) * down,
        )  # fmt: skip

    def original_place(self, x: float, y: float) -> tuple[float, float]:
        """A place, given as parts of the padded input's width and height, in the original image's pixels."""
        left, top, right, bottom = self.region
        return (
            left + x * self.images.shape[3] / self.size[1] * (right - left),
            top + y * self.images.shape[2] / self.size[0] * (bottom - top),
        )

    def placed(self, values: Tensor) -> Heat:
        """A map (h, w) of the input at the size of the original image, 0 where the network does not see."""
        whole = F.interpolate(values[None, None], self.images.shape[2:], mode="bilinear", align_corners=False)
        left, top, right, bottom = map(round, self.region)
        part = whole[..., : self.size[0], : self.size[1]]
        size = (max(1, bottom - top), max(1, right - left))
        if part.shape[2:] != size:
            part = F.interpolate(part, size, mode="bilinear", align_corners=False)
        placed = torch.zeros(self.original)
        placed[top : top + size[0], left : left + size[1]] = part[0, 0].cpu()
        heat: Heat = placed.numpy()
        return heat
