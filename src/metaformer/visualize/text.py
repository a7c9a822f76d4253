"""Words drawn on images."""

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Color = tuple[int, int, int]

PANEL: Color = (24, 26, 32)
"""What is written on below an image."""
INK: Color = (255, 255, 255)
SOFT: Color = (168, 176, 190)
SMALLEST_WIDTH = 320
"""Annotated images are enlarged to this many pixels, so that the text can be read."""
LONGEST = 30_000
"""Images of a longer side are reduced to this: JPEG holds no more than twice as much."""
_HIGHEST = 4096
"""Narrow images are not enlarged beyond this height."""


def fitted(text: str, room: float, draw: ImageDraw.ImageDraw, font: Font) -> str:
    """The text, cut so that it takes no more than this many pixels."""
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "…", font) > room:
        text = text[:-1]
    return text + "…"


def drawable(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height that an image is drawn at, before it is enlarged."""
    share = min(1.0, LONGEST / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def magnification(size: tuple[int, int], width: int = SMALLEST_WIDTH) -> int:
    """How many times larger an image (width, height) is drawn, so that it is at least `width` wide."""
    return max(1, min(-(-width // size[0]), _HIGHEST // size[1]))


def on_panel(image: Image.Image, below: int, width: int = SMALLEST_WIDTH) -> Image.Image:
    """A canvas with the image at its top, and that many rows of panel below it."""
    canvas = Image.new("RGB", (max(image.width, width), image.height + below), PANEL)
    canvas.paste(image, ((canvas.width - image.width) // 2, 0))
    return canvas
