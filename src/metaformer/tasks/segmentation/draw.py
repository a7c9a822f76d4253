"""A segmentation drawn on its image: class colors, thin boundaries, and a legend below."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from metaformer.tasks.segmentation.results import Segmentation
from metaformer.visualize.canvas import (
    INK,
    PANEL,
    SOFT,
    Color,
    add_panel,
    limit_size,
    truncate,
    upscale_factor,
)

NEAREST = Image.Resampling.NEAREST
SMALLEST_WIDTH = 384
"""Smaller images are enlarged, so that boundaries are thin and the legend can be read."""
STRENGTH = 0.5
"""Share of the class color in a pixel."""
MOST_ENTRIES = 40
"""Classes of a legend; the smallest beyond are told by their number."""

MOVING_ENTRIES = 12
"""The same of frames."""

Entry = tuple[str, Color, float]
"""A class in a legend: its name, its color and the share of the image that it covers."""


def annotate(image: Image.Image, result: Segmentation, moving: bool = False) -> Image.Image:
    """Draw a segmentation over its image, with the classes it holds below, largest first.

    Args:
        image: the image, of the label map's size.
        result: what was found in it.
        moving: it is a frame of many: the legend keeps its size and, of few classes, each its place.
    """
    size, label_map = limit_size(image.size), result.label_map
    if size != image.size:
        image, label_map = image.resize(size), np.asarray(Image.fromarray(label_map).resize(size, NEAREST))
    shown = overlay(image, label_map, result.palette, magnify=upscale_factor(size, SMALLEST_WIDTH))
    width = max(shown.width, SMALLEST_WIDTH)
    shares = dict(result.shares)
    steady = moving and len(result.classes) <= MOVING_ENTRIES
    order = range(len(result.classes)) if steady else shares
    entries = [(result.classes[k], result.palette[k], shares.get(k, 0.0)) for k in order]
    below = legend(entries, width, min(len(result.classes), MOVING_ENTRIES) if moving else None)
    canvas = add_panel(shown, below.height, width)
    canvas.paste(below, (0, shown.height))
    return canvas


def overlay(
    image: Image.Image,
    label_map: NDArray[np.integer[Any]],
    palette: Sequence[Color],
    *,
    strength: float = STRENGTH,
    magnify: int = 1,
) -> Image.Image:
    """Blend class colors into an image and draw the boundaries between classes.

    Args:
        image: the image, of the label map's size.
        label_map: class of each pixel; what is of no class, or of a black one, is not painted.
        palette: color of each class.
        strength: share of the class color, 0 to 1.
        magnify: how many times larger to draw.
    """
    if magnify > 1:
        larger = (image.width * magnify, image.height * magnify)
        image = image.resize(larger, Image.Resampling.BICUBIC)
        label_map = label_map.repeat(magnify, axis=0).repeat(magnify, axis=1)
    image = image.convert("RGB")
    drawn = Image.blend(image, colored(label_map, palette, image), strength)
    line = Image.fromarray(boundaries(label_map, max(1, min(image.size) // 700)))
    drawn.paste(INK, mask=line)
    return drawn


def colored(
    label_map: NDArray[np.integer[Any]], palette: Sequence[Color], under: Image.Image | None = None
) -> Image.Image:
    """Paint a label map in class colors, and gray where it is of no class.

    Args:
        label_map: class of each pixel; numbers beyond the palette are no class.
        palette: color of each class.
        under: an image to leave as it is where there is no class, or a black one: that is for backgrounds.
    """
    table = np.full((int(label_map.max(initial=0)) + 1, 3), 128, dtype=np.uint8)
    count = min(len(palette), len(table))
    table[:count] = np.asarray(palette[:count], dtype=np.uint8).reshape(count, 3)
    painted = table[label_map]
    if under is not None:
        bare = np.array([label >= count or not any(palette[label]) for label in range(len(table))])
        if bare.any():
            outside = bare[label_map]
            painted[outside] = np.asarray(under)[outside]
    return Image.fromarray(painted)


def boundaries(label_map: NDArray[np.integer[Any]], thickness: int = 1) -> NDArray[np.uint8]:
    """Mark pixels, with how opaque a line on them is, whose right or lower neighbor is of another class."""
    edge = np.zeros(label_map.shape, dtype=bool)
    edge[:, :-1] |= label_map[:, 1:] != label_map[:, :-1]
    edge[:-1] |= label_map[1:] != label_map[:-1]
    for _ in range(thickness - 1):
        edge[:, 1:] |= edge[:, :-1].copy()
        edge[1:] |= edge[:-1].copy()
    return edge.astype(np.uint8) * np.uint8(190)


def legend(entries: Sequence[Entry], width: int, places: int | None = None) -> Image.Image:
    """Draw a panel of classes in columns: color, name, share.

    Args:
        entries: the classes, the most important first.
        width: of the panel, in pixels.
        places: how many entries there is room for; as many as needed if None.
    """
    size = min(max(round(width / 58), 13), 40)
    font, line, pad = ImageFont.load_default(size), round(size * 1.75), size
    columns = max(1, (width - pad) // (size * 13))
    places = min(len(entries), MOST_ENTRIES) if places is None else places
    kept = entries if len(entries) <= places else entries[: places - 1]
    panel = Image.new("RGB", (width, -(-places // columns) * line + pad), PANEL)
    draw, room = ImageDraw.Draw(panel), (width - pad) // columns

    def place(number: int) -> tuple[int, float]:
        return pad + number % columns * room, pad / 2 + (number // columns + 0.5) * line

    for number, (name, color, share) in enumerate(kept):
        left, middle = place(number)
        box = (left, middle - size * 0.45, left + size * 0.9, middle + size * 0.45)
        draw.rounded_rectangle(box, size // 5, fill=color, outline=SOFT)
        told = f"{share:.1%}" if share >= 0.001 else "<0.1%" if share else "0%"
        right = left + room - pad
        space = right - left - 1.8 * size - draw.textlength(told, font)
        draw.text((left + 1.4 * size, middle), truncate(name, space, draw, font), INK, font, anchor="lm")
        draw.text((right, middle), told, SOFT, font, anchor="rm")
    if len(kept) < len(entries):
        draw.text(place(len(kept)), f"and {len(entries) - len(kept)} smaller", SOFT, font, anchor="lm")
    return panel
