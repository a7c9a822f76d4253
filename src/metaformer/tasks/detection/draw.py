"""Objects drawn on their image: boxes and masks in class colors, with names and scores."""

import colorsys
from collections.abc import Sequence
from math import ceil, floor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from metaformer.data.rle import Mask, decode
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.visualize.canvas import INK, PANEL, Color, Font, limit_size, truncate, upscale_factor

SMALLEST_WIDTH = 384
"""Smaller images are enlarged, so that names can be read."""
STRENGTH = 0.45
"""Share of the class color in an object's pixels."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


class Shape(NamedTuple):
    """One object as it is drawn."""

    box: Box
    """In the image's pixels."""
    text: str
    """What stands at the box; nothing where it is empty."""
    color: Color
    mask: Mask | None = None
    """Run lengths of its pixels; the whole of it is stretched over the whole image."""


def annotate(image: Image.Image, objects: DetectedObjects) -> Image.Image:
    """Draw the objects of an image, with class and score of each; small images are enlarged."""
    masks = objects.masks or (None,) * len(objects)
    rows = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.scores.tolist(), masks, strict=True)
    return drawn(
        image,
        [
            Shape(tuple(box), f"{objects.classes[label]} {score:.2f}", objects.palette[label], mask)
            for box, label, score, mask in rows
        ],
    )


def drawn(image: Image.Image, shapes: Sequence[Shape], width: int = SMALLEST_WIDTH) -> Image.Image:
    """Draw objects over an image, the first on top of the others.

    Args:
        image: of any size.
        shapes: the objects, the most important first.
        width: pixels that the drawing is at least wide.
    """
    size = limit_size(image.size)
    magnify = upscale_factor(size, width)
    canvas = image.convert("RGB").resize((size[0] * magnify, size[1] * magnify), Image.Resampling.BICUBIC)
    across, down = canvas.width / image.width, canvas.height / image.height
    thick = max(2, round(min(canvas.size) / 250))
    placed = [
        one._replace(
            box=(one.box[0] * across, one.box[1] * down, one.box[2] * across, one.box[3] * down),
            color=vivid(one.color),
        )
        for one in shapes
    ]
    canvas = _masked(canvas, placed, thick)
    draw = ImageDraw.Draw(canvas)
    for one in reversed(placed):
        left, top, right, bottom = one.box
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        draw.rectangle(tuple(np.add(corners, (-1, -1, 1, 1))), outline=PANEL, width=thick + 2)
        draw.rectangle(corners, outline=one.color, width=thick)
    _write(draw, placed, canvas.size)
    return canvas


def vivid(color: Color) -> Color:
    """A class color made so bright that a line of it is seen; which it is stays as it was."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 0.5 + value / 2)
    return round(red * 255), round(green * 255), round(blue * 255)


def _masked(canvas: Image.Image, shapes: Sequence[Shape], thick: int) -> Image.Image:
    """Blend the masks' colors in, each with a line around it."""
    if all(one.mask is None for one in shapes):
        return canvas
    pixels = np.array(canvas)
    for one in reversed(shapes):
        if one.mask is None:
            continue
        region, inside = _part(decode(one.mask), one.box, canvas.size)
        under, color = pixels[region], np.array(one.color)
        under[inside] = under[inside] * (1 - STRENGTH) + color * STRENGTH
        under[_edge(inside, thick // 2)] = color
    return Image.fromarray(pixels)


def _part(mask: NDArray[np.bool_], box: Box, size: tuple[int, int]) -> tuple[Any, NDArray[np.bool_]]:
    """Rows and columns of a canvas (width, height) where a mask lies, and which pixels there are its own."""
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
    """The pixels of a mask that are near others."""
    kept = inside.copy()
    for _ in range(max(1, thick)):
        padded = np.pad(kept, 1)
        kept = kept & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~kept


def _write(draw: ImageDraw.ImageDraw, shapes: Sequence[Shape], size: tuple[int, int]) -> None:
    """Put each text where it hides no other's, if there is such a place at its box."""
    letters = min(max(round((size[0] * size[1]) ** 0.5 / 40), 12), 64)
    font, pad = ImageFont.load_default(letters), max(2, letters // 5)
    taken = np.zeros((len(shapes), 4))  # a scene may hold thousands of objects
    tags: list[tuple[Box, str, Color]] = []
    for one in shapes:
        if one.text:
            text = truncate(one.text, size[0] - 2 * pad, draw, font)
            tag = _free(
                one.box, draw.textlength(text, font) + 2 * pad, letters * 1.25, size, taken[: len(tags)]
            )
            taken[len(tags)] = tag
            tags.append((tag, text, one.color))
    for tag, text, color in reversed(tags):
        _tag(draw, tag, text, color, font, pad)


def _free(box: Box, width: float, height: float, size: tuple[int, int], taken: NDArray[np.float64]) -> Box:
    """Of the places at a box the first that covers nothing that is taken, or else the least."""
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
    """How much of each place (P, 4) is taken by boxes (N, 4): (P,)."""
    low = np.maximum(places[:, None, :2], taken[:, :2])
    high = np.minimum(places[:, None, 2:], taken[:, 2:])
    shared: NDArray[np.float64] = (high - low).clip(0).prod(axis=2).sum(axis=1)
    return shared


def _tag(draw: ImageDraw.ImageDraw, tag: Box, text: str, color: Color, font: Font, pad: int) -> None:
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.rectangle(tag, fill=color)
    draw.text((tag[0] + pad, (tag[1] + tag[3]) / 2), text, PANEL if bright > 130 else INK, font, anchor="lm")
