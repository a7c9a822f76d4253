"""Drawing of boxes and masks on images, in class colors, with names and scores."""

import colorsys
from collections.abc import Sequence
from math import ceil, floor
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from metaformer.data.class_lists import Palette
from metaformer.data.rle import Mask, decode
from metaformer.visualize.canvas import INK, PANEL, Box, Color, limit_size, truncate, upscale_factor
from metaformer.visualize.fonts import Font, legible

MIN_WIDTH = 384
"""Narrower images are enlarged, so that names can be read."""
ALPHA = 0.45
"""Opacity of masks."""


class Shape(NamedTuple):
    """One object to draw."""

    box: Box
    """In the image's pixels."""
    text: str
    """Label at the box; empty for none."""
    color: Color
    mask: Mask | None = None
    """RLE; a mask of another size is stretched over the image."""


class Objects(Protocol):
    """Detected objects, such as `DetectedObjects`."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def palette(self) -> Palette: ...
    @property
    def masks(self) -> tuple[Mask, ...] | None: ...
    def __len__(self) -> int: ...


def draw_objects(image: Image.Image, objects: Objects) -> Image.Image:
    """Draw detected objects with class and score; small images are enlarged."""
    masks = objects.masks or (None,) * len(objects)
    rows = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.scores.tolist(), masks, strict=True)
    return draw_shapes(
        image,
        [
            Shape(tuple(box), f"{objects.classes[label]} {score:.2f}", objects.palette[label], mask)
            for box, label, score, mask in rows
        ],
    )


def draw_shapes(image: Image.Image, shapes: Sequence[Shape], width: int = MIN_WIDTH) -> Image.Image:
    """Draw objects over an image, the first on top.

    Args:
        image: an image of any size.
        shapes: the objects, the most important first.
        width: least width of the drawing, in pixels.
    """
    size = limit_size(image.size)
    magnify = upscale_factor(size, width)
    canvas = image.convert("RGB").resize((size[0] * magnify, size[1] * magnify), Image.Resampling.BICUBIC)
    across, down = canvas.width / image.width, canvas.height / image.height
    thick = max(2, round(min(canvas.size) / 250))
    placed = [
        one._replace(
            box=(one.box[0] * across, one.box[1] * down, one.box[2] * across, one.box[3] * down),
            color=brighten(one.color),
        )
        for one in shapes
    ]
    canvas = _blend_masks(canvas, placed, thick)
    draw = ImageDraw.Draw(canvas)
    for one in reversed(placed):
        left, top, right, bottom = one.box
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        # a light line outside and a dark one inside: one of them contrasts with any image
        draw.rectangle(tuple(np.add(corners, (-1, -1, 1, 1))), outline=INK, width=1)
        draw.rectangle(corners, outline=PANEL, width=thick + 1)
        draw.rectangle(corners, outline=one.color, width=thick)
    _draw_labels(draw, placed, canvas.size)
    return canvas


def brighten(color: Color) -> Color:
    """Class color with a brightness of at least one half, in which lines are visible; the hue stays."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 0.5 + value / 2)
    return round(red * 255), round(green * 255), round(blue * 255)


def _blend_masks(canvas: Image.Image, shapes: Sequence[Shape], thick: int) -> Image.Image:
    """Blend the masks in, each with an outline."""
    if all(one.mask is None for one in shapes):
        return canvas
    pixels = np.array(canvas)
    for one in reversed(shapes):
        if one.mask is None:
            continue
        region, inside = _scale_mask(decode(one.mask), one.box, canvas.size)
        part, color = pixels[region], np.array(one.color)
        part[inside] = part[inside] * (1 - ALPHA) + color * ALPHA
        part[_edge(inside, thick // 2)] = color
    return Image.fromarray(pixels)


def _scale_mask(mask: NDArray[np.bool_], box: Box, size: tuple[int, int]) -> tuple[Any, NDArray[np.bool_]]:
    """Rows and columns of a canvas (width, height) around a box, and the mask scaled to these."""
    height, width = mask.shape
    margin = (max(size) / max(mask.shape)) + 1  # a pixel of the mask may reach beyond the box
    ends = [(0, 2, size[0]), (1, 3, size[1])]
    columns, rows = (
        np.arange(max(0, floor(box[low] - margin)), min(whole, ceil(box[high] + margin)))
        for low, high, whole in ends
    )
    own = mask[
        ((rows + 0.5) * height / size[1]).astype(int)[:, None],
        ((columns + 0.5) * width / size[0]).astype(int),
    ]
    span = tuple(slice(some[0], some[-1] + 1) if len(some) else slice(0, 0) for some in (rows, columns))
    return span, own


def _edge(inside: NDArray[np.bool_], thick: int) -> NDArray[np.bool_]:
    """Pixels of a mask near its border: those that erosion removes."""
    eroded = inside.copy()
    for _ in range(max(1, thick)):
        padded = np.pad(eroded, 1)
        eroded = eroded & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~eroded


def _draw_labels(draw: ImageDraw.ImageDraw, shapes: Sequence[Shape], size: tuple[int, int]) -> None:
    """Draw each label where it covers no other, if there is such a place at its box."""
    letters = min(max(round((size[0] * size[1]) ** 0.5 / 40), 12), 64)
    pad = max(2, letters // 5)
    taken = np.zeros((len(shapes), 4))  # preallocated: an image may have thousands of objects
    tags: list[tuple[Box, str, Color, Font]] = []
    for one in shapes:
        if one.text:
            text, font = legible(one.text, letters)
            text = truncate(text, size[0] - 2 * pad, draw, font)
            tag = _free(
                one.box, draw.textlength(text, font) + 2 * pad, letters * 1.25, size, taken[: len(tags)]
            )
            taken[len(tags)] = tag
            tags.append((tag, text, one.color, font))
    for tag, text, color, font in reversed(tags):
        _tag(draw, tag, text, color, font, pad)


def _free(box: Box, width: float, height: float, size: tuple[int, int], taken: NDArray[np.float64]) -> Box:
    """Place at a box that covers the least of the taken ones; the first of several."""
    left, top, right, bottom = box
    corners = [
        (left, top - height), (left, top), (left, bottom), (left, bottom - height),
        (right - width, top - height), (right - width, top), (right - width, bottom), (right, top),
    ]  # fmt: skip
    places = []
    for x, y in corners:
        x, y = min(max(x, 0), max(0, size[0] - width)), min(max(y, 0), max(0, size[1] - height))
        places.append((x, y, x + width, y + height))
    return places[int(_covered(np.array(places), taken).argmin())]


def _covered(places: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of each place (P, 4) that boxes (N, 4) cover: (P,)."""
    low = np.maximum(places[:, None, :2], taken[:, :2])
    high = np.minimum(places[:, None, 2:], taken[:, 2:])
    shared: NDArray[np.float64] = (high - low).clip(0).prod(axis=2).sum(axis=1)
    return shared


def _tag(draw: ImageDraw.ImageDraw, tag: Box, text: str, color: Color, font: Font, pad: int) -> None:
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.rectangle(tag, fill=color)
    draw.text((tag[0] + pad, (tag[1] + tag[3]) / 2), text, PANEL if bright > 130 else INK, font, anchor="lm")
