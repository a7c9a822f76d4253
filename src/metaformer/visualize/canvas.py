"""Canvas of an annotated image: its size, a panel below it, text and bars."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from metaformer.visualize.fonts import Font, legible

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

PANEL: Color = (24, 26, 32)
"""Background of text below an image."""
INK: Color = (255, 255, 255)
SOFT: Color = (168, 176, 190)
STRONG: Color = (64, 140, 255)
WEAK: Color = (88, 96, 112)
_TRACK: Color = (40, 44, 52)
MIN_WIDTH = 320
"""Smaller images are enlarged to at least this width, so that text is legible."""
MAX_SIDE = 30_000
"""Longer images are reduced to this, as JPEG holds at most 65,535 pixels and enlarging may double it."""
_MAX_HEIGHT = 4096
"""Narrow images are not enlarged beyond this height."""
_MAX_PANEL = 4096
"""Width from which letters below an image grow no further."""


def limit_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size (width, height) reduced to at most MAX_SIDE."""
    scale = min(1.0, MAX_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def upscale_factor(size: tuple[int, int], width: int = MIN_WIDTH) -> int:
    """Integer factor that makes an image of this size (width, height) at least `width` wide."""
    return max(1, min(-(-width // size[0]), _MAX_HEIGHT // size[1]))


def add_panel(image: Image.Image, height: int, width: int = MIN_WIDTH) -> Image.Image:
    """A canvas at least `width` wide, with the image at the top and a panel of this height below."""
    canvas = Image.new("RGB", (max(image.width, width), image.height + height), PANEL)
    canvas.paste(image, ((canvas.width - image.width) // 2, 0))
    return canvas


def truncate(text: str, width: float, draw: ImageDraw.ImageDraw, font: Font) -> str:
    """Text cut to this width in pixels, with an ellipsis."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


class Bar(NamedTuple):
    """Labeled bar."""

    label: str
    share: float
    """Length, 0 to 1."""
    color: Color = WEAK
    mark: float | None = None
    """Position of a mark such as a threshold, 0 to 1."""


def draw_bars(image: Image.Image, bars: Sequence[Bar]) -> Image.Image:
    """Draw bars with labels and percentages below an image; small images are enlarged."""
    image = image.convert("RGB")
    if (size := limit_size(image.size)) != image.size:
        image = image.resize(size)
    scale = upscale_factor(image.size)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    letters = max(14, min(image.width, _MAX_PANEL) // 24)  # the panel of a long strip is no poster
    line, pad = round(letters * 1.9), letters // 2
    canvas = add_panel(image, len(bars) * line + pad)
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
        label_width = full - draw.textlength(percent, font) - 3 * pad
        label, own = legible(bar.label, letters)
        draw.text((2 * pad, middle), truncate(label, label_width, draw, own), INK, own, anchor="lm")
        draw.text((full, middle), percent, INK, font, anchor="rm")
    return canvas
