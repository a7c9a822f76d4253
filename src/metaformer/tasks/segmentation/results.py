"""Results of segmentation: predicted label maps, and evaluation reports."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.color import to_hex
from metaformer.data.class_lists import Palette
from metaformer.errors import DataError
from metaformer.report.blocks import percentage
from metaformer.tasks.dense import shrink
from metaformer.tasks.outputs import DrawnResult, named_shares
from metaformer.tasks.report import Report, class_table, confusion_values
from metaformer.tasks.segmentation.draw import annotate
from metaformer.tasks.segmentation.metrics import ClassIoU, SegmentationFigures

BLOCK = 1 << 20
"""Pixels that are counted at once."""
IGNORED = (224, 224, 192)
"""Color of ignored pixels: that of borders in Pascal VOC."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(DrawnResult):
    """Label map of one image."""

    path: str
    """The image file; empty for an image in memory."""
    label_map: NDArray[np.integer[Any]]
    """Class of each pixel (H, W) at the image's own size: uint8, or uint16 for more than 256 classes."""
    classes: tuple[str, ...]
    """Class names."""
    palette: Palette
    """RGB color of each class."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.label_map.shape
        return width, height

    @property
    def shares(self) -> tuple[tuple[int, float], ...]:
        """Index and share of the pixels of each class that occurs, largest first."""
        return tuple((label, area / self.label_map.size) for label, area in areas(self.label_map).items())

    def image(self) -> Image.Image:
        """The label map in the palette's colors; see `paletted`."""
        return paletted(self.label_map, self.palette)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: path, size and the share of each class, largest first."""
        width, height = self.size
        classes = {self.classes[label]: share for label, share in self.shares}
        return {"path": self.path, "width": width, "height": height, "classes": classes}

    def to_response(self) -> dict[str, Any]:
        """Plain values for viewers: the label map as a PNG, and the classes in it, largest first.

        The PNG has an 8-bit index of a class a pixel, or for more than 256 classes two bytes, as red and
        green.
        """
        pixels = self.label_map
        if len(self.classes) > 256:
            pixels = np.stack([pixels >> 8, pixels & 255, np.zeros_like(pixels)], axis=-1)
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(stream, "PNG", compress_level=1)
        classes = [
            {"name": self.classes[k], "index": k, "color": to_hex(self.palette[k]), "share": share}
            for k, share in self.shares
        ]
        encoded = base64.b64encode(stream.getvalue()).decode()
        return {"labels": f"data:image/png;base64,{encoded}", "classes": classes}

    def _summary(self) -> str:
        width, height = self.size
        return (
            f"{width}×{height} pixels, {named_shares((self.classes[k], share) for k, share in self.shares)}"
        )

    def _draw(self, image: Image.Image) -> Image.Image:
        if image.size != self.size:
            raise DataError(f"an image of {image.width}x{image.height} for a label map of {self.size}")
        return annotate(image, self)


@dataclass(frozen=True)
class SegmentExample:
    """An evaluated image in a report."""

    path: str
    index: int
    """Its index in the data set."""
    miou: float
    """Mean IoU over the classes that occur or are predicted in the image."""
    truth: str
    """True label map as a PNG with palette, longest side at most 256 pixels, base64."""
    predicted: str
    """Predicted label map in the same format."""
    labels: tuple[int, ...]
    """Classes in both label maps, largest area first."""


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationReport(Report):
    """Evaluation of a segmenter on a data set."""

    images: int
    figures: SegmentationFigures
    confusion: Tensor
    """Confusion matrix of pixels (K, K), int64: true class by row, predicted class by column."""
    palette: Palette
    """Color of each class."""
    examples: tuple[SegmentExample, ...] = ()
    """The worst images, then the best, by their mean IoU; none twice."""

    @property
    def classes(self) -> list[str]:
        """Class names."""
        return [row.name for row in self.figures.per_class]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by their names in logs."""
        return {"miou": self.figures.miou, "aacc": self.figures.aacc, "macc": self.figures.macc}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        table = [
            {**asdict(row), "iou": row.iou, "accuracy": row.accuracy, "precision": row.precision}
            for row in self.figures.per_class
        ]
        return {
            "images": self.images,
            "pixels": self.figures.pixels,
            **self.metrics,
            "classes": self.classes,
            "per_class": table,
            "palette": [list(color) for color in self.palette],
            "examples": [asdict(example) for example in self.examples],
            **confusion_values(self.confusion),
        }

    def text(self, rows: int = 20) -> str:
        """Format the metrics and a table of the classes, weakest first."""
        lines = [
            f"images   {self.images}",
            f"mIoU     {self.figures.miou:.2%}",
            f"aAcc     {self.figures.aacc:.2%}",
            f"mAcc     {self.figures.macc:.2%}",
        ]
        if not self.figures.pixels:
            lines.append("no labeled pixels")
        return "\n".join([*lines, "", *_table(self.figures.per_class, rows)])


def paletted(label_map: NDArray[np.integer[Any]], palette: Palette) -> Image.Image:
    """Label map as an image: mode P, in which 255 is ignored; RGB for more than 255 classes."""
    if len(palette) > 255:
        colors = np.asarray([*palette, IGNORED], dtype=np.uint8)
        return Image.fromarray(colors[np.minimum(label_map, len(palette))])
    image = Image.fromarray(np.asarray(label_map, dtype=np.uint8))
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[: len(palette)] = palette
    colors[255] = IGNORED
    image.putpalette(colors.tobytes())
    return image


def thumbnail(label_map: NDArray[np.integer[Any]], palette: Palette) -> str:
    """Reduced label map as a PNG with palette, base64."""
    stream = io.BytesIO()
    paletted(shrink(label_map), palette).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def areas(label_map: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Pixels of each value that occurs, largest first, then by value."""
    flat = label_map.reshape(-1)
    counts = np.zeros(int(flat.max()) + 1, dtype=np.int64)
    for first in range(0, len(flat), BLOCK):  # bincount converts to int64
        counts += np.bincount(flat[first : first + BLOCK], minlength=len(counts))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda label: (-counts[label], label))
    return {label: int(counts[label]) for label in order}


def _table(per_class: Sequence[ClassIoU], rows: int) -> list[str]:
    """Table of the classes that occur or are predicted, weakest first."""
    present = [row for row in per_class if row.iou is not None]
    weakest = sorted(present, key=lambda row: (row.iou or 0.0, row.name))
    table = [
        (
            row.name,
            f"{row.pixels:,}",
            *(percentage(share, 2) for share in (row.iou, row.accuracy, row.precision)),
        )
        for row in weakest
    ]
    lines = class_table(("class", "pixels", "IoU", "accuracy", "precision"), table, rows)
    if len(present) < len(per_class):
        lines.append(f"{len(per_class) - len(present)} classes neither occur nor are predicted")
    return lines
