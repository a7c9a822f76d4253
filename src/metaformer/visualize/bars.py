"""Labeled bars drawn below an image."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from metaformer.visualize.text import INK, Color, drawable, fitted, magnification, on_panel

STRONG: Color = (64, 140, 255)
WEAK: Color = (88, 96, 112)
_TRACK: Color = (40, 44, 52)


class Bar(NamedTuple):
    """One bar."""

    label: str
    share: float
    """Its length, 0 … 1."""
    color: Color = WEAK
    mark: float | None = None
    """Place of a mark on it, such as a threshold, 0 … 1."""


def draw_bars(image: Image.Image, bars: Sequence[Bar]) -> Image.Image:
    """Draw bars with their labels and percentages below an image, which is enlarged if it is small."""
    image = image.convert("RGB")
    if (size := drawable(image.size)) != image.size:
        image = image.resize(size)
    scale = magnification(image.size)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    letters = max(14, image.width // 24)
    line, pad = round(letters * 1.9), letters // 2
    canvas = on_panel(image, len(bars) * line + pad)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(letters)
    for row, bar in enumerate(bars):
        top = image.height + pad + row * line
        bottom, full = top + line - pad, canvas.width - 2 * pad
        draw.rectangle((pad, top, pad + full, bottom), fill=_TRACK)
        draw.rectangle((pad, top, pad + round(full * bar.share), bottom), fill=bar.color)
        if bar.mark is not None:
            x = pad + round(full * bar.mark)
            draw.line((x, top, x, bottom), fill=INK, width=max(1, letters // 8))
        middle, percent = top + (line - pad) / 2, f"{bar.share:.1%}"
        room = full - draw.textlength(percent, font) - 3 * pad
        draw.text((2 * pad, middle), fitted(bar.label, room, draw, font), INK, font, anchor="lm")
        draw.text((full, middle), percent, INK, font, anchor="rm")
    return canvas
