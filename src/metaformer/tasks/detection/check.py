"""`metaformer data check` where images have objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from metaformer.data.class_lists import Names
from metaformer.data.image import image_size
from metaformer.data.scan import ImageInfo, reason, scan, scan_bad
from metaformer.errors import BadImage, DataError
from metaformer.tasks.check import CheckReport, Finding, quiet
from metaformer.tasks.detection.dataset import READERS, DetectionFolder
from metaformer.tasks.detection.formats.layouts import DetectionLayout, choose_detection_layout, find_place


def check_objects(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    workers: int | None = None,
    progress: bool = True,
    layout: Literal["auto", "coco", "voc", "yolo"] = "auto",
    class_names: Sequence[str] | str | Path | None = None,
) -> CheckReport:
    """Read all images and annotations of a data set and report everything that is wrong with it.

    Args:
        root: the data set.
        splits: their names; the first is the one to train on, whose classes the others must have.
        workers: processes that read (default: one per core).
        progress: show a progress bar.
        layout: how the data set lies on disk; `auto` recognizes it.
        class_names: file of class names, one a line, where the data set brings none.

    Raises:
        ConfigError: a layout that there is not.
    """
    check = _Check(class_names, workers, progress)
    with quiet():
        try:
            form, home = choose_detection_layout(root, layout)
        except DataError as error:
            check.add("error", "layout", str(error))
            splits = ()
        for split in splits:
            check.split(form, home, split)
    return CheckReport(str(root), tuple(check.summaries), tuple(dict.fromkeys(check.findings)))


class _Check:
    def __init__(self, classes: Names, workers: int | None, progress: bool) -> None:
        self.classes, self.workers, self.progress = classes, workers, progress
        self.findings: list[Finding] = []
        self.summaries: list[DetectionSummary] = []
        self.known: dict[bytes, str] | None = None
        """Name of the training image with these pixels, once training has been looked at."""

    def add(self, grade: Literal["error", "warning"], kind: str, text: str) -> None:
        self.findings.append(Finding(grade, kind, text))

    def split(self, form: DetectionLayout, home: Path, name: str) -> None:
        """Look at a split; the first is the training's."""
        try:
            place = find_place(form, home, name)
            annotated = READERS[form.name](place, self.classes, None)
        except DataError as error:
            return self.add("error", "layout", str(error))
        for fault in annotated.faults:
            self.add("error", fault.kind, fault.text)
        for file in annotated.unused:
            self.add("warning", "ignored", file)
        folder = DetectionFolder(place, annotated)
        seen = scan(folder, workers=self.workers, label=name, progress=self.progress)
        for one in seen:
            self._image(folder, one)
        self._objects(folder)
        self._copies(folder, seen)
        self.summaries.append(summarize(name, folder, seen))
        if len(self.summaries) == 1:
            self.classes = folder.classes
            self._classes(folder)

    def _image(self, folder: DetectionFolder, seen: ImageInfo) -> None:
        path = folder.path(seen.index)
        if seen.error:
            self.add("error", "unreadable", f"{path}: {seen.error}")
        elif trouble := folder.size_mismatch(seen.index, (seen.width, seen.height)):
            self.add("error", "size", f"{path}: {trouble}")
        elif seen.animated:
            self.add("warning", "animated", f"{path}: animated, only its first frame is used")

    def _objects(self, folder: DetectionFolder) -> None:
        """Tell of objects that others differ from: without outline, or too small to see."""
        table = folder.objects
        if table.outlined.any():
            for row in np.flatnonzero(~table.outlined).tolist():
                bare = "has no segmentation, which others have and masks are made of"
                self.add("error", "segmentation", f"{self._name(folder, row)}: {bare}")
        for row in np.flatnonzero((table.boxes[:, 2:] < 1).any(axis=1)).tolist():
            self.add("warning", "tiny", f"{self._name(folder, row)}: is narrower than a pixel: never learned")

    def _name(self, folder: DetectionFolder, row: int) -> str:
        image = folder.path(int(folder.objects.images[row]))
        return f"{folder.annotations}: annotation {folder.objects.instance(row).id} of {image.name}"

    def _copies(self, folder: DetectionFolder, seen: Sequence[ImageInfo]) -> None:
        """Tell of the same pixels with other objects, and in training and validation."""
        here: dict[bytes, str] = {}
        objects: dict[bytes, bytes] = {}
        for one in seen:
            if one.error:
                continue
            name, rows = str(folder.path(one.index)), folder.objects.of(one.index)
            what = folder.objects.labels[rows].tobytes() + folder.objects.boxes[rows].tobytes()
            other = here.setdefault(one.digest, name)
            if objects.setdefault(one.digest, what) != what:
                self.add("warning", "contradiction", f"{name}: the same image as {other}, with other objects")
            if self.known is not None and one.digest in self.known:
                same = f"{name}: the same image as {self.known[one.digest]} of the training split"
                self.add("warning", "leak", same)
        if self.known is None:
            self.known = here

    def _classes(self, folder: DetectionFolder) -> None:
        """Tell of classes that cannot be learned."""
        absent = [name for name, found in self.summaries[0].per_class.items() if not found.objects]
        if len(absent) == len(folder.classes):
            self.add("error", "absent", f"{folder.annotations}: no object at all: there is nothing to learn")
        elif absent:
            names = ", ".join(repr(name) for name in absent[:10])
            more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
            self.add("warning", "absent", f"{folder.annotations}: no object of {names}{more}: never learned")


@dataclass(frozen=True)
class ObjectCount:
    """How much there is of a class."""

    objects: int
    """Crowds not counted."""
    images: int
    """How many images show it."""


@dataclass(frozen=True)
class DetectionSummary:
    """Images with objects of one split."""

    name: str
    images: int
    unreadable: int
    """Images that cannot be used."""
    empty: int
    """Images without object."""
    objects: int
    crowds: int
    """How many of the objects are crowds, or too hard to tell."""
    outlined: int
    """How many of the objects have an outline."""
    per_class: dict[str, ObjectCount]
    narrowest: tuple[int, int]
    """Width and height of the image with the fewest pixels."""
    median: tuple[int, int]
    widest: tuple[int, int]
    """Width and height of the image with the most pixels."""

    def text(self) -> str:
        """Give a line."""
        sizes = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((self.narrowest, self.widest)))
        bad = f" ({self.unreadable:,} unusable)" if self.unreadable else ""
        shown = sum(one.objects > 0 for one in self.per_class.values())
        crowds = f", {self.crowds:,} crowds" if self.crowds else ""
        return (
            f"{self.name}: {self.images:,} images{bad}, {self.empty:,} of them empty, with "
            f"{self.objects:,} objects ({self.outlined:,} with masks{crowds}) of {shown:,} of "
            f"{len(self.per_class):,} classes; sizes {sizes}, median {self.median[0]}x{self.median[1]}"
        )


def summarize(name: str, folder: DetectionFolder, seen: Sequence[ImageInfo]) -> DetectionSummary:
    """Sum up what was seen of a split."""
    table = folder.objects
    single = ~table.crowd
    objects = np.bincount(table.labels[single], minlength=len(folder.classes)).tolist()
    pairs = np.unique(np.stack([table.labels[single], table.images[single]]), axis=1)
    images = np.bincount(pairs[0], minlength=len(folder.classes)).tolist()
    good = [(one.width, one.height) for one in seen if not one.error]
    sizes = sorted(good, key=lambda size: size[0] * size[1]) or [(0, 0)]
    bad = [one.error or folder.size_mismatch(one.index, (one.width, one.height)) for one in seen]
    return DetectionSummary(
        name,
        len(seen),
        sum(map(bool, bad)),
        len(folder) - len(np.unique(table.images)),
        len(table),
        int(table.crowd.sum()),
        int(table.outlined.sum()),
        {label: ObjectCount(objects[place], images[place]) for place, label in enumerate(folder.classes)},
        sizes[0],
        sizes[len(sizes) // 2],
        sizes[-1],
    )


def check_sizes(
    folder: DetectionFolder,
    *,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Look at the header of every image: that it is one, of the size that its annotations have.

    Args:
        folder: the data.
        part: which share to look at, and of how many: a process's rank and the number of processes.
        skip_bad: let a few bad ones pass, which a training that leaves out bad images will then name.
        workers: processes that read; one per core when not given.
        progress: show a bar on stderr.

    Raises:
        BadImage: the first that cannot be used; the message says how many more there are.
        ConfigError: fewer than one process.
    """
    label = f"images of {folder.split}"
    bad = scan_bad(folder, read_size, label, part=part, skip_bad=skip_bad, workers=workers, progress=progress)
    if bad:
        more = f" (and {len(bad) - 1:,} more bad files; metaformer data check tells all)"
        raise BadImage(folder.path(bad[0].index), bad[0].error + (more if len(bad) > 1 else ""))


def read_size(folder: DetectionFolder, index: int) -> ImageInfo:
    """Read the header of an image."""
    try:
        size = image_size(folder.path(index))
    except DataError as error:
        return ImageInfo(index, error=reason(error))
    return ImageInfo(index, *size, error=folder.size_mismatch(index, size))
