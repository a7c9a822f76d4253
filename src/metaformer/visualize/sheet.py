"""Sheet of captioned images in titled rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

from metaformer.visualize.canvas import INK, PANEL, SOFT, truncate
from metaformer.visualize.fonts import legible

SIDE: Final = 224
"""Longer side of an image on a sheet, in pixels."""
GAP: Final = 12
TITLE: Final = 17
"""Size of a row's title, in pixels; captions are smaller."""
CAPTION: Final = 14


@dataclass(frozen=True)
class Tile:
    """Image with a caption."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class TileRow:
    """Images beside each other, under a title."""

    title: str
    tiles: Sequence[Tile]


def draw_sheet(rows: Sequence[TileRow], side: int = SIDE) -> Image.Image:
    """Draw rows of images, each scaled to a longer side of `side` pixels."""
    scaled = [[fit(tile.image, side) for tile in row.tiles] for row in rows]
    widths = [sum(image.width + GAP for image in row) + GAP for row in scaled]
    heights = [max(image.height for image in row) + TITLE + CAPTION + 3 * GAP for row in scaled]
    canvas = Image.new("RGB", (max(widths), sum(heights) + GAP), PANEL)
    draw, top = ImageDraw.Draw(canvas), GAP
    for row, images, height in zip(rows, scaled, heights, strict=True):
        title, font = legible(row.title, TITLE)
        draw.text((GAP, top), truncate(title, canvas.width - 2 * GAP, draw, font), INK, font)
        below, left = top + TITLE + GAP, GAP
        for tile, image in zip(row.tiles, images, strict=True):
            canvas.paste(image, (left, below))
            caption, font = legible(tile.caption, CAPTION)
            place = (left, below + image.height + GAP // 3)
            draw.text(place, truncate(caption, image.width, draw, font), SOFT, font)
            left += image.width + GAP
        top += height
    return canvas


def fit(image: Image.Image, side: int = SIDE) -> Image.Image:
    """An image scaled to a longer side of `side` pixels; small ones are enlarged."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
