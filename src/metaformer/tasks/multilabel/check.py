"""Check of multi-label data sets."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metaformer.color import Color, read_color
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
from metaformer.tasks.multilabel.dataset import MultilabelFolder, open_multilabel
from metaformer.tasks.multilabel.formats import Layout, find_label_file

RARE: Final = 5
"""Training images below which a class is reported as rare."""


@dataclass(frozen=True)
class MultilabelSummary(SplitSummary):
    """Images and labels of a split."""

    per_class: dict[str, int]
    """Images of each class."""
    empty: int
    """Images without a label."""

    def text(self) -> str:
        """One line for people."""
        counts = sorted(self.per_class.values()) or [0]
        bad = f" ({self.unreadable:,} unreadable)" if self.unreadable else ""
        labels = f"{sum(counts) / max(1, self.images):.2f} labels each, {self.empty:,} without"
        spread = f"{counts[0]:,} to {counts[-1]:,} (median {statistics.median_high(counts):,})"
        classes = f"{len(counts):,} classes of {spread} images"
        return f"{self.name}: {self.images:,} images{bad}, {labels}; {classes}; {self.sizes_text()}"


def check_multilabel(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    workers: int | None = None,
    progress: bool = True,
    background: Color | str | None = None,
    layout: Layout = "auto",
    class_names: Sequence[str] | str | Path | None = None,
    separator: str = " ",
) -> CheckReport:
    """Read all images and labels of a data set and report everything that is wrong with it.

    Args:
        root: the data set.
        splits: their names; the first is the one to train on, whose classes the others must have.
        workers: processes that read (default: one per core).
        progress: show a progress bar.
        background: color that transparent pixels are blended on, such as white (default: transparency is
            dropped).
        layout: how the data set lies on disk; `auto` recognizes it.
        class_names: file of class names, one a line (default: those of the training split).
        separator: what stands between the labels in a CSV column (default: a space).
    """
    color = read_color(background, "background")
    return _Check(root, workers, progress, layout, class_names, separator, background=color).run(splits)


def recognize(root: str | Path) -> Certainty:
    """How surely a folder holds a multi-label data set."""
    try:
        found = any(find_label_file(root, split) for split in ("train", "val"))
    except DataError:  # two label files: the check says so
        found = True
    return Certainty.BY_FILES if found else Certainty.NONE


def label_findings(folder: MultilabelFolder, training: bool) -> Iterator[Finding]:
    """Images without a row, and classes that no image of a split has, few have, or all have.

    Args:
        folder: the split.
        training: whether it is the training split.
    """
    for path in folder.unlabeled:
        no_row = f"{path}: {folder.file.name} has no row for it: it is not used"
        yield Finding("warning", "unlabeled", no_row)
    counts = [int(count) for count in folder.labels.sum(dim=0)]
    absent = [name for name, count in zip(folder.classes, counts, strict=True) if not count]
    yield from absent_classes(folder.file, "image", absent, training)
    if not any(counts):
        yield Finding("error", "absent", f"{folder.file}: no image has a label")
    if not training:
        return
    for name, count in zip(folder.classes, counts, strict=True):
        if count == len(folder):
            text = f"every image has the label {name!r}: nothing is learned"
            yield Finding("warning", "uneven", f"{folder.file}: {text}")
        elif 0 < count < RARE:
            yield Finding(
                "warning", "uneven", f"{folder.file}: only {count} image(s) have the label {name!r}"
            )


@dataclass
class _Check(DatasetCheck[MultilabelSummary]):
    layout: Layout = "auto"
    separator: str = " "
    """What stands between the labels in a CSV column."""

    def check_split(self, name: str) -> None:
        """Check a split."""
        try:
            folder = open_multilabel(
                self.root,
                name,
                self.layout,
                class_names=self.class_names,
                separator=self.separator,
                on_error=lambda error: self.error("layout", str(error)),
            )
        except DataError as error:
            return self.error("layout", str(error))
        images = self.scan(folder, name)
        for image in images:
            self.check_image(folder.path(image.index), image)
        readable = [image for image in images if not image.error]
        self.check_duplicates(
            ((str(folder.path(i.index)), i.digest, tuple(folder.labels[i.index].tolist())) for i in readable),
            lambda first, other: "with other labels",
        )
        counts = [int(count) for count in folder.labels.sum(dim=0)]
        per_class = dict(zip(folder.classes, counts, strict=True))
        self.add(label_findings(folder, training=not self.summaries))
        if not self.summaries:
            self.class_names = folder.classes
        empty = int((folder.labels.sum(dim=1) == 0).sum())
        bad = len(images) - len(readable)
        self.summaries.append(
            MultilabelSummary(name, len(images), bad, *size_range(images), per_class=per_class, empty=empty)
        )
        return None
