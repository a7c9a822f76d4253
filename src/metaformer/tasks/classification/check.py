"""Check of a classification data set."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metaformer.color import Color, read_color
from metaformer.data.folder import ImageFolder, numeric_order
from metaformer.data.scan import ImageInfo
from metaformer.data.shards.index import Shards, damaged_shards, find_shards
from metaformer.data.shards.remote import is_remote
from metaformer.data.split import Split, open_split
from metaformer.errors import DataError
from metaformer.tasks.check import (
    Certainty,
    CheckReport,
    DatasetCheck,
    Finding,
    SplitSummary,
    absent_classes,
    size_range,
)

UNEVEN: Final = 10
"""Ratio of the largest class to the smallest from which on there is a warning."""


def check_data_set(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    workers: int | None = None,
    progress: bool = True,
    background: Color | str | None = None,
) -> CheckReport:
    """Read all images of a data set and report all that is wrong with it.

    Args:
        root: image folders, or shards of parquet or tar.
        splits: their names; the first is the one to train on, whose classes the others must have.
        workers: processes that read (default: one per core).
        progress: show a progress bar.
        background: color that transparent pixels are blended on, such as white (default: transparency is
            dropped).

    Raises:
        MissingPackage: reading shards needs a package that is not installed.
    """
    color = read_color(background, "background")
    return _Check(root, workers, progress, background=color).run(splits)


@dataclass(frozen=True)
class ClassificationSummary(SplitSummary):
    """Images by class of one split."""

    per_class: dict[str, int]

    def text(self) -> str:
        """One line for people."""
        counts = sorted(self.per_class.values()) or [0]
        bad = f" ({self.unreadable:,} unreadable)" if self.unreadable else ""
        spread = f"{counts[0]:,} to {counts[-1]:,} (median {statistics.median_high(counts):,})"
        classes = f"{len(self.per_class):,} classes of {spread}"
        return f"{self.name}: {self.images:,} images{bad} in {classes}; {self.sizes_text()}"


def recognize(root: str | Path) -> Certainty:
    """How surely a folder holds images by class. Any may: nothing marks it."""
    return Certainty.POSSIBLE


def class_findings(source: Split, training: bool) -> Iterator[Finding]:
    """What is odd about the classes of a split, and files that are not used.

    Args:
        source: the split.
        training: whether it is the training split.
    """
    if isinstance(source, ImageFolder):
        for kind, count in sorted(source.ignored.items()):
            unused = f"{source.folder}: {count:,} {kind} file(s) are no images and not used"
            yield Finding("warning", "ignored", unused)
        if source.loose:
            yield Finding(
                "warning", "ignored", f"{source.folder}: {source.loose:,} file(s) lie in no class folder"
            )
        if training and (note := numeric_order(source.classes)):
            yield Finding("warning", "order", f"{source.folder}: {note}")
    by_label = Counter(source.labels)
    counts = {name: by_label[label] for label, name in enumerate(source.classes)}
    if training and not isinstance(source, ImageFolder):  # where a folder without images is an error
        absent = [name for name in source.classes if not counts[name]]
        yield from absent_classes(source.folder, "image", absent)
    order = sorted(filter(counts.__getitem__, counts), key=counts.__getitem__)
    if order and counts[order[-1]] >= UNEVEN * counts[order[0]]:
        least, most = (f"{label!r} has {counts[label]:,}" for label in (order[0], order[-1]))
        yield Finding("warning", "uneven", f"{source.folder}: classes are uneven: {least} image(s), {most}")


class _Check(DatasetCheck[ClassificationSummary]):
    classes: tuple[str, ...] | None = None
    """Classes of the training split."""

    def check_split(self, name: str) -> None:
        """Check a split."""
        source = self._open(name)
        if source is None:
            return
        if self.classes is None:
            self.classes = tuple(source.classes)
            if len(self.classes) < 2:
                self.error("one class", f"{source.folder}: only one class: training needs at least two")
        self.add(class_findings(source, training=not self.summaries))
        images = self.scan(source, name)
        for image in images:
            self.check_image(source.path(image.index), image)
        self.check_duplicates(
            (
                (str(source.path(image.index)), image.digest, source.classes[source.labels[image.index]])
                for image in images
                if not image.error
            ),
            lambda first, other: f"which is of class {first!r}, not {other!r}",
        )
        self.summaries.append(self._summarize(name, source, images))

    def _open(self, name: str) -> Split | None:
        """Open a split, and add all errors of its layout."""
        try:
            shards = find_shards(self.root, name)
            if shards is not None:
                return self._open_shards(name, shards)
            if is_remote(self.root):
                return open_split(self.root, name)  # raises an error that says what is missing
            folder = ImageFolder(
                self.root, name, self.classes, on_error=lambda error: self.error("layout", str(error))
            )
        except DataError as error:
            root = Path(self.root)
            whole = self.classes is None and root.is_dir() and not (root / name).is_dir()
            remedy = "; class folders without splits are the split . (--split .)" if whole else ""
            self.error("layout", f"{error}{remedy}")
            return None
        return folder

    def _open_shards(self, name: str, shards: Shards) -> Split:
        for damage in damaged_shards(shards):
            self.error("damaged", damage)
        try:
            return open_split(self.root, name, self.classes)
        except DataError as error:
            if self.classes is None:
                raise
            source = open_split(self.root, name)  # classes differ: the images are checked all the same
            self.error("layout", str(error))
            return source

    def _summarize(self, name: str, source: Split, images: Sequence[ImageInfo]) -> ClassificationSummary:
        counts = Counter(source.classes[label] for label in source.labels)
        per_class = {label: counts[label] for label in source.classes}
        unreadable = sum(bool(image.error) for image in images)
        return ClassificationSummary(name, len(images), unreadable, *size_range(images), per_class)
