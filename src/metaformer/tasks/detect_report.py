"""What an evaluation of a detector comes to."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metaformer.metrics.average_precision import Kind
from metaformer.metrics.detection_figures import DetectionFigures
from metaformer.metrics.mask_areas import Mask
from metaformer.tasks.results import write_report
from metaformer.tasks.segment_results import Palette

HEADS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
    "AR": "ar_100",
}
"""The columns of the figures, and where they come from."""


@dataclass(frozen=True)
class ExampleObject:
    """An object of an evaluated picture."""

    label: int
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in the picture's pixels."""
    score: float | None = None
    """How sure the network is; None of one that is annotated."""
    crowd: bool = False
    """Many annotated objects in one box."""
    mask: Mask | None = None
    """Its pixels, in the picture made small."""


@dataclass(frozen=True)
class DetectExample:
    """One evaluated picture, for the report."""

    path: str
    index: int
    """Its place in the data set."""
    size: tuple[int, int]
    """Width and height."""
    f1: float
    """Harmonic mean of the shares of right among the objects found, and of found among the annotated."""
    truth: tuple[ExampleObject, ...]
    predicted: tuple[ExampleObject, ...]


@dataclass(frozen=True, eq=False)
class DetectReport:
    """How well a detector does on a data set."""

    images: int
    figures: Mapping[Kind, DetectionFigures]
    """Of boxes, and of masks where they were measured."""
    palette: Palette
    """Colour of each class."""
    examples: tuple[DetectExample, ...] = ()
    """The worst pictures, then the best; none twice."""

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their numbers."""
        return [row.name for row in self.figures["bbox"].per_class]

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that a log holds, those of masks as `mask_ap` and so on.

        Of sizes that no object has there are none; `ap`, `ap50` and `ap75` are 0 where nothing is annotated.
        """
        values: dict[str, float] = {}
        for kind, figures in self.figures.items():
            for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_100"):
                value = getattr(figures, name)
                if value is not None or name in ("ap", "ap50", "ap75"):
                    values[name if kind == "bbox" else f"mask_{name}"] = value or 0.0
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "images": self.images,
            "objects": self.figures["bbox"].objects,
            **self.metrics,
            "figures": {kind: asdict(figures) for kind, figures in self.figures.items()},
            "classes": self.classes,
            "palette": [list(colour) for colour in self.palette],
            "examples": [asdict(example) for example in self.examples],
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as a JSON file.

        Raises:
            OutputError: it cannot be written.
        """
        return write_report(self.to_dict(), path)

    def text(self, rows: int = 20) -> str:
        """Make a page to read: the figures, then the table of classes, weakest first."""
        objects = self.figures["bbox"].objects
        lines = [f"{self.images} images, {objects:,} objects", "", _row("", HEADS)]
        for kind, figures in self.figures.items():
            name = "boxes" if kind == "bbox" else "masks"
            lines.append(_row(name, [_percent(getattr(figures, key)) for key in HEADS.values()]))
        if not objects:
            lines.append("no object is annotated: there is nothing to measure")
        return "\n".join([*lines, "", *_table(self.figures, rows)])


def _row(name: str, cells: Collection[str]) -> str:
    return f"{name:<6}" + "".join(f"{cell:>8}" for cell in cells)


def _table(figures: Mapping[Kind, DetectionFigures], rows: int) -> list[str]:
    """The classes that there are objects of, weakest first."""
    both = list(zip(*(one.per_class for one in figures.values()), strict=True))
    there = sorted(
        (kinds for kinds in both if kinds[0].objects), key=lambda kinds: (kinds[0].ap or 0.0, kinds[0].name)
    )
    width = max([5, *(len(kinds[0].name) for kinds in there[:rows])])
    lines = [f"{'class':<{width}}  objects    found      AP    AP50" + "  mask AP" * (len(figures) - 1)]
    lines += [
        f"{box.name:<{width}}  {box.objects:>7,}  {box.found:>7,}"
        + "".join(f"  {_percent(share):>6}" for share in (box.ap, box.ap50))
        + "".join(f"  {_percent(mask.ap):>7}" for mask in masks)
        for box, *masks in there[:rows]
    ]
    if len(there) > rows:
        lines.append(f"… and {len(there) - rows} classes that do better (all of them are in the JSON)")
    if len(there) < len(both):
        lines.append(f"{len(both) - len(there)} classes without objects: left out")
    return lines


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
