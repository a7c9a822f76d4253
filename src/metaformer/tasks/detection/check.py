"""Check of a detection data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from metaformer.color import Color, read_color
from metaformer.data.image import image_size
from metaformer.data.scan import ImageInfo, reason
from metaformer.errors import DataError
from metaformer.tasks.check import (
    CheckReport,
    DatasetCheck,
    Finding,
    SplitSummary,
    absent_classes,
    size_range,
    validate,
)
from metaformer.tasks.detection.dataset import READERS, DetectionFolder
from metaformer.tasks.detection.formats.layouts import find_layout, find_split

_FEW: Final = 6
"""Objects away from the border below which boxes are not taken for two corners."""


def check_objects(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    workers: int | None = None,
    progress: bool = True,
    background: Color | str | None = None,
    layout: Literal["auto", "coco", "voc", "yolo"] = "auto",
    class_names: Sequence[str] | str | Path | None = None,
    clip_boxes: bool = False,
) -> CheckReport:
    """Read all images and annotations of a data set and report all that is wrong with it.

    Args:
        root: the data set.
        splits: their names; the first is the one to train on, whose classes the others must have.
        workers: processes that read (default: one per core).
        progress: show a progress bar.
        background: color that transparent pixels are blended on, such as white (default: transparency is
            dropped).
        layout: layout of the data set on disk; `auto` recognizes it.
        class_names: file of class names, one a line, where the data set brings none.
        clip_boxes: clip objects over the border of their image, as a training with detect.clip_boxes does.

    Raises:
        ConfigError: an unknown layout.
    """
    color = read_color(background, "background")
    return _Check(root, workers, progress, layout, class_names, clip_boxes=clip_boxes, background=color).run(
        splits
    )


@dataclass(frozen=True)
class ObjectCount:
    """Objects of a class."""

    objects: int
    """Without crowds."""
    images: int
    """Images with such objects."""


@dataclass(frozen=True)
class DetectionSummary(SplitSummary):
    """Images and objects of one split."""

    empty: int
    """Images without objects."""
    objects: int
    crowds: int
    """Objects that are crowds, or marked as difficult."""
    outlined: int
    """Objects with an outline."""
    per_class: dict[str, ObjectCount]
    over_border: int
    """Objects over the border of their image: clipped, or errors that clipping would mend."""
    clipped: bool
    """Whether they are clipped."""

    def text(self) -> str:
        """One line for people."""
        bad = f" ({self.unreadable:,} unusable)" if self.unreadable else ""
        present = sum(count.objects > 0 for count in self.per_class.values())
        crowds = f", {self.crowds:,} crowds" if self.crowds else ""
        done = "are clipped" if self.clipped else "would be clipped by detect.clip_boxes"
        over = f"; {self.over_border:,} over the border {done}" if self.over_border else ""
        return (
            f"{self.name}: {self.images:,} images{bad}, {self.empty:,} of them empty, with "
            f"{self.objects:,} objects ({self.outlined:,} with masks{crowds}) of {present:,} of "
            f"{len(self.per_class):,} classes{over}; {self.sizes_text()}"
        )


@dataclass
class _Check(DatasetCheck[DetectionSummary]):
    clip_boxes: bool = False
    """Clip objects over the border of their image."""

    def check_split(self, name: str) -> None:
        """Check a split."""
        try:
            paths = find_split(*find_layout(self.root, self.layout), name)
            annotations = READERS[paths.layout](paths, self.class_names, None, self.clip_boxes)
        except DataError as error:
            return self.error("layout", str(error))
        for fault in annotations.faults:
            self.error(fault.kind, fault.text)
        folder = DetectionFolder(paths, annotations)
        images = self.scan(folder, name)
        for image in images:
            path, size = folder.path(image.index), (image.width, image.height)
            if not image.error and (mismatch := folder.size_mismatch(image.index, size)):
                self.error("size", f"{path}: {mismatch}")
            else:
                self.check_image(path, image)
        self.check_duplicates(_objects(folder, images), lambda first, other: "with other objects")
        self.summaries.append(summarize(name, folder, images, self.clip_boxes))
        if len(self.summaries) == 1:
            self.class_names = folder.classes
        self.add(object_findings(folder, training=len(self.summaries) == 1))


def object_findings(folder: DetectionFolder, training: bool) -> Iterator[Finding]:
    """What is odd about the annotations of a split, and files that are not used.

    Args:
        folder: the split.
        training: whether it is the training split.
    """
    for line in folder.annotations.unused:
        yield Finding("warning", "ignored", line)
    for oddity in folder.annotations.oddities:
        yield Finding("warning", oddity.kind, oddity.text)
    table = folder.objects
    if table.outlined.any():
        oddities = folder.annotations.oddities
        broken = [one.row for one in oddities if one.kind == "segmentation" and one.row is not None]
        for row in np.setdiff1d(np.flatnonzero(~table.outlined), broken).tolist():
            bare = "has no segmentation, which other objects have"
            yield Finding("error", "segmentation", f"{_name(folder, row)}: {bare}")
    for row in np.flatnonzero((table.boxes[:, 2:] < 1).any(axis=1)).tolist():
        yield Finding("warning", "tiny", f"{_name(folder, row)}: is narrower than a pixel: never trained on")
    yield from _doubled(folder)
    yield from _boxes_of_other_units(folder)
    crowds = int(table.crowd.sum())
    if 2 * crowds > len(table):
        mostly = (
            f"{crowds:,} of {len(table):,} objects are crowds, or difficult: neither trained on nor counted"
        )
        yield Finding("warning", "crowds", f"{folder.annotation_path}: {mostly}")
    counts = np.bincount(table.labels[~table.crowd], minlength=len(folder.classes)).tolist()
    absent = [name for name, count in zip(folder.classes, counts, strict=True) if not count]
    if len(absent) < len(folder.classes):
        yield from absent_classes(folder.annotation_path, "object", absent, training)
    elif training:
        nothing = f"{folder.annotation_path}: no object at all: there is nothing to train on"
        yield Finding("error", "absent", nothing)


def _doubled(folder: DetectionFolder) -> Iterator[Finding]:
    """Objects of an image with the class and the box of an earlier one."""
    table = folder.objects
    keys = np.column_stack([table.images, table.labels, table.crowd, table.boxes])
    order = np.lexsort(keys.T[::-1])
    same = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    for place in np.flatnonzero(same).tolist():
        earlier, row = order[place : place + 2].tolist()
        twice = f"the same class and box as annotation {table.ids[earlier]}"
        yield Finding("warning", "doubled", f"{_name(folder, row)}: {twice}")


def _boxes_of_other_units(folder: DetectionFolder) -> Iterator[Finding]:
    """Boxes that look normalized to the image's size, or like two corners in place of a size."""
    boxes = folder.objects.boxes
    corners = boxes[:, :2] + boxes[:, 2:]
    sizes = folder.annotations.sizes[folder.objects.images]
    if len(boxes) and corners.max() <= 1 and (sizes > 2).any():
        read = "divided by it once more" if folder.layout == "yolo" else "read as pixels"
        look = f"all boxes lie within 0 … 1: they look normalized to the image's size, but are {read}"
        yield Finding("warning", "normalized", f"{folder.annotation_path}: {look}")
    elif folder.layout == "coco" and _look_like_corners(boxes, sizes):
        look = (
            "all boxes are wider than their left and higher than their top: they look like left, top, right,"
        )
        remedy = "bottom, but are read as left, top, width, height"
        yield Finding("warning", "corners", f"{folder.annotation_path}: {look} {remedy}")


def _look_like_corners(boxes: NDArray[np.float64], sizes: NDArray[np.int32]) -> bool:
    """Whether left, top, width and height (N, 4) would be two corners each, of objects that are not large."""
    larger = (boxes[:, 2:] > boxes[:, :2]).all()
    inside = (boxes[:, :2] >= 1).all(axis=1).sum() >= _FEW
    # objects that fill most of their images are wider than their left, too
    return bool(larger and inside and (np.median(boxes[:, 2:] / sizes, axis=0) < 0.5).all())


def _name(folder: DetectionFolder, row: int) -> str:
    """Name of an object in findings."""
    image = folder.path(int(folder.objects.images[row]))
    return f"{folder.annotation_path}: annotation {folder.objects.ids[row]} of {image.name}"


def _objects(folder: DetectionFolder, images: Sequence[ImageInfo]) -> Iterator[tuple[str, bytes, bytes]]:
    """Name, digest, and labels and boxes of each readable image."""
    for image in images:
        if not image.error:
            rows = folder.objects.of(image.index)
            objects = folder.objects.labels[rows].tobytes() + folder.objects.boxes[rows].tobytes()
            yield str(folder.path(image.index)), image.digest, objects


def summarize(
    name: str, folder: DetectionFolder, images: Sequence[ImageInfo], clipped: bool = False
) -> DetectionSummary:
    """Summary of a split, whose objects over the border of their image are clipped or errors."""
    table = folder.objects
    single = ~table.crowd
    objects = np.bincount(table.labels[single], minlength=len(folder.classes)).tolist()
    pairs = np.unique(np.stack([table.labels[single], table.images[single]]), axis=1)
    per_image = np.bincount(pairs[0], minlength=len(folder.classes)).tolist()
    notes = (*folder.annotations.faults, *folder.annotations.oddities)
    bad = [image.error or folder.size_mismatch(image.index, (image.width, image.height)) for image in images]
    return DetectionSummary(
        name,
        len(images),
        sum(map(bool, bad)),
        *size_range(images),
        empty=len(folder) - len(np.unique(table.images)),
        objects=len(table),
        crowds=int(table.crowd.sum()),
        outlined=int(table.outlined.sum()),
        per_class={
            label: ObjectCount(objects[index], per_image[index]) for index, label in enumerate(folder.classes)
        },
        over_border=sum(note.kind == "border" for note in notes),
        clipped=clipped,
    )


def check_sizes(folder: DetectionFolder, **options: Any) -> list[ImageInfo]:
    """Check by the headers that every image is readable and has the size that its annotations say.

    Returns what was found out about the images.

    Args:
        folder: the data.
        options: those of `validate`.

    Raises:
        BadImage: the first that cannot be used.
    """
    label = f"images of {folder.split}"
    return validate(folder, read_size, label, lambda image: folder.path(image.index), **options)


def read_size(folder: DetectionFolder, index: int) -> ImageInfo:
    """Read the header of an image."""
    try:
        size = image_size(folder.path(index))
    except DataError as error:
        return ImageInfo(index, error=reason(error))
    return ImageInfo(index, *size, error=folder.size_mismatch(index, size))
