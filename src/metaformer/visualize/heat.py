"""Maps in colors, alone and over their image."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from metaformer.visualize.canvas import INK, Box
from metaformer.visualize.sheet import fit

COLORS: Final = (
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
    (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
)  # fmt: skip
"""From 0 to 1 in equal steps: black over red to light yellow, brighter with every step (inferno)."""
DIMMED: Final = 0.55
"""Brightness that the image keeps where the map is 0."""
OPAQUE: Final = 0.7
"""Opacity of the map where it is 1."""


def color_map(values: NDArray[Any]) -> Image.Image:
    """Values (H, W) from 0 to 1 as an image, the larger the brighter."""
    steps = np.linspace(0, 1, len(COLORS))
    channels = [np.interp(values, steps, channel) for channel in zip(*COLORS, strict=True)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def overlay(image: Image.Image, values: NDArray[Any]) -> Image.Image:
    """A map (H, W) from 0 to 1 over its image, which is darker and grayer the smaller the value.

    Args:
        image: RGB, of the map's size.
        values: the map.
    """
    gray = np.asarray(image.convert("L"), np.float32)[..., None]
    pixels = np.asarray(image.convert("RGB"), np.float32)
    weight = np.asarray(values, np.float32)[..., None]
    base = (gray + pixels) / 2 * (DIMMED + (1 - DIMMED) * weight)
    colors = np.asarray(color_map(values), np.float32)
    mixed = base * (1 - OPAQUE * weight) + colors * OPAQUE * weight
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def heat_tile(image: Image.Image, values: NDArray[Any], box: Box | None = None) -> Image.Image:
    """A map over its image at the size of a sheet's images, with a box in the image's pixels."""
    tile = fit(overlay(image, values))
    if box is not None:
        across, down = tile.width / image.width, tile.height / image.height
        left, top, right, bottom = box[0] * across, box[1] * down, box[2] * across - 1, box[3] * down - 1
        corners = (left, top, max(left, right), max(top, bottom))  # a box may be thinner than a pixel
        ImageDraw.Draw(tile).rectangle(corners, outline=INK, width=2)
    return tile


def draw_circle(image: Image.Image, x: float, y: float) -> Image.Image:
    """Draw a small circle on an image, which is returned; x and y are parts of its width and height."""
    center, radius = (x * image.width, y * image.height), max(image.size) / 28
    corners = (center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius)
    ImageDraw.Draw(image).ellipse(corners, outline=INK, width=2)
    return image
