"""Drawing of segmentations: class colors over the image, class boundaries, and a legend below."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from metaformer.data.class_lists import Palette
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
from metaformer.visualize.fonts import legible

NEAREST = Image.Resampling.NEAREST
MIN_WIDTH = 384
"""Narrower images are enlarged, so that boundaries stay thin and the legend readable."""
OPACITY = 0.5
"""Opacity of the class colors."""
MAX_ENTRIES = 40
"""Classes in a legend; the smallest beyond are only counted."""
MAX_VIDEO_ENTRIES = 12
"""Classes in the legend of a video frame."""
REGION_SIDE = 96
"""Longer side of the label map in which regions are looked for, in pixels."""
Entry = tuple[str, Color, float]
"""Name, color and share of the image of a class in a legend."""


class LabelMap(Protocol):
    """A label map with its classes, such as `Segmentation`."""

    @property
    def label_map(self) -> NDArray[np.integer[Any]]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def palette(self) -> Palette: ...
    @property
    def shares(self) -> tuple[tuple[int, float], ...]: ...


def annotate(image: Image.Image, result: LabelMap, moving: bool = False) -> Image.Image:
    """Draw a segmentation over its image, with a legend of its classes below, largest first.

    Args:
        image: the image, of the label map's size.
        result: the segmentation.
        moving: the image is a video frame: the legend's size, and the position of few classes, are fixed.
    """
    size, label_map = limit_size(image.size), result.label_map
    if size != image.size:
        image, label_map = image.resize(size), np.asarray(Image.fromarray(label_map).resize(size, NEAREST))
    shown = overlay(image, label_map, result.palette, magnify=upscale_factor(size, MIN_WIDTH))
    width = max(shown.width, MIN_WIDTH)
    shares = dict(result.shares)
    steady = moving and len(result.classes) <= MAX_VIDEO_ENTRIES
    order = range(len(result.classes)) if steady else shares
    entries = [(result.classes[k], result.palette[k], shares.get(k, 0.0)) for k in order]
    below = legend(entries, width, min(len(result.classes), MAX_VIDEO_ENTRIES) if moving else None)
    canvas = add_panel(shown, below.height, width)
    canvas.paste(below, (0, shown.height))
    return canvas


def overlay(
    image: Image.Image,
    label_map: NDArray[np.integer[Any]],
    palette: Sequence[Color],
    *,
    opacity: float = OPACITY,
    magnify: int = 1,
) -> Image.Image:
    """Blend class colors into an image and draw the boundaries between classes.

    Args:
        image: the image, of the label map's size.
        label_map: class of each pixel; pixels of no class, or of a black one, are left as they are.
        palette: color of each class.
        opacity: opacity of the class colors, 0 to 1.
        magnify: factor by which the image is enlarged.
    """
    if magnify > 1:
        larger = (image.width * magnify, image.height * magnify)
        image = image.resize(larger, Image.Resampling.BICUBIC)
        label_map = label_map.repeat(magnify, axis=0).repeat(magnify, axis=1)
    image = image.convert("RGB")
    drawn = Image.blend(image, colored(label_map, palette, image), opacity)
    line = Image.fromarray(boundaries(label_map, max(1, min(image.size) // 700)))
    drawn.paste(INK, mask=line)
    return drawn


def name_regions(
    drawn: Image.Image, label_map: NDArray[np.integer[Any]], names: Sequence[str], palette: Sequence[Color]
) -> None:
    """Outline the regions of each class in its color and write its name on the larger ones, in place.

    Args:
        drawn: the image, of the label map's size.
        label_map: class of each pixel; pixels of no class, or of a black one, have neither.
        names: name of each class.
        palette: color of each class.
    """
    pixels, edge = np.array(drawn), boundaries(label_map, 1) > 0
    inner = edge.copy()
    inner[:, 1:] |= edge[:, :-1]
    inner[1:] |= edge[:-1]
    present = [int(k) for k in np.unique(label_map) if k < len(names) and any(palette[int(k)])]
    for k in present:
        pixels[inner & (label_map == k)] = palette[k]
    drawn.paste(Image.fromarray(pixels))
    letters = min(max(round(min(drawn.size) / 24), 11), 32)
    draw = ImageDraw.Draw(drawn)
    scale = max(1, max(drawn.size) // REGION_SIDE)
    small = label_map[::scale, ::scale]
    for k in present:
        label, font = legible(names[k], letters)
        for row, column, depth in deepest_points(small == k):
            if depth * scale * 2 < letters * 0.8:
                break
            text = truncate(label, drawn.width - 8, draw, font)
            half = draw.textlength(text, font) / 2 + 3
            x = min(max((column + 0.5) * scale, half), max(half, drawn.width - half))
            y = min(max((row + 0.5) * scale, letters * 0.65), drawn.height - letters * 0.65)
            draw.rectangle((x - half, y - letters * 0.6, x + half, y + letters * 0.65), fill=palette[k])
            bright = 0.299 * palette[k][0] + 0.587 * palette[k][1] + 0.114 * palette[k][2]
            draw.text((x, y), text, PANEL if bright > 130 else INK, font, anchor="mm")


def deepest_points(mask: NDArray[np.bool_], most: int = 4) -> Iterator[tuple[int, int, int]]:
    """Row, column and depth of the point farthest from the border of each connected region, deepest first.

    Args:
        mask: pixels of the regions.
        most: regions, at most.
    """
    mask = mask.copy()
    for _ in range(most):
        inside, depth = np.pad(mask, 1), 0
        left = inside
        while inside.any():
            left, depth = inside, depth + 1
            inside = inside.copy()
            inside[1:-1, 1:-1] &= left[:-2, 1:-1] & left[2:, 1:-1] & left[1:-1, :-2] & left[1:-1, 2:]
        if not depth:
            return
        rows, columns = left[1:-1, 1:-1].nonzero()
        middle = len(rows) // 2
        row, column = int(rows[middle]), int(columns[middle])
        yield row, column, depth
        region = Image.fromarray(mask.astype(np.uint8)).copy()  # of an array it cannot be filled
        ImageDraw.floodfill(region, (column, row), 0)
        mask = np.asarray(region) > 0


def colored(
    label_map: NDArray[np.integer[Any]], palette: Sequence[Color], under: Image.Image | None = None
) -> Image.Image:
    """Label map in class colors, gray where there is no class.

    Args:
        label_map: class of each pixel; values beyond the palette are no class.
        palette: color of each class.
        under: an image that is shown where there is no class, or a black one (the background).
    """
    table = np.full((int(label_map.max(initial=0)) + 1, 3), 128, dtype=np.uint8)
    count = min(len(palette), len(table))
    table[:count] = np.asarray(palette[:count], dtype=np.uint8).reshape(count, 3)
    painted = table[label_map]
    if under is not None:
        transparent = np.array([label >= count or not any(palette[label]) for label in range(len(table))])
        if transparent.any():
            outside = transparent[label_map]
            painted[outside] = np.asarray(under)[outside]
    return Image.fromarray(painted)


def boundaries(label_map: NDArray[np.integer[Any]], thickness: int = 1) -> NDArray[np.uint8]:
    """Opacity (H, W) of lines on pixels whose right or lower neighbor is of another class."""
    edge = np.zeros(label_map.shape, dtype=bool)
    edge[:, :-1] |= label_map[:, 1:] != label_map[:, :-1]
    edge[:-1] |= label_map[1:] != label_map[:-1]
    for _ in range(thickness - 1):
        edge[:, 1:] |= edge[:, :-1].copy()
        edge[1:] |= edge[:-1].copy()
    return edge.astype(np.uint8) * np.uint8(190)


def legend(entries: Sequence[Entry], width: int, slots: int | None = None) -> Image.Image:
    """Legend: a panel of classes in columns, each with color, name and share.

    Args:
        entries: the classes, the most important first.
        width: width of the panel, in pixels.
        slots: entries that the panel has space for; by default as many as needed.
    """
    size = min(max(round(width / 58), 13), 40)
    font, line, pad = ImageFont.load_default(size), round(size * 1.75), size
    columns = max(1, (width - pad) // (size * 13))
    slots = min(len(entries), MAX_ENTRIES) if slots is None else slots
    shown = entries if len(entries) <= slots else entries[: slots - 1]
    panel = Image.new("RGB", (width, -(-slots // columns) * line + pad), PANEL)
    draw, column = ImageDraw.Draw(panel), (width - pad) // columns

    def position(number: int) -> tuple[int, float]:
        return pad + number % columns * column, pad / 2 + (number // columns + 0.5) * line

    for number, (name, color, share) in enumerate(shown):
        left, middle = position(number)
        box = (left, middle - size * 0.45, left + size * 0.9, middle + size * 0.45)
        draw.rounded_rectangle(box, size // 5, fill=color, outline=SOFT)
        percent = f"{share:.1%}" if share >= 0.001 else "<0.1%" if share else "0%"
        right = left + column - pad
        space = right - left - 1.8 * size - draw.textlength(percent, font)
        label, own = legible(name, size)
        draw.text((left + 1.4 * size, middle), truncate(label, space, draw, own), INK, own, anchor="lm")
        draw.text((right, middle), percent, SOFT, font, anchor="rm")
    if len(shown) < len(entries):
        draw.text(position(len(shown)), f"and {len(entries) - len(shown)} smaller", SOFT, font, anchor="lm")
    return panel
