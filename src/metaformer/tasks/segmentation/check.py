"""Checks of segmentation data sets: `metaformer data check`, and the validation before training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from metaformer.data.image import image_size
from metaformer.data.scan import ImageInfo, digest, inspect, reason, scan
from metaformer.errors import DataError
from metaformer.tasks.check import CheckReport, DatasetCheck, SplitSummary, size_range, validate
from metaformer.tasks.segmentation.dataset import SegmentationFolder
from metaformer.tasks.segmentation.labels import count_values, read_label_map, resolve_class_names
from metaformer.tasks.segmentation.layouts import choose_layout, find_pairs


def check_label_maps(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    workers: int | None = None,
    progress: bool = True,
    layout: Literal["auto", "ade20k", "voc", "cityscapes", "coco_stuff", "folders"] = "auto",
    class_names: Sequence[str] | str | Path | None = None,
    reduce_zero_label: Literal["yes", "no"] | None = None,
) -> CheckReport:
    """Read all images and label maps of a data set and report everything that is wrong with it.

    Args:
        root: the data set.
        splits: their names; the first is the training split.
        workers: processes that read (default: one per core).
        progress: show a progress bar.
        layout: how the data set lies on disk; `auto` recognizes it.
        class_names: file of class names, one per line, for a data set without.
        reduce_zero_label: whether value 0 in label maps is ignored (default: the layout's; yes in ade20k).

    Raises:
        ConfigError: an unknown layout, or a value that it does not take.
    """
    zero = None if reduce_zero_label is None else reduce_zero_label == "yes"
    return _Check(root, workers, progress, layout, class_names, zero).run(splits)


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
        except DataError as error:
            return self.error("layout", str(error))
        for text in pairs.errors:
            self.error("layout", text)
        for file in pairs.unused:
            self.warn("ignored", file)
        folder = SegmentationFolder(pairs, names.names, names.table(pairs.encoding, None), layout.name)
        infos = scan(folder, workers=self.workers, label=name, progress=self.progress, read=read_pair)
        for info in infos:
            self.check_image(folder.path(info.index), info)
            self._check_labels(folder.label_path(info.index), info)
        self.check_duplicates(
            (
                (str(folder.path(info.index)), info.digest, info.labels.digest)
                for info in infos
                if not info.error and info.labels is not None
            ),
            lambda first, other: "with another label map",
        )
        self.summaries.append(summarize(name, folder.classes, infos))
        if len(self.summaries) == 1:
            self._check_classes(folder, self.summaries[0])

    def _check_labels(self, path: Path, info: ImageInfo) -> None:
        if info.label_error:
            self.error("label map", f"{path}: {info.label_error}")
        elif info.labels is not None and not info.labels.pixels:
            self.warn("unlabeled", f"{path}: all pixels are ignored")

    def _check_classes(self, folder: SegmentationFolder, summary: SegmentationSummary) -> None:
        """Classes that cannot be learned."""
        if len(folder.classes) < 2:
            single = f"{folder.folder}: only one class, {folder.classes[0]!r}: training needs at least two"
            self.error("one class", single)
        absent = [name for name, found in summary.per_class.items() if not found.pixels]
        self.warn_absent(folder.folder, "pixel", absent)


def validate_label_maps(folder: SegmentationFolder, **options: Any) -> None:
    """Check before training that every label map is readable, of its image's size, and has known values.

    Of the images only the headers are read.

    Args:
        folder: the data.
        options: those of `validate`.

    Raises:
        BadImage: the first bad file.
    """

    def path(info: ImageInfo) -> Path:
        return (folder.path if info.error else folder.label_path)(info.index)

    validate(folder, read_labels, f"label maps of {folder.split}", path, **options)


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
    _, label_error = _label_info(folder, index, size, hashed=False)
    return ImageInfo(index, *size, label_error=label_error)


def read_pair(folder: SegmentationFolder, index: int) -> ImageInfo:
    """Read an image and its label map."""
    info = inspect(folder, index)
    labels, label_error = _label_info(folder, index, None if info.error else (info.width, info.height))
    return replace(info, labels=labels, label_error=label_error)


def _label_info(
    folder: SegmentationFolder, index: int, size: tuple[int, int] | None, hashed: bool = True
) -> tuple[LabelInfo | None, str]:
    """Contents and errors of a label map; `size` is its image's (width, height)."""
    try:
        values = read_label_map(folder.label_path(index))
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
