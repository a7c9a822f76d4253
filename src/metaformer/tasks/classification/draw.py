"""Class predictions drawn below an image."""

from PIL import Image

from metaformer.tasks.classification.results import Classification
from metaformer.visualize.canvas import STRONG, WEAK, Bar, draw_bars


def annotate(image: Image.Image, result: Classification, rows: int = 3) -> Image.Image:
    """Draw the best classes, each with a bar for its probability, below an image."""
    pairs = list(zip(result.labels, result.scores, strict=True))[:rows]
    return draw_bars(
        image, [Bar(label, score, WEAK if row else STRONG) for row, (label, score) in enumerate(pairs)]
    )
