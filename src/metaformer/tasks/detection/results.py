"""What detection hands out: the objects of images."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from metaformer.data.class_lists import Palette
from metaformer.data.rle import Mask, compress, counts_of, decode, encode, mask_areas
from metaformer.errors import DataError, MissingPackage, UnknownName
from metaformer.tasks.detection.metrics import DetectionFigures, Found, Kind
from metaformer.tasks.outputs import Report, class_table

if TYPE_CHECKING:
    import supervision

    from metaformer.models.detection.structures import Detections


BLOCK = 1 << 24
"""Pixels of masks that are there at once."""


@dataclass(frozen=True, eq=False)
class DetectedObjects:
    """The objects of one image, best first.

    Raises:
        DataError: values that do not fit each other, or cannot be.
    """

    path: str
    """Where the image came from; empty for one that was handed over."""
    size: tuple[int, int]
    """Width and height of the image."""
    boxes: NDArray[np.float32]
    """Left, top, right and bottom (N, 4), in the image's pixels."""
    scores: NDArray[np.float32]
    """How sure the network is (N,), 0 … 1."""
    labels: NDArray[np.int64]
    """Classes (N,), from 0."""
    classes: tuple[str, ...]
    """Class names in the order of their numbers."""
    palette: Palette
    """Color of each class, red, green and blue."""
    masks: tuple[Mask, ...] | None = None
    """Each object's pixels in COCO's compressed run lengths; None of boxes alone."""

    def __post_init__(self) -> None:
        try:
            self._check()
        except DataError as error:
            raise DataError(f"{self.path or 'the image'}: {error}") from error

    def _check(self) -> None:
        count = len(self.scores)
        if (self.boxes.shape, self.scores.shape, self.labels.shape) != ((count, 4), (count,), (count,)):
            shapes = f"boxes {self.boxes.shape}, scores {self.scores.shape}, labels {self.labels.shape}"
            raise DataError(f"{shapes}: they must be (N, 4), (N,) and (N,)")
        if not (np.isfinite(self.boxes).all() and (self.boxes[:, 2:] >= self.boxes[:, :2]).all()):
            raise DataError("a box is not finite, or ends before it begins")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise DataError("a score is not between 0 and 1")
        if not ((self.labels >= 0) & (self.labels < len(self.classes))).all():
            raise DataError(f"a label is no class: there are {len(self.classes)}, from 0")
        if self.masks is not None:
            if len(self.masks) != count:
                raise DataError(f"{count} objects, but {len(self.masks)} masks")
            mask_areas(self.masks, (self.size[1], self.size[0]))

    @classmethod
    def from_detections(
        cls,
        found: "Detections",
        path: str,
        size: tuple[int, int],
        classes: Sequence[str],
        palette: Palette,
    ) -> Self:
        """Take over what a detector gave for an image of this width and height, boxes in its pixels."""
        found = found.to("cpu")
        boxes, scores, labels = (part.numpy() for part in (found.boxes, found.scores, found.labels))
        masks = None if found.masks is None else tuple(_pasted(found, size))
        return cls(path, size, boxes, scores, labels, tuple(classes), palette, masks)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class of each object."""
        return [self.classes[label] for label in self.labels]

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Which pixels (H, W) are one object's.

        Raises:
            DataError: there are only boxes.
        """
        if self.masks is None:
            raise DataError(f"{self.path or 'the image'}: there are boxes alone, no masks")
        return decode(self.masks[index])

    def filtered(self, score: float = 0.0, only: Collection[str] | None = None) -> Self:
        """Leave out objects that are less sure, or of other classes.

        Args:
            score: the least that is kept.
            only: names of the classes that are kept; all when not given.

        Raises:
            UnknownName: there is no such class.
        """
        for name in only or ():
            if name not in self.classes:
                raise UnknownName("class", name, self.classes)
        wanted = [only is None or name in only for name in self.classes]
        kept = np.flatnonzero((self.scores >= score) & np.array(wanted, bool)[self.labels])
        parts = {name: getattr(self, name)[kept] for name in ("boxes", "scores", "labels")}
        masks = None if self.masks is None else tuple(self.masks[index] for index in kept)
        return replace(self, **parts, masks=masks)

    def as_found(self, image_id: int) -> Found:
        """Give what average precision is measured of."""
        return Found(image_id, self.boxes, self.scores, self.labels, self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: path, size, and of each object class, score and box; no masks."""
        objects = [
            {
                "label": label,
                "name": self.classes[label],
                "score": round(score, 4),
                "box": [round(side, 2) for side in box],
            }
            for label, score, box in self._rows()
        ]
        return {"path": self.path, "width": self.size[0], "height": self.size[1], "objects": objects}

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows of a results file as COCO's servers and pycocotools take them.

        Args:
            image_id: the number of the image.
            category_ids: the number of each class; counted from 1 when not given.
        """
        results: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": category_ids[label] if category_ids else label + 1,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for label, score, (left, top, right, bottom) in self._rows()
        ]
        for result, mask in zip(results, self.masks or (), strict=False):
            result["segmentation"] = mask
        return results

    def to_supervision(self) -> "supervision.Detections":
        """Give the same as supervision's `Detections`, masks as arrays, class names in `data["class_name"]`.

        Raises:
            MissingPackage: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingPackage("supervision", "supervision", "to_supervision()") from error
        masks = None
        if self.masks is not None:
            masks = np.zeros((len(self), self.size[1], self.size[0]), bool)
            for place, mask in zip(masks, self.masks, strict=True):
                place[:] = decode(mask)
        return supervision.Detections(
            xyxy=self.boxes,
            mask=masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def _rows(self) -> Iterator[tuple[int, float, list[float]]]:
        return zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)


def _pasted(found: "Detections", size: tuple[int, int]) -> Iterator[Mask]:
    """The masks in an image of this width and height, a few at a time."""
    width, height = size
    many = max(1, BLOCK // (width * height))
    for first in range(0, len(found), many):
        part = found[first : first + many]
        for mask, box in zip(part.paste((height, width)).numpy(), part.boxes.tolist(), strict=True):
            yield _run_lengths(mask, max(0, int(box[0]) - 2), min(width, int(box[2]) + 3))


def _run_lengths(mask: NDArray[np.bool_], left: int, right: int) -> Mask:
    """Encode a mask (H, W) of which only these columns have pixels: of a large image that is quicker."""
    height, width = mask.shape
    if left >= right:
        left, right = 0, width
    runs = counts_of(encode(mask[:, left:right]))
    runs[0] += left * height
    if len(runs) % 2:
        runs[-1] += (width - right) * height
    elif right < width:
        runs = np.append(runs, (width - right) * height)
    return {"size": [height, width], "counts": compress(runs)}


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
    """An object of an evaluated image."""

    label: int
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in the image's pixels."""
    score: float | None = None
    """How sure the network is; None of one that is annotated."""
    crowd: bool = False
    """Many annotated objects in one box."""
    mask: Mask | None = None
    """Its pixels, in the image made small."""


@dataclass(frozen=True)
class DetectExample:
    """One evaluated image, for the report."""

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
class DetectionReport(Report):
    """How well a detector does on a data set."""

    images: int
    figures: Mapping[Kind, DetectionFigures]
    """Of boxes, and of masks where they were measured."""
    palette: Palette
    """Color of each class."""
    examples: tuple[DetectExample, ...] = ()
    """The worst images, then the best; none twice."""

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
            "palette": [list(color) for color in self.palette],
            "examples": [asdict(example) for example in self.examples],
        }

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
    table = [
        (
            box.name,
            f"{box.objects:,}",
            f"{box.found:,}",
            *map(_percent, (box.ap, box.ap50, *(mask.ap for mask in masks))),
        )
        for box, *masks in there
    ]
    columns = ("class", "objects", "found", "AP", "AP50", *["mask AP"] * (len(figures) - 1))
    lines = class_table(columns, table, rows)
    if len(there) < len(both):
        lines.append(f"{len(both) - len(there)} classes without objects: left out")
    return lines


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
