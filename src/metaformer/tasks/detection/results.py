"""Results of detection: the objects in images, and the report of an evaluation."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.color import to_hex
from metaformer.data.class_lists import Palette
from metaformer.data.rle import Mask, decode, encode, read_counts
from metaformer.errors import DataError, MissingPackage, UnknownName
from metaformer.report.blocks import percentage
from metaformer.tasks.detection.draw import draw_objects
from metaformer.tasks.detection.metrics import DetectionFigures, Found, Kind, check_found
from metaformer.tasks.outputs import DrawnResult, named_shares
from metaformer.tasks.report import Report, class_table

if TYPE_CHECKING:
    import supervision

    from metaformer.models.detection.structures import Detections


SHOWN_IOU = 0.5
"""IoU above which `plot` shows the better of two boxes alone."""
MAX_SHOWN = 300
"""Objects that viewers get."""
BLOCK = 1 << 24
"""Pixels of masks that are pasted at once."""


@dataclass(frozen=True, eq=False, repr=False)
class DetectedObjects(DrawnResult):
    """Objects detected in one image, best first.

    Raises:
        DataError: values that do not fit each other, or are out of range.
    """

    path: str
    """The image's file; empty for an image in memory."""
    size: tuple[int, int]
    """Width and height of the image."""
    boxes: NDArray[np.float32]
    """Left, top, right and bottom (N, 4), in the image's pixels."""
    scores: NDArray[np.float32]
    """(N,), 0 … 1."""
    labels: NDArray[np.int64]
    """Classes (N,), from 0."""
    classes: tuple[str, ...]
    """Class names by label."""
    palette: Palette
    """Color of each class."""
    masks: tuple[Mask, ...] | None = None
    """Compressed RLE of each object's mask; None for boxes alone."""
    draw_score: float = 0.0
    """Score from which objects are drawn."""

    def __post_init__(self) -> None:
        try:
            self._check()
        except DataError as error:
            raise DataError(f"{self.path or 'the image'}: {error}") from error

    def _check(self) -> None:
        detections = check_found(self.to_found(0), len(self.classes))
        if self.boxes.shape != (len(self), 4):
            raise DataError(f"boxes {self.boxes.shape}: they must be (N, 4)")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise DataError("a score is not between 0 and 1")
        if self.masks is not None:
            detections.add_masks(self.masks, (self.size[1], self.size[0]))

    @classmethod
    def from_detections(
        cls,
        detections: "Detections",
        path: str,
        size: tuple[int, int],
        classes: Sequence[str],
        palette: Palette,
    ) -> Self:
        """Objects of a detector's `Detections` in pixels of an image of this width and height."""
        detections = detections.to("cpu")
        masks = None if detections.masks is None else tuple(_paste(detections, size))
        boxes, scores, labels = detections.boxes, detections.scores, detections.labels
        return cls(path, size, boxes.numpy(), scores.numpy(), labels.numpy(), tuple(classes), palette, masks)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class of each object."""
        return [self.classes[label] for label in self.labels]

    def _summary(self) -> str:
        found = f"{len(self)} object{'s' * (len(self) != 1)}"
        named = named_shares(zip(self.names, self.scores.tolist(), strict=True))
        return f"{found}: {named}" if named else found

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Mask (H, W), bool, of one object.

        Raises:
            DataError: there are no masks.
        """
        if self.masks is None:
            raise DataError(f"{self.path or 'the image'}: there are no masks, boxes alone")
        return decode(self.masks[index])

    def filtered(self, score: float = 0.0, names: Collection[str] | None = None) -> Self:
        """Objects of a score and class.

        Args:
            score: least score.
            names: names of the classes; all by default.

        Raises:
            UnknownName: an unknown class.
        """
        for name in names or ():
            if name not in self.classes:
                raise UnknownName("class", name, self.classes)
        wanted = [names is None or name in names for name in self.classes]
        return self._rows_at(np.flatnonzero((self.scores >= score) & np.array(wanted, bool)[self.labels]))

    def suppressed(self, iou_threshold: float) -> Self:
        """The same without objects whose box overlaps a better one, whatever the classes of the two.

        Networks suppress within each class, which average precision asks for; people see one object.

        Args:
            iou_threshold: of two boxes with a greater IoU the worse one is left out.
        """
        import torch

        from metaformer.models.detection.nms import batched_nms

        boxes, scores = torch.from_numpy(self.boxes), torch.from_numpy(self.scores)
        one_class = torch.zeros(len(self), dtype=torch.int64)
        return self._rows_at(batched_nms(boxes, scores, one_class, iou_threshold, len(self)).numpy())

    def shown(self, iou_threshold: float) -> Self:
        """What is drawn: objects of `draw_score` and more, of overlapping ones the best."""
        return self.filtered(self.draw_score).suppressed(iou_threshold)

    def _rows_at(self, rows: NDArray[np.int64]) -> Self:
        """The objects of these rows, in their order."""
        parts = {name: getattr(self, name)[rows] for name in ("boxes", "scores", "labels")}
        masks = None if self.masks is None else tuple(self.masks[row] for row in rows)
        return replace(self, **parts, masks=masks).drawn_on(self._image, self._frame, self._background)

    def to_found(self, image_id: int) -> Found:
        """The same for `AveragePrecision`."""
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

    def to_response(self) -> dict[str, Any]:
        """Plain values for viewers: of the best `MAX_SHOWN` objects class, score, box, color and mask.

        Masks are run lengths as numbers, down the columns as COCO's, or null.
        """
        masks = self.masks or (None,) * len(self)
        objects = [
            {
                "name": self.classes[label],
                "index": label,
                "score": score,
                "box": box,
                "color": to_hex(self.palette[label]),
                "mask": mask and {"size": mask["size"], "counts": read_counts(mask).tolist()},
            }
            for (label, score, box), mask in islice(zip(self._rows(), masks, strict=True), MAX_SHOWN)
        ]
        return {"objects": objects}

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows of a COCO results file.

        Args:
            image_id: COCO's id of the image.
            category_ids: COCO's id of each class; counted from 1 by default.
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
        """Supervision's `Detections`, with masks as arrays and class names in `data["class_name"]`.

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
            for pixels, mask in zip(masks, self.masks, strict=True):
                pixels[:] = decode(mask)
        return supervision.Detections(
            xyxy=self.boxes,
            mask=masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def _draw(self, image: Image.Image) -> Image.Image:
        if image.size != self.size:
            raise DataError(f"an image of {image.width}x{image.height} for boxes in one of {self.size}")
        return draw_objects(image, self.shown(SHOWN_IOU))

    def _rows(self) -> Iterator[tuple[int, float, list[float]]]:
        return zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)


def _paste(detections: "Detections", size: tuple[int, int]) -> Iterator[Mask]:
    """RLE of each mask in an image of this width and height, a few masks at a time."""
    width, height = size
    count = max(1, BLOCK // (width * height))
    for first in range(0, len(detections), count):
        part = detections[first : first + count]
        for mask, (left, _, right, _) in zip(
            part.paste((height, width)).numpy(), part.boxes.tolist(), strict=True
        ):
            yield encode(mask, max(0, min(width, int(left) - 2)), max(0, min(width, int(right) + 3)))


COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
    "AR": "ar_100",
}
"""Columns of the table of figures, and the fields that they show."""


@dataclass(frozen=True)
class ExampleObject:
    """Annotated or detected object of an example."""

    label: int
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in the image's pixels."""
    score: float | None = None
    """None for an annotated object."""
    crowd: bool = False
    mask: Mask | None = None
    """Compressed RLE, in a smaller copy of the image."""


@dataclass(frozen=True)
class DetectExample:
    """One evaluated image of the report."""

    path: str
    index: int
    """Index in the data set."""
    size: tuple[int, int]
    """Width and height."""
    f1: float
    """F1 score of its detections."""
    truth: tuple[ExampleObject, ...]
    predicted: tuple[ExampleObject, ...]


@dataclass(frozen=True, eq=False, repr=False)
class DetectionReport(Report):
    """Evaluation of a detector on a data set."""

    images: int
    figures: Mapping[Kind, DetectionFigures]
    """Of boxes, and of masks if they were evaluated."""
    palette: Palette
    """Color of each class."""
    score: float
    """Score from which objects are shown: that of the best F1 here, or the one that the network brought."""
    f1: float
    """F1 score of the boxes shown, over all images, at an IoU of 0.5."""
    examples: tuple[DetectExample, ...] = ()
    """The worst images, then the best, each once."""

    @property
    def classes(self) -> list[str]:
        """Class names by label."""
        return [row.name for row in self.figures["bbox"].per_class]

    @property
    def metrics(self) -> dict[str, float]:
        """Figures by name for the log, those of masks as `mask_ap` and so on.

        Figures without objects are left out, but `ap`, `ap50` and `ap75` are 0.
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
            "score": self.score,
            "f1": self.f1,
            "figures": {kind: asdict(figures) for kind, figures in self.figures.items()},
            "classes": self.classes,
            "palette": [list(color) for color in self.palette],
            "examples": [asdict(example) for example in self.examples],
        }

    def text(self, rows: int = 20) -> str:
        """Figures, and a table of the weakest classes, for people."""
        objects = self.figures["bbox"].objects
        lines = [f"{self.images} images, {objects:,} objects", "", _row("", COLUMNS)]
        for kind, figures in self.figures.items():
            name = "boxes" if kind == "bbox" else "masks"
            lines.append(_row(name, [percentage(getattr(figures, key), 2) for key in COLUMNS.values()]))
        if not objects:
            lines.append("no object is annotated: there is nothing to evaluate")
        lines += ["", *_table(self.figures, rows)]
        if objects:
            lines.append(f"F1 of boxes: {percentage(self.f1, 2)} at a score of {self.score:g}")
        return "\n".join(lines)


def _row(name: str, cells: Collection[str]) -> str:
    return f"{name:<6}" + "".join(f"{cell:>8}" for cell in cells)


def _table(figures: Mapping[Kind, DetectionFigures], rows: int) -> list[str]:
    """Table of the classes with objects, weakest first."""
    both = list(zip(*(one.per_class for one in figures.values()), strict=True))
    there = sorted(
        (kinds for kinds in both if kinds[0].objects), key=lambda kinds: (kinds[0].ap or 0.0, kinds[0].name)
    )
    table = [
        (
            box.name,
            f"{box.objects:,}",
            f"{box.found:,}",
            *(percentage(share, 2) for share in (box.ap, box.ap50, *(mask.ap for mask in masks))),
        )
        for box, *masks in there
    ]
    columns = ("class", "objects", "found", "AP", "AP50", *["mask AP"] * (len(figures) - 1))
    lines = class_table(columns, table, rows)
    if len(there) < len(both):
        lines.append(f"{len(both) - len(there)} classes without objects: left out")
    return lines
