"""Class predictions drawn below an image."""

from PIL import Image, ImageDraw, ImageFont

from metaformer.tasks.classification.results import Classification
from metaformer.visualize.text import INK, drawable, fitted, magnification, on_panel


def annotate(image: Image.Image, result: Classification, rows: int = 3) -> Image.Image:
    """Draw the best classes, each with a bar for its probability, below an image."""
    image = image.convert("RGB")
    if (size := drawable(image.size)) != image.size:
        image = image.resize(size)
    scale = magnification(image.size)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    rows = min(rows, len(result.labels))
    letters = max(14, image.width // 24)
    line, pad = round(letters * 1.9), letters // 2
    canvas = on_panel(image, rows * line + pad)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(letters)
    for row, (label, score) in enumerate(zip(result.labels[:rows], result.scores, strict=False)):
        top = image.height + pad + row * line
        full = canvas.width - 2 * pad
        color = (64, 140, 255) if row == 0 else (88, 96, 112)
        draw.rectangle((pad, top, pad + full, top + line - pad), fill=(40, 44, 52))
        draw.rectangle((pad, top, pad + round(full * score), top + line - pad), fill=color)
        middle = top + (line - pad) / 2
        number = f"{score:.1%}"
        room = full - draw.textlength(number, font) - 3 * pad
        draw.text((2 * pad, middle), fitted(label, room, draw, font), INK, font, anchor="lm")
        draw.text((pad + full - pad, middle), number, INK, font, anchor="rm")
    return canvas
