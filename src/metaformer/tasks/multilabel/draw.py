"""Multi-label predictions drawn below an image."""

from PIL import Image

from metaformer.tasks.multilabel.results import MultilabelResult
from metaformer.visualize.canvas import STRONG, WEAK, Bar, draw_bars


def annotate(image: Image.Image, result: MultilabelResult, rows: int = 6) -> Image.Image:
    """Draw the predicted classes and then the most probable others as bars, each with its threshold."""
    bars = [
        Bar(name, score, STRONG if score >= threshold else WEAK, threshold)
        for name, score, threshold in zip(result.classes, result.scores, result.thresholds, strict=True)
    ]
    bars.sort(key=lambda bar: (bar.color is not STRONG, -bar.share))
    return draw_bars(image, bars[: max(rows, len(result.labels))])
