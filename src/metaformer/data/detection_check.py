"""`metaformer data check` where pictures have objects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from metaformer.data.check import CheckReport, Finding, quiet
from metaformer.data.detection import READERS, DetectionFolder
from metaformer.data.detection_layouts import DetectionLayout, choose_detection_layout, find_place
from metaformer.data.detection_summary import DetectionSummary, summarise
from metaformer.data.naming import Names
from metaformer.data.survey import Seen, survey
from metaformer.errors import DataError


def check_objects(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    layout: str = "auto",
    classes: Names = None,
    workers: int | None = None,
    progress: bool = True,
) -> CheckReport:
    """Read all pictures and annotations of a data set and report everything that is wrong with it.

    Args:
        root: the data set.
        splits: their names; the first is the one to train on, whose classes the others must have.
        layout: how it lies; see `open_detection`.
        classes: names of the classes, or a text file of them, where the data set brings none.
        workers: processes that read; one per core when not given.
        progress: show a bar on stderr.

    Raises:
        ConfigError: a layout that there is not.
    """
    check = _Check(classes, workers, progress)
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
        """Name of the training picture with these pixels, once training has been looked at."""

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
        seen = survey(folder, workers=self.workers, label=name, progress=self.progress)
        for one in seen:
            self._picture(folder, one)
        self._objects(folder)
        self._copies(folder, seen)
        self.summaries.append(summarise(name, folder, seen))
        if len(self.summaries) == 1:
            self.classes = folder.classes
            self._classes(folder)

    def _picture(self, folder: DetectionFolder, seen: Seen) -> None:
        path = folder.path(seen.index)
        if seen.trouble:
            self.add("error", "unreadable", f"{path}: {seen.trouble}")
        elif trouble := folder.misfit(seen.index, (seen.width, seen.height)):
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
        picture = folder.path(int(folder.objects.pictures[row]))
        return f"{folder.annotations}: annotation {folder.objects.instance(row).id} of {picture.name}"

    def _copies(self, folder: DetectionFolder, seen: Sequence[Seen]) -> None:
        """Tell of the same pixels with other objects, and in training and validation."""
        here: dict[bytes, str] = {}
        objects: dict[bytes, bytes] = {}
        for one in seen:
            if one.trouble:
                continue
            name, rows = str(folder.path(one.index)), folder.objects.of(one.index)
            what = folder.objects.labels[rows].tobytes() + folder.objects.boxes[rows].tobytes()
            other = here.setdefault(one.digest, name)
            if objects.setdefault(one.digest, what) != what:
                self.add(
                    "warning", "contradiction", f"{name}: the same picture as {other}, with other objects"
                )
            if self.known is not None and one.digest in self.known:
                same = f"{name}: the same picture as {self.known[one.digest]} of the training split"
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
