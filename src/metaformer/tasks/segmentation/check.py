"""Checks of segmentation data sets: `metaformer data check`, and the validation before training."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from metaformer.color import Color, read_color
from metaformer.data.image import image_size
from metaformer.data.scan import ImageInfo, digest, inspect, reason
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
from metaformer.tasks.segmentation.dataset import SegmentationFolder
from metaformer.tasks.segmentation.labels import IGNORE, count_values, read_label_map, resolve_class_names
from metaformer.tasks.segmentation.layouts import choose_layout, find_pairs


def check_label_maps(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    workers: int | None = None,
    progress: bool = True,
    background: Color | str | None = None,
    layout: Literal["auto", "ade20k", "voc", "cityscapes", "coco_stuff", "folders", "fiftyone"] = "auto",
    class_names: Sequence[str] | str | Path | None = None,
    reduce_zero_label: Literal["yes", "no"] | None = None,
) -> CheckReport:
    """Read all images and label maps of a data set and report everything that is wrong with it.

    Args:
        root: the data set.
        splits: their names; the first is the training split.
        workers: processes that read (default: one per core).
        progress: show a progress bar.
        background: color that transparent pixels are blended on, such as white (default: transparency is
            dropped).
        layout: how the data set lies on disk; `auto` recognizes it.
        class_names: file of class names, one per line, for a data set without.
        reduce_zero_label: whether value 0 in label maps is ignored (default: the layout's; yes in ade20k).

    Raises:
        ConfigError: an unknown layout, or a value that it does not take.
    """
    zero = None if reduce_zero_label is None else reduce_zero_label == "yes"
    color = read_color(background, "background")
    return _Check(root, workers, progress, layout, class_names, zero, background=color).run(splits)


@dataclass(frozen=True)
class ClassSummary:
    """Size of a class."""

    pixels: int
    images: int
    """Images with pixels of it."""


@dataclass(frozen=True)
class SegmentationSummary(SplitSummary):
    """Images and label maps of a split."""

    per_class: dict[str, ClassSummary]
    ignored: float
    """Fraction of ignored pixels."""

    def text(self) -> str:
        """One line."""
        bad = f" ({self.unreadable:,} unusable)" if self.unreadable else ""
        present = sum(found.images > 0 for found in self.per_class.values())
        return (
            f"{self.name}: {self.images:,} images{bad} with label maps of {present:,} of "
            f"{len(self.per_class):,} classes; {100 * self.ignored:.1f} % of the pixels ignored; "
            f"{self.sizes_text()}"
        )


@dataclass
class _Check(DatasetCheck[SegmentationSummary]):
    reduce_zero_label: bool | None = None
    """Whether value 0 in label maps is ignored; None as the layout has it."""

    def check_split(self, name: str) -> None:
        """Check a split; the first is the training split."""
        try:
            layout, root = choose_layout(self.root, self.layout)
            names = resolve_class_names(layout, root, self.class_names, self.reduce_zero_label)
            pairs = find_pairs(layout, root, name)
            table = names.table(pairs.encoding, None)
        except DataError as error:
            return self.error("layout", str(error))
        for text in pairs.errors:
            self.error("layout", text)
        folder = SegmentationFolder(pairs, names.names, table, layout.name)
        infos = self.scan(folder, name, read_pair)
        for info in infos:
            self.check_image(folder.path(info.index), info)
            if info.label_error:
                self.error("label map", f"{folder.label_path(info.index)}: {info.label_error}")
        self.check_duplicates(
            (
                (str(folder.path(info.index)), info.digest, info.labels.digest)
                for info in infos
                if not info.error and info.labels is not None
            ),
            lambda first, other: "with another label map",
        )
        self.summaries.append(summarize(name, folder.classes, infos))
        self.add(label_findings(folder, infos, training=len(self.summaries) == 1))


def label_findings(
    folder: SegmentationFolder, infos: Sequence[ImageInfo], training: bool
) -> Iterator[Finding]:
    """What is wrong with the label maps of a split as a whole, and files that are not used.

    Args:
        folder: the split.
        infos: what a scan found out about all of its label maps.
        training: whether it is the training split.
    """
    for file in folder.unpaired:
        yield Finding("warning", "unpaired", f"{file}: label map without image")
    for line in folder.unused:
        yield Finding("warning", "ignored", line)
    for info in infos:
        if info.labels is not None and not info.label_error and not info.labels.pixels:
            yield Finding("warning", "unlabeled", f"{folder.label_path(info.index)}: all pixels are ignored")
    if training and len(folder.classes) < 2:
        single = f"{folder.folder}: only one class, {folder.classes[0]!r}: training needs at least two"
        yield Finding("error", "one class", single)
    summary = summarize("", folder.classes, infos)
    absent = [name for name, found in summary.per_class.items() if not found.pixels]
    if not any(info.labels is not None for info in infos):
        return
    if len(absent) == len(folder.classes):
        nothing = "train on" if training else "evaluate on"
        yield Finding(
            "error", "absent", f"{folder.folder}: all pixels are ignored: there is nothing to {nothing}"
        )
    elif (
        training
        and len(folder.classes) == 2
        and absent
        and folder.table.ignored == (IGNORE,)
        and summary.ignored
    ):
        yield Finding("error", "absent", _black_and_white(folder, absent[0]))
    else:
        yield from absent_classes(folder.folder, "pixel", absent, training)


def _black_and_white(folder: SegmentationFolder, absent: str) -> str:
    """Error message for masks of 0 and 255 of two classes."""
    values = dict(zip(folder.classes, folder.table.values, strict=True))
    (other,) = values.keys() - {absent}
    both = f"the label maps hold only {values[other]} and {IGNORE}, and {IGNORE} is ignored"
    remedy = f"write {values[absent]} in its place for {absent!r}"
    return f"{folder.folder}: no pixel of {absent!r}: {both}: {remedy}"


def validate_label_maps(folder: SegmentationFolder, **options: Any) -> list[ImageInfo]:
    """Check before training that every label map is readable, of its image's size, and has known values.

    Of the images only the headers are read. Returns what was found out.

    Args:
        folder: the data.
        options: those of `validate`.

    Raises:
        BadImage: the first bad file.
    """

    def path(info: ImageInfo) -> Path:
        return (folder.path if info.error else folder.label_path)(info.index)

    return validate(folder, read_labels, f"label maps of {folder.split}", path, **options)


@dataclass(frozen=True, slots=True)
class LabelInfo:
    """What a scan found out about a label map: `ImageInfo.labels`."""

    digest: bytes
    """Hash of the values."""
    pixels: dict[int, int]
    """Pixels of each class that has any."""
    ignored: int
    """Ignored pixels."""


def read_labels(folder: SegmentationFolder, index: int) -> ImageInfo:
    """Read a label map and the header of its image."""
    try:
        size = image_size(folder.path(index))
    except DataError as error:
        return ImageInfo(index, error=reason(error))
    labels, label_error = _label_info(folder, index, size, hashed=False)
    return ImageInfo(index, *size, labels=labels, label_error=label_error)


def read_pair(folder: SegmentationFolder, index: int, background: Color | None = None) -> ImageInfo:
    """Read an image and its label map."""
    info = inspect(folder, index, background)
    labels, label_error = _label_info(folder, index, None if info.error else (info.width, info.height))
    return replace(info, labels=labels, label_error=label_error)


def _label_info(
    folder: SegmentationFolder, index: int, size: tuple[int, int] | None, hashed: bool = True
) -> tuple[LabelInfo | None, str]:
    """Contents and errors of a label map; `size` is its image's (width, height)."""
    try:
        values = read_label_map(folder.label_path(index), folder.table.colors)
    except DataError as error:
        return None, reason(error)
    own = values.shape[1], values.shape[0]
    counts = count_values(values)
    errors = [folder.table.unknown_values(counts), folder.size_mismatch(index, own, size) if size else ""]
    pixels, ignored = folder.table.class_pixels(counts)
    present = {label: count for label, count in enumerate(pixels) if count}
    info = LabelInfo(digest(own, values.tobytes()) if hashed else b"", present, ignored)
    return info, "; ".join(filter(None, errors))


def summarize(name: str, classes: Sequence[str], infos: Sequence[ImageInfo]) -> SegmentationSummary:
    """Summary of the images and label maps of a split."""
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    ignored = 0
    for info in infos:
        if info.labels is not None:
            pixels.update(info.labels.pixels)
            images.update(info.labels.pixels.keys())
            ignored += info.labels.ignored
    return SegmentationSummary(
        name,
        len(infos),
        sum(bool(info.error or info.label_error) for info in infos),
        *size_range(infos),
        per_class={label: ClassSummary(pixels[index], images[index]) for index, label in enumerate(classes)},
        ignored=ignored / max(1, ignored + pixels.total()),
    )
